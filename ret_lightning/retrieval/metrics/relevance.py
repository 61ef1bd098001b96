"""Which ranked passages are right, and how many right ones there are: from ids, texts and answers to numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def positive_hits(rows: Tensor, pool_ids: Sequence[str], positives: Sequence[Sequence[str]]) -> Tensor:
    """Whether each ranked passage is one of the query's positives.

    Args:
        rows: (Nq, K) int64, positions in the pool, -1 for none (`Ranking.rows`).
        pool_ids: the N passage ids of the pool.
        positives: for each query its passage ids, as strings; some or all may be missing from the pool.

    Returns:
        (Nq, K) bool, on the CPU.
    """
    _check_lengths(rows, positives, "lists of positives")
    rows = rows.cpu()
    code = {passage: number for number, passage in enumerate(dict.fromkeys(pool_ids))}
    # One number for each (query, passage id); column -1 of the codes, for rows of -1, is a code that no positive has.
    codes = torch.tensor([code[passage] for passage in pool_ids] + [len(code)])
    base = torch.arange(len(rows)).unsqueeze(1) * (len(code) + 1)
    wanted = [
        query * (len(code) + 1) + code[passage]
        for query, ids in enumerate(positives)
        for passage in _distinct(ids)
        if passage in code
    ]
    return torch.isin(base + codes[rows], torch.tensor(wanted, dtype=torch.int64))


def answer_hits(rows: Tensor, pool_texts: Sequence[str | None], answers: Sequence[Sequence[str]]) -> Tensor:
    """Whether each ranked passage's text contains one of the query's answers, stripped and case folded.

    Args:
        rows: (Nq, K) int64, positions in the pool, -1 for none (`Ranking.rows`).
        pool_texts: the N passage texts; None never matches.
        answers: for each query its answers; one that is empty after stripping never matches.

    Returns:
        (Nq, K) bool, on the CPU.
    """
    _check_lengths(rows, answers, "lists of answers")
    hits = np.zeros(rows.shape, dtype=bool)
    wanted = [_folded_answers(own) for own in answers]
    asked = rows[[bool(own) for own in wanted]].unique().tolist()
    folded = {row: (pool_texts[row] or "").casefold() if row >= 0 else "" for row in asked}
    for query, ranked in enumerate(rows.tolist()):
        texts = [folded[row] for row in ranked] if wanted[query] else []
        together = "\n".join(texts)  # most answers are in no text at all, which one pass over all texts shows
        for answer in wanted[query]:
            if answer in together:
                hits[query] |= [answer in text for text in texts]
    return torch.from_numpy(hits)


def has_answers(answers: Sequence[Sequence[str]]) -> Tensor:
    """(Nq,) bool: which queries have an answer that is not empty after stripping, and so count for pseudo recall."""
    return torch.tensor([bool(_folded_answers(own)) for own in answers], dtype=torch.bool)


def count_positives(pool_ids: Sequence[str], positives: Sequence[Sequence[str]], missing: int = 0) -> list[int]:
    """For each query, how many passages of the pool have one of its passage ids; `missing` for each id without any."""
    copies = Counter(pool_ids)
    return [sum(copies[passage] or missing for passage in _distinct(ids)) for ids in positives]


def count_relevant(pool_ids: Sequence[str], positives: Sequence[Sequence[str]]) -> list[int]:
    """For each query P, the number of right passages: those of the pool, and one for each id that the pool lacks.

    trec_eval counts the same, since it takes P from the qrels and not from the run.
    """
    return count_positives(pool_ids, positives, missing=1)


def _folded_answers(answers: Sequence[str]) -> list[str]:
    return [folded for answer in _distinct(answers) if (folded := answer.strip().casefold())]


def _distinct(strings: Sequence[str]) -> dict[str, None]:
    if isinstance(strings, str):
        raise TypeError(f"expected a sequence of strings for each query, got the string {strings!r}")
    return dict.fromkeys(strings)


def _check_lengths(rows: Tensor, lists: Sequence, what: str) -> None:
    if rows.dim() != 2 or len(rows) != len(lists):
        raise ValueError(f"rows of shape {tuple(rows.shape)} for {len(lists)} {what}: they need (Nq, K) and Nq")
