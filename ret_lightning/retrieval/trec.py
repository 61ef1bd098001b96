"""TREC run and qrels files, the exchange format of trec_eval, pytrec_eval and ranx.

A run has one line a ranked passage, `query Q0 passage rank score tag`; qrels have `query 0 passage relevance`. Columns end at
white space, so white space in ids, and `%`, are percent-encoded as in URLs and decoded on reading; other ids stay as they are.

The order of a run is trec_eval's: by score in single precision, equal scores by passage id, the last one in the order of its
bytes first; the ranks say nothing. Runs written here have no equal scores, so that all programs see the same order in them.
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

# The least number that single precision rounds to infinity.
FLOAT32_OVERFLOW = 2.0**128 - 2.0**103


def write_run(
    path: str | Path, query_ids: Sequence[str], ranking: Ranking, pool_ids: Sequence[str], tag: str = "ret_lightning"
) -> None:
    """Writes rankings, whole or not at all.

    Ranks start at 1. Scores have nine significant digits, which is enough to give the same float32 back. Where passages have
    equal scores, each is written with the next float32 below the one before it, since programs that order by score and
    ignore the rank, trec_eval among them, would put them in an order of their own (Lin and Yang, The Impact of Score Ties on
    Repeatability in Document Ranking, SIGIR 2019).

    Args:
        path: the file to write; its folder is made if needed.
        query_ids: Nq different ids.
        ranking: Nq rankings; rows of -1 are left out.
        pool_ids: the N passage ids that the rows of the ranking point into.
        tag: the name of the run.

    Raises:
        DataError: if an id is empty or a query id occurs twice, which a run cannot hold.
        ValueError: if there are not as many query ids as rankings.
    """
    if len(query_ids) != len(ranking):
        raise ValueError(f"write_run: {len(query_ids)} query ids for {len(ranking)} rankings")
    queries = _encode_queries(path, query_ids)
    passages = [_encode(path, passage) for passage in pool_ids]
    tag = _encode(path, tag)
    written = break_ties(ranking.scores)
    with whole_file(path) as unfinished, open(unfinished, "w", encoding="utf-8", newline="\n") as file:
        for query, rows, scores in zip(queries, ranking.rows.tolist(), written.tolist(), strict=True):
            file.writelines(
                f"{query} Q0 {passages[row]} {rank} {score:.9g} {tag}\n"
                for rank, (row, score) in enumerate(zip(rows, scores, strict=True), start=1)
                if row >= 0
            )


def read_run(path: str | Path) -> dict[str, list[tuple[str, float]]]:
    """Reads a run: for each query id, in the file's order, its (passage id, score) pairs in trec_eval's order.

    Raises:
        DataError: if the file is missing or not UTF-8; or, naming the line, if a line has not six columns, its rank is not a
            whole number, its score is not a finite number in single precision, or it repeats a query's passage.
    """
    found: dict[str, dict[str, float]] = {}
    for line, columns in _read_lines(path, "run", "query Q0 passage rank score tag"):
        query, _, passage, rank, score, _ = columns
        entries = found.setdefault(query, {})
        if passage in entries:
            raise DataError(
                f"{path}, line {line}: passage {unquote(passage)!r} is ranked a second time for query {unquote(query)!r}",
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
    """Reads a run, of this program or another, as the ranking that `evaluate_ranking` takes.

    Args:
        path: a run.
        query_ids: Nq different ids; one that the run does not have gets no passage.
        pool_ids: N different ids.

    Returns:
        As wide as the longest ranking of the run.

    Raises:
        DataError: as `read_run`, or if the run has a query or a passage that is not among the ids.
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
                f"{path}: query {query!r} is not one of the {len(query_ids)} queries of this evaluation",
                code="trec-query-unknown",
                path=path,
                query=query,
            )
        lacking = next((passage for passage, _ in ranked if passage not in pool), None)
        if lacking is not None:
            raise DataError(
                f"{path}: query {query!r}: passage {lacking!r} is not in the pool of {len(pool_ids)}",
                code="trec-passage-unknown",
                path=path,
                query=query,
                passage=lacking,
            )
        rows[queries[query], : len(ranked)] = [pool[passage] for passage, _ in ranked]
        scores[queries[query], : len(ranked)] = [score for _, score in ranked]
    return Ranking(torch.from_numpy(rows), torch.from_numpy(scores))


