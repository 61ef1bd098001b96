from __future__ import annotations

import pytest
import torch

from ret_lightning.errors import ConfigError
from ret_lightning.retrieval import Embeddings, ExactIndex, MuveraIndex
from tests.support.random_pools import clustered, embeddings


def ranked(index, queries, passages, top_k=10):
    index.build(passages)
    return index.search(queries, top_k)


@pytest.mark.parametrize(
    ("settings", "agreement"),
    [({}, 0.97), ({"factory": "Flat", "hyperplanes": 2}, 0.97), ({"factory": "IVF16,SQ8", "nprobe": 12}, 0.95)],
)
def test_agreement_on_a_clustered_pool(settings, agreement):
    queries, passages = clustered(2000, 40, k=16, d=32)
    found = ranked(MuveraIndex(candidates=256, **settings), queries, passages)
    exact = ranked(ExactIndex(), queries, passages)
    shared = [len(set(a) & set(b)) for a, b in zip(found.rows.tolist(), exact.rows.tolist(), strict=True)]
    assert sum(shared) >= agreement * 40 * 10


def test_with_all_passages_as_candidates_it_is_exact_ties_included():
    queries, passages = clustered(100, 20)
    twice = embeddings(passages.vectors.repeat(2, 1, 1))
    for candidates in (199, 200, 500):
        index = MuveraIndex("Flat", candidates=candidates)
        found, exact = ranked(index, queries, twice), ranked(ExactIndex(), queries, twice)
        assert torch.equal(found.rows, exact.rows)
        assert torch.equal(found.scores, exact.scores)


def test_candidates_that_few_probes_find_are_filled_up():
    queries, passages = clustered(600, 20)
    index = MuveraIndex("IVF64,Flat", candidates=50, nprobe=1)
    found, exact = ranked(index, queries, passages, 50), ranked(ExactIndex(), queries, passages, 50)
    assert (found.rows >= 0).all()
    assert torch.equal(found.rows, exact.rows)  # a cell holds ten of the 600: every query is short of 50


def test_the_same_seed_gives_the_same_ranking():
    queries, passages = clustered(500, 20)

    def rows(seed: int) -> torch.Tensor:
        return ranked(MuveraIndex("IVF16,SQ8", candidates=12, seed=seed), queries, passages).rows

    assert torch.equal(rows(0), rows(0))
    assert not torch.equal(rows(0), rows(1))


@pytest.mark.parametrize("k", [1, 2, 5])
def test_short_vectors_small_pools_and_other_lengths(k):
    queries, passages = clustered(300, 7, k=k, d=8)
    short = Embeddings(passages.ids, passages.vectors.half())
    found = ranked(MuveraIndex(candidates=299), queries[:, :1], short, 300)
    assert torch.equal(found.rows, ranked(ExactIndex(), queries[:, :1], short, 300).rows)
    found = ranked(MuveraIndex(), queries.repeat(1, 3, 1)[:1], embeddings(passages.vectors[:3]), 5)
    assert found.rows[0].tolist()[3:] == [-1, -1]
    assert ranked(MuveraIndex(), queries, embeddings(passages.vectors[:0]), 2).rows.tolist() == [[-1, -1]] * 7


@pytest.mark.parametrize(
    "name", ["candidates", "repetitions", "hyperplanes", "projection", "nlist", "nprobe", "training_points"]
)
def test_numbers_below_one_are_refused(name):
    with pytest.raises(ConfigError, match=f"^MuveraIndex: {name} must be at least 1"):
        MuveraIndex(**{name: 0})


def test_more_cells_than_passages_are_told():
    with pytest.raises(ConfigError, match="MuveraIndex: 'IVF512,SQ8' has nlist=512, and the pool 300 vectors"):
        MuveraIndex(nlist=512).build(clustered(300, 1)[1])


def test_encodings_that_no_memory_would_hold_are_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"20 repetitions of 2\^40 parts with 16 numbers each make an encoding of \d+ numbers"
    ):
        MuveraIndex(hyperplanes=40)
