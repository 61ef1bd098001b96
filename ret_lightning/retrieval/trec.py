"""Read and write TREC run and qrels files, the exchange format of trec_eval, pytrec_eval and ranx.

A run has one line per ranked passage, `query Q0 passage rank score tag`; a qrels file has lines `query 0 passage
relevance`. Columns are separated by white space. White space and `%` in ids are therefore percent-encoded as in URLs, and
decoded on reading; all other characters are written as they are.

A run is ordered as in trec_eval: by score in single precision, equal scores by descending passage id in UTF-8 byte order.
The rank column is ignored. Runs written here contain no equal scores, so that every program reads the same order.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from urllib.parse import quote, unquote

import numpy as np
import torch

from ret_lightning.errors import DataError
from ret_lightning.retrieval.ranking import Ranking, break_ties
from ret_lightning.runtime.atomic_files import whole_file

# The smallest number that rounds to infinity in float32.
FLOAT32_OVERFLOW = 2.0**128 - 2.0**103


def write_run(
    path: str | Path, query_ids: Sequence[str], ranking: Ranking, pool_ids: Sequence[str], tag: str = "ret_lightning"
) -> None:
    """Write rankings to a run file; the file is replaced only when it is complete.

    Ranks start at 1. Scores have nine significant digits, which identify a float32 exactly. Each of several equal scores is
    written as the next float32 below the one before it, because programs that order by score and ignore the rank, such as
    trec_eval, would otherwise order ties by their own rule (Lin and Yang, The Impact of Score Ties on Repeatability in
    Document Ranking, SIGIR 2019).

    Args:
        path: file to write; its folder is created if needed.
        query_ids: Nq unique ids.
        ranking: ranking of Nq queries; rows of -1 are omitted.
        pool_ids: the N passage ids that the rows of the ranking index.
        tag: name of the run.

    Raises:
        DataError: if an id is empty or a query id is not unique.
        ValueError: if the numbers of query ids and rankings differ.
    """
    if len(query_ids) != len(ranking):
        raise ValueError(
            f"write_run: expected one query id per ranking, got {len(query_ids)} query ids and {len(ranking)} rankings"
        )
    queries = _encode_queries(path, query_ids)
    passages = [_encode(path, passage) for passage in pool_ids]
    tag = _encode(path, tag)
    written = break_ties(ranking.scores)
    with whole_file(path) as unfinished, unfinished.open("w", encoding="utf-8", newline="\n") as file:
        for query, rows, scores in zip(queries, ranking.rows.tolist(), written.tolist(), strict=True):
            file.writelines(
                f"{query} Q0 {passages[row]} {rank} {score:.9g} {tag}\n"
                for rank, (row, score) in enumerate(zip(rows, scores, strict=True), start=1)
                if row >= 0
            )


def read_run(path: str | Path) -> dict[str, list[tuple[str, float]]]:
    """Read a run file.

    Args:
        path: the run file.

    Returns:
        For each query id, in the order of the file, its (passage id, score) pairs in the order of trec_eval.

    Raises:
        DataError: if the file is missing or not UTF-8, a line does not have six columns, a rank is not an integer, a score
            is not finite in single precision, or a passage occurs twice for a query. The error names the line.
    """
    found: dict[str, dict[str, float]] = {}
    for line, columns in _read_lines(path, "run", "query Q0 passage rank score tag"):
        query, _, passage, rank, score, _ = columns
        entries = found.setdefault(query, {})
        if passage in entries:
            raise DataError(
                f"{path}:{line}: duplicate passage {unquote(passage)!r} for query {unquote(query)!r}; keep one line",
                code="trec-passage-ranked-twice",
                path=path,
                line=line,
                query=unquote(query),
                passage=unquote(passage),
            )
        _parse_integer(rank, "rank", path, line)
        entries[passage] = _parse_score(score, path, line)
    return {unquote(query): _sort_entries(entries) for query, entries in found.items()}


def read_ranking(path: str | Path, query_ids: Sequence[str], pool_ids: Sequence[str]) -> Ranking:
    """Read a run file as the `Ranking` that `evaluate_ranking` expects.

    Args:
        path: the run file, written by this or another program.
        query_ids: Nq unique ids; a query that is missing from the run gets an empty ranking.
        pool_ids: N unique passage ids.

    Returns:
        A ranking of shape (Nq, K), where K is the length of the longest ranking in the run.

    Raises:
        DataError: if the run cannot be read (see `read_run`) or contains a query or passage that is not among the ids.
    """
    run = read_run(path)
    queries = {query: row for row, query in enumerate(query_ids)}
    pool = {passage: row for row, passage in enumerate(pool_ids)}
    width = max(map(len, run.values()), default=0)
    rows = np.full((len(query_ids), width), -1, dtype=np.int64)
    scores = np.full((len(query_ids), width), -np.inf, dtype=np.float32)
    for query, ranked in run.items():
        if query not in queries:
            raise DataError(
                f"{path}: unknown query {query!r}, expected one of the {len(query_ids)} queries of this evaluation",
                code="trec-query-unknown",
                path=path,
                query=query,
            )
        missing = next((passage for passage, _ in ranked if passage not in pool), None)
        if missing is not None:
            raise DataError(
                f"{path}: query {query!r}: passage {missing!r} is not in the candidate pool of {len(pool_ids)} passages",
                code="trec-passage-unknown",
                path=path,
                query=query,
                passage=missing,
            )
        rows[queries[query], : len(ranked)] = [pool[passage] for passage, _ in ranked]
        scores[queries[query], : len(ranked)] = [score for _, score in ranked]
    return Ranking(torch.from_numpy(rows), torch.from_numpy(scores))


def write_qrels(path: str | Path, query_ids: Sequence[str], positives: Sequence[Iterable[str]]) -> None:
    """Write the positives of each query with relevance 1; the file is replaced only when it is complete.

    Args:
        path: file to write; its folder is created if needed.
        query_ids: Nq unique ids.
        positives: for each query, the ids of its positives; duplicates are written once.

    Raises:
        DataError: if an id is empty or a query id is not unique.
        ValueError: if the numbers of query ids and lists of positives differ.
    """
    if len(query_ids) != len(positives):
        raise ValueError(
            f"write_qrels: expected one query id per list of positives, got {len(query_ids)} ids and {len(positives)} lists"
        )
    queries = _encode_queries(path, query_ids)
    with whole_file(path) as unfinished, unfinished.open("w", encoding="utf-8", newline="\n") as file:
        for query, ids in zip(queries, positives, strict=True):
            file.writelines(f"{query} 0 {_encode(path, passage)} 1\n" for passage in dict.fromkeys(ids))


def read_qrels(path: str | Path) -> dict[str, tuple[str, ...]]:
    """Read the positives of each query from a qrels file.

    Relevance is binary: a passage with relevance 1 or more is a positive. trec_eval applies the same threshold to success
    and reciprocal rank; its nDCG uses the grades, which is equivalent where all grades are 0 or 1.

    Args:
        path: the qrels file.

    Returns:
        For each query id, in the order of the file, the ids of its positives; an empty tuple for a query without positives.

    Raises:
        DataError: if the file is missing or not UTF-8, a line does not have four columns, a relevance is not an integer, or
            a passage occurs twice for a query. The error names the line.
    """
    found: dict[str, dict[str, int]] = {}
    for line, columns in _read_lines(path, "qrels file", "query 0 passage relevance"):
        query, passage = unquote(columns[0]), unquote(columns[2])
        entries = found.setdefault(query, {})
        if passage in entries:
            raise DataError(
                f"{path}:{line}: duplicate passage {passage!r} for query {query!r}; keep one line per passage",
                code="trec-qrels-duplicate",
                path=path,
                line=line,
                query=query,
                passage=passage,
            )
        entries[passage] = _parse_integer(columns[3], "relevance", path, line)
    return {
        query: tuple(passage for passage, relevance in entries.items() if relevance > 0)
        for query, entries in found.items()
    }


def _encode_queries(path: str | Path, query_ids: Sequence[str]) -> list[str]:
    seen: set[str] = set()
    for query in query_ids:
        if query in seen:
            raise DataError(
                f"{path}: duplicate query id {query!r}; query ids must be unique in a TREC file",
                code="trec-query-twice",
                path=path,
                query=query,
            )
        seen.add(query)
    return [_encode(path, query) for query in query_ids]


def _encode(path: str | Path, name: str) -> str:
    if not name:
        raise DataError(
            f"{path}: empty query id, passage id or tag; TREC files require non-empty ids",
            code="trec-id-empty",
            path=path,
        )
    return re.sub(r"[\s%]", lambda match: quote(match[0], safe=""), name)


def _sort_entries(entries: dict[str, float]) -> list[tuple[str, float]]:
    """Decode passage ids and sort them in the order of trec_eval."""
    single = np.array(list(entries.values()), dtype=np.float32).tolist()
    # Python compares code points, which sort like their UTF-8 bytes.
    ordered = sorted(zip(single, entries.items(), strict=True), reverse=True)
    return [(unquote(name), score) for _, (name, score) in ordered]


def _parse_integer(text: str, field: str, path: str | Path, line: int) -> int:
    try:
        return int(text)
    except ValueError:
        raise DataError(
            f"{path}:{line}: {field}: expected an integer, got {text!r}",
            code="trec-number-not-whole",
            path=path,
            line=line,
            field=field,
            found=text,
        ) from None


def _parse_score(text: str, path: str | Path, line: int) -> float:
    try:
        score = float(text)
    except ValueError:
        score = math.nan
    if not abs(score) < FLOAT32_OVERFLOW:
        raise DataError(
            f"{path}:{line}: score: expected a finite float32, got {text!r}",
            code="trec-score-not-finite",
            path=path,
            line=line,
            found=text,
        )
    return score


def _read_lines(path: str | Path, kind: str, layout: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the line number and the columns of each line that is not blank."""
    expected = len(layout.split())
    try:
        with Path(path).open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                columns = line.split()
                if columns and len(columns) != expected:
                    raise DataError(
                        f"{path}:{number}: expected {expected} columns of a TREC {kind} ({layout}), got {len(columns)}",
                        code="trec-line-fields",
                        path=path,
                        line=number,
                        found=len(columns),
                        expected=expected,
                    )
                if columns:
                    yield number, columns
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not a UTF-8 text file ({error})", code="trec-not-utf8", path=path) from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})", code="trec-unreadable", path=path) from None