def write_qrels(path: str | Path, query_ids: Sequence[str], positives: Sequence[Iterable[str]]) -> None:
    """Writes which passages are right for which query, each with relevance 1, whole or not at all.

    Args:
        path: the file to write; its folder is made if needed.
        query_ids: Nq different ids.
        positives: for each query its passage ids.

    Raises:
        DataError: if an id is empty or a query id occurs twice.
        ValueError: if there are not as many query ids as lists of positives.
    """
    if len(query_ids) != len(positives):
        raise ValueError(f"write_qrels: {len(query_ids)} query ids for {len(positives)} lists of positives")
    queries = _encode_queries(path, query_ids)
    with whole_file(path) as unfinished, open(unfinished, "w", encoding="utf-8", newline="\n") as file:
        for query, ids in zip(queries, positives, strict=True):
            file.writelines(f"{query} 0 {_encode(path, passage)} 1\n" for passage in dict.fromkeys(ids))


def read_qrels(path: str | Path) -> dict[str, tuple[str, ...]]:
    """Reads which passages are right: for each query id, in the file's order, the ids of its positives.

    Relevance is taken as yes or no, as trec_eval's hit rate and reciprocal rank do: 1 and more is right, 0 and less is not.
    (trec_eval's nDCG weighs by the number; where all are 0 or 1 that is the same.) A query none of whose passages is right
    has an empty tuple.

    Raises:
        DataError: if the file is missing or not UTF-8; or, naming the line, if a line has not four columns, its relevance is
            not a whole number, or it repeats a query's passage.
    """
    found: dict[str, dict[str, int]] = {}
    for line, columns in _read_lines(path, "qrels file", "query 0 passage relevance"):
        query, passage = unquote(columns[0]), unquote(columns[2])
        entries = found.setdefault(query, {})
        if passage in entries:
            raise DataError(
                f"{path}, line {line}: passage {passage!r} is judged a second time for query {query!r}",
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
                f"{path}: query id {query!r} occurs twice, and a TREC file tells queries apart by id",
                code="trec-query-twice",
                path=path,
                query=query,
            )
        seen.add(query)
    return [_encode(path, query) for query in query_ids]


def _encode(path: str | Path, name: str) -> str:
    if not name:
        raise DataError(
            f"{path}: an empty id or tag cannot stand in a TREC file; give every query and passage an id",
            code="trec-id-empty",
            path=path,
        )
    return re.sub(r"[\s%]", lambda match: quote(match[0], safe=""), name)


def _sort_entries(entries: dict[str, float]) -> list[tuple[str, float]]:
    """Encoded passage ids and their scores -> decoded, in trec_eval's order."""
    single = np.array(list(entries.values()), dtype=np.float32).tolist()
    # Code points, by which Python compares, are in the order of their UTF-8 bytes.
    ordered = sorted(zip(single, entries.items(), strict=True), reverse=True)
    return [(unquote(name), score) for _, (name, score) in ordered]


def _parse_integer(text: str, what: str, path: str | Path, line: int) -> int:
    try:
        return int(text)
    except ValueError:
        raise DataError(
            f"{path}, line {line}: {what} {text!r} is not a whole number",
            code="trec-number-not-whole",
            path=path,
            line=line,
            field=what,
            found=text,
        ) from None


def _parse_score(text: str, path: str | Path, line: int) -> float:
    try:
        score = float(text)
    except ValueError:
        score = math.nan
    if not abs(score) < FLOAT32_OVERFLOW:
        raise DataError(
            f"{path}, line {line}: score {text!r} is not a finite number in single precision",
            code="trec-score-not-finite",
            path=path,
            line=line,
            found=text,
        )
    return score


def _read_lines(path: str | Path, kind: str, layout: str) -> Iterator[tuple[int, list[str]]]:
    """The columns of the lines that are not blank, each with the number of its line."""
    wanted = len(layout.split())
    try:
        with open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                columns = line.split()
                if columns and len(columns) != wanted:
                    raise DataError(
                        f"{path}, line {number}: {len(columns)} columns, a TREC {kind} has {wanted}: {layout}",
                        code="trec-line-fields",
                        path=path,
                        line=number,
                        found=len(columns),
                        expected=wanted,
                    )
                if columns:
                    yield number, columns
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not a UTF-8 text file ({error})", code="trec-not-utf8", path=path) from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})", code="trec-unreadable", path=path) from None
