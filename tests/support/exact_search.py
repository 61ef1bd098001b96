"""Search with an exact index, and comparison of a ranking with the expected one."""

from __future__ import annotations

import numpy as np
import torch

from ret_lightning.retrieval import Embeddings, ExactIndex, Ranking


def search(passages: Embeddings, queries: torch.Tensor, top_k: int, **settings) -> Ranking:
    index = ExactIndex(**settings)
    index.build(passages)
    return index.search(queries, top_k)


def assert_ranking(ranking: Ranking, rows: np.ndarray, scores: np.ndarray) -> None:
    np.testing.assert_array_equal(ranking.rows.numpy(), rows)
    np.testing.assert_array_equal(ranking.scores.numpy(), scores)
