"""TREC run and qrels files, the exchange format of trec_eval, pytrec_eval and ranx.

A run has one line a ranked passage, `query Q0 passage rank score tag`; qrels have `query 0 passage relevance`. Columns end at
white space, so white space in ids, and `%`, are percent-encoded as in URLs and decoded on reading; other ids stay as they are.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from urllib.parse import quote, unquote

from ret_lightning.atomic import whole_file
from ret_lightning.errors import DataError
from ret_lightning.retrieval.ranking import Ranking


def write_run(
    path: str | Path, query_ids: Sequence[str], ranking: Ranking, pool_ids: Sequence[str], tag: str = "ret_lightning"
) -> None:
    """Writes rankings, whole or not at all.

    Ranks start at 1. Scores have nine significant digits, which is enough to give the same float32 back. Programs that
    order by score and ignore the rank, trec_eval among them, may put passages of equal score in another order.

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
    with whole_file(path) as unfinished, open(unfinished, "w", encoding="utf-8", newline="\n") as file:
        for query, rows, scores in zip(queries, ranking.rows.tolist(), ranking.scores.tolist(), strict=True):
            file.writelines(
                f"{query} Q0 {passages[row]} {rank} {score:.9g} {tag}\n"
                for rank, (row, score) in enumerate(zip(rows, scores, strict=True), start=1)
                if row >= 0
            )


def read_run(path: str | Path) -> dict[str, list[tuple[str, float]]]:
    """Reads a run: for each query id, in the file's order, its (passage id, score) pairs by rank.

    Raises:
        DataError: if the file is missing or not UTF-8; or, naming the line, if a line has not six columns, its rank is not a
            whole number, its score is not a finite number, or it repeats a query's passage.
    """
    ranked: dict[str, dict[str, tuple[int, float]]] = {}
    for where, line in _lines(path):
        columns = line.split()
        if len(columns) != 6:
            raise DataError(f"{where}: {len(columns)} columns, a TREC run has six: query Q0 passage rank score tag")
        query, passage = unquote(columns[0]), unquote(columns[2])
        entries = ranked.setdefault(query, {})
        if passage in entries:
            raise DataError(f"{where}: passage {passage!r} is ranked a second time for query {query!r}")
        entries[passage] = (_rank(columns[3], where), _score(columns[4], where))
    return {
        query: [(passage, score) for passage, (_, score) in sorted(entries.items(), key=lambda entry: entry[1][0])]
        for query, entries in ranked.items()
    }


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


def _encode_queries(path: str | Path, query_ids: Sequence[str]) -> list[str]:
    seen: set[str] = set()
    for query in query_ids:
        if query in seen:
            raise DataError(f"{path}: query id {query!r} occurs twice, and a TREC file tells queries apart by id")
        seen.add(query)
    return [_encode(path, query) for query in query_ids]


def _encode(path: str | Path, name: str) -> str:
    if not name:
        raise DataError(f"{path}: an empty id or tag cannot stand in a TREC file; give every query and passage an id")
    return re.sub(r"[\s%]", lambda match: quote(match[0], safe=""), name)


def _rank(text: str, where: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise DataError(f"{where}: rank {text!r} is not a whole number") from None


def _score(text: str, where: str) -> float:
    try:
        score = float(text)
    except ValueError:
        score = math.nan
    if not math.isfinite(score):
        raise DataError(f"{where}: score {text!r} is not a finite number")
    return score


def _lines(path: str | Path) -> Iterator[tuple[str, str]]:
    """The lines that are not blank, each with `file, line N`."""
    try:
        with open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield f"{path}, line {number}", line
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not a UTF-8 text file ({error})") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
