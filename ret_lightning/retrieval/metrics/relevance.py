"""Which ranked passages are relevant to a query, and how many relevant passages there are.

Shapes: Nq queries, K ranked passages per query, N passages in the candidate pool.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor


def positive_hits(rows: Tensor, pool_ids: Sequence[str], positives: Sequence[Sequence[str]]) -> Tensor:
    """Determine whether each ranked passage is a positive of its query.

    Args:
        rows: (Nq, K) int64 positions in the candidate pool, -1 for none (`Ranking.rows`).
        pool_ids: the N passage ids.
        positives: for each query, the ids of its positives, as strings; they may be missing from the pool.

    Returns:
        (Nq, K) bool on the CPU.
    """
    _check_lengths(rows, positives, "lists of positives")
    rows = rows.cpu()
    code = {passage: number for number, passage in enumerate(dict.fromkeys(pool_ids))}
    # One integer per (query, passage id). Rows of -1 select the last code, which no positive has.
    codes = torch.tensor([code[passage] for passage in pool_ids] + [len(code)])
    base = torch.arange(len(rows)).unsqueeze(1) * (len(code) + 1)
    positive_codes = [
        query * (len(code) + 1) + code[passage]
        for query, ids in enumerate(positives)
        for passage in _distinct(ids)
        if passage in code
    ]
    return torch.isin(base + codes[rows], torch.tensor(positive_codes, dtype=torch.int64))


def answer_hits(rows: Tensor, pool_texts: Sequence[str | None], answers: Sequence[Sequence[str]]) -> Tensor:
    """Determine whether each ranked passage text contains an answer of its query, stripped and case-folded.

    Args:
        rows: (Nq, K) int64 positions in the candidate pool, -1 for none (`Ranking.rows`).
        pool_texts: the N passage texts; None never matches.
        answers: for each query, its answers; an answer that is empty after stripping never matches.

    Returns:
        (Nq, K) bool on the CPU.
    """
    _check_lengths(rows, answers, "lists of answers")
    hits = np.zeros(rows.shape, dtype=bool)
    folded_answers = [_folded_answers(own) for own in answers]
    needed_rows = rows[[bool(own) for own in folded_answers]].unique().tolist()
    folded = {row: (pool_texts[row] or "").casefold() if row >= 0 else "" for row in needed_rows}
    for query, ranked in enumerate(rows.tolist()):
        texts = [folded[row] for row in ranked] if folded_answers[query] else []
        together = "\n".join(texts)  # most answers occur in no text; one search rules them out
        for answer in folded_answers[query]:
            if answer in together:
                hits[query] |= [answer in text for text in texts]
    return torch.from_numpy(hits)


def has_answers(answers: Sequence[Sequence[str]]) -> Tensor:
    """Determine which queries have an answer that is not empty after stripping and count for pseudo-recall.

    Returns:
        (Nq,) bool.
    """
    return torch.tensor([bool(_folded_answers(own)) for own in answers], dtype=torch.bool)


def count_positives(pool_ids: Sequence[str], positives: Sequence[Sequence[str]], missing: int = 0) -> list[int]:
    """Count the passages of the pool that are positives of each query.

    Args:
        pool_ids: the N passage ids; ids may repeat.
        positives: for each query, the ids of its positives.
        missing: count of each id that is not in the pool.

    Returns:
        The count for each query.
    """
    copies = Counter(pool_ids)
    return [sum(copies[passage] or missing for passage in _distinct(ids)) for ids in positives]


def count_relevant(pool_ids: Sequence[str], positives: Sequence[Sequence[str]]) -> list[int]:
    """Count the relevant passages P of each query: its positives in the pool plus one for each id that is missing there.

    trec_eval counts in the same way, since it takes P from the qrels file and not from the run.
    """
    return count_positives(pool_ids, positives, missing=1)


def _folded_answers(answers: Sequence[str]) -> list[str]:
    return [folded for answer in _distinct(answers) if (folded := answer.strip().casefold())]


def _distinct(strings: Sequence[str]) -> dict[str, None]:
    if isinstance(strings, str):
        raise TypeError(f"expected a sequence of strings for each query, got the string {strings!r}")
    return dict.fromkeys(strings)


def _check_lengths(rows: Tensor, lists: Sequence[Any], what: str) -> None:
    if rows.dim() != 2 or len(rows) != len(lists):
        raise ValueError(f"expected rows of shape (Nq, K) and Nq {what}, got {tuple(rows.shape)} and {len(lists)}")
