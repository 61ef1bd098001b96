"""Recall@K and pseudo recall@K as M2KR defines them, and what a random ranking would reach.

    recall@K          1 if any of the first K passages has one of the query's passage ids, else 0; mean over queries
    pseudo recall@K   1 if any of the first K passage texts contains one of the query's answers, else 0; mean over the
                      queries that have answers

Recall@K is thus a hit rate: one positive of two in the first K counts 1, not 0.5. A query whose positives are all missing
from the pool counts as a miss, as in the published evaluation; `unreachable` names such queries.

Two steps: `positive_hits` or `answer_hits` says of each ranked passage whether it is a hit; `RecallAtK` or `PseudoRecallAtK`
counts queries, over batches and ranks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from math import comb

import torch
from torch import Tensor
from torchmetrics import Metric

from ret_lightning.errors import ConfigError


class RecallAtK(Metric):
    """Recall@K for several K at once.

    Args:
        ks: the values of K.

    `compute()` returns {"recall@1": ..., "recall@5": ...}, ascending in K, Python floats; {} if no query was counted.
    The states are float64 sums, added up over ranks.

    Raises:
        ConfigError: if `ks` is empty or one of them is below 1.
    """

    name = "recall"
    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    hits: Tensor
    queries: Tensor

    def __init__(self, ks: Iterable[int], **kwargs) -> None:
        super().__init__(**kwargs)
        self.ks = sorted(set(ks))
        if not self.ks or self.ks[0] < 1:
            raise ConfigError(f"{self.name}@K: K must be one or more numbers of at least 1, got {self.ks}")
        self.add_state("hits", torch.zeros(len(self.ks), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("queries", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, hits: Tensor, counted: Tensor | None = None) -> None:
        """Adds queries.

        Args:
            hits: (N, C) bool, whether each ranked passage is a hit, best passage first; C at least the largest K.
            counted: (N,) bool, False for queries to leave out of the average; None counts all.

        Raises:
            ValueError: if `hits` has fewer columns than the largest K, or dtypes or lengths do not fit.
        """
        if hits.dtype != torch.bool or hits.dim() != 2 or hits.shape[1] < self.ks[-1]:
            raise ValueError(
                f"{self.name}@{self.ks[-1]} needs bool hits of shape (N, {self.ks[-1]} or more), "
                f"got {hits.dtype} of shape {tuple(hits.shape)}"
            )
        if counted is not None:
            if counted.dtype != torch.bool or counted.shape != hits.shape[:1]:
                raise ValueError(
                    f"{self.name}@K: counted must be bool of shape ({len(hits)},), "
                    f"got {counted.dtype} of shape {tuple(counted.shape)}"
                )
            hits = hits[counted]
        hits = hits.to(self.hits.device)
        self.hits += torch.stack([hits[:, :k].any(dim=1).sum() for k in self.ks])
        self.queries += len(hits)

    def compute(self) -> dict[str, float]:
        if self.queries == 0:
            return {}
        return {f"{self.name}@{k}": float(hits / self.queries) for k, hits in zip(self.ks, self.hits, strict=True)}


class PseudoRecallAtK(RecallAtK):
    """Pseudo recall@K for several K at once: `update(answer_hits(...), has_answers(...))`.

    `compute()` returns {"pseudo_recall@1": ...}; {} if no query has answers, since there is no pseudo recall then.
    """

    name = "pseudo_recall"


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
    hits = torch.zeros(rows.shape, dtype=torch.bool)
    folded: dict[int, str] = {-1: ""}
    for query, ranked in enumerate(rows.tolist()):
        wanted = _folded_answers(answers[query])
        if not wanted:
            continue
        for row in ranked:
            if row not in folded:
                folded[row] = (pool_texts[row] or "").casefold()
        hits[query] = torch.tensor([any(answer in folded[row] for answer in wanted) for row in ranked])
    return hits


def has_answers(answers: Sequence[Sequence[str]]) -> Tensor:
    """(Nq,) bool: which queries have an answer that is not empty after stripping, and so count for pseudo recall."""
    return torch.tensor([bool(_folded_answers(own)) for own in answers], dtype=torch.bool)


def count_positives(pool_ids: Sequence[str], positives: Sequence[Sequence[str]]) -> list[int]:
    """For each query, how many passages of the pool have one of its passage ids."""
    copies = Counter(pool_ids)
    return [sum(copies[passage] for passage in _distinct(ids)) for ids in positives]


def unreachable(pool_ids: Sequence[str], positives: Sequence[Sequence[str]]) -> list[int]:
    """The positions of the queries none of whose positives is in the pool: misses at any K."""
    return [query for query, count in enumerate(count_positives(pool_ids, positives)) if count == 0]


def random_recall(pool_size: int, positives_in_pool: Sequence[int], k: int) -> float:
    """The recall@K that a ranking in random order has on average.

    Of N passages, P of them positive, K drawn without replacement miss all positives with the hypergeometric probability
    C(N - P, K) / C(N, K); so a query hits with 1 minus that. Exact: whole numbers up to one division a query.

    Args:
        pool_size: N.
        positives_in_pool: P of each query, `count_positives`.
        k: K, at least 1; at most N count.

    Returns:
        The mean over queries, in [0, 1].

    Raises:
        ValueError: without queries, or if a P is not in [0, N] or K is below 1.
    """
    if not positives_in_pool or k < 1:
        raise ValueError(f"random_recall: needs queries and k of at least 1, got {len(positives_in_pool)} and k={k}")
    drawn = min(k, pool_size)
    every = comb(pool_size, drawn)
    total = 0.0
    for positives, queries in sorted(Counter(positives_in_pool).items()):
        if not 0 <= positives <= pool_size:
            raise ValueError(f"random_recall: {positives} positives in a pool of {pool_size}")
        total += queries * ((every - comb(pool_size - positives, drawn)) / every)
    return total / len(positives_in_pool)


def _folded_answers(answers: Sequence[str]) -> list[str]:
    return [folded for folded in (answer.strip().casefold() for answer in _distinct(answers)) if folded]


def _distinct(strings: Sequence[str]) -> dict[str, None]:
    if isinstance(strings, str):
        raise TypeError(f"expected a sequence of strings for each query, got the string {strings!r}")
    return dict.fromkeys(strings)


def _check_lengths(rows: Tensor, lists: Sequence, what: str) -> None:
    if rows.dim() != 2 or len(rows) != len(lists):
        raise ValueError(f"rows of shape {tuple(rows.shape)} for {len(lists)} {what}: they need (Nq, K) and Nq")
