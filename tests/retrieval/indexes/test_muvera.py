"""MuveraIndex: recall, settings and stored maps."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from ret_lightning.errors import ConfigError, DataError
from ret_lightning.retrieval import Embeddings, ExactIndex, Index, MuveraIndex
from ret_lightning.retrieval.indexes.muvera import MAPS_FILE
from tests.support.random_pools import clustered, embeddings


def ranked(index, queries, passages, top_k=10):
    index.build(passages)
    return index.search(queries, top_k)


@pytest.mark.parametrize(
    ("settings", "recall"),
    [({}, 0.97), ({"factory": "Flat", "hyperplanes": 2}, 0.97), ({"factory": "IVF16,SQ8", "nprobe": 12}, 0.95)],
)
def test_recall_on_clustered_pool(settings, recall):
    queries, passages = clustered(2000, 40, k=16, d=32)
    found = ranked(MuveraIndex(candidates=256, **settings), queries, passages)
    exact = ranked(ExactIndex(), queries, passages)
    shared = [len(set(a) & set(b)) for a, b in zip(found.rows.tolist(), exact.rows.tolist(), strict=True)]
    assert sum(shared) >= recall * 40 * 10


def test_all_passages_as_candidates_equals_exact():
    queries, passages = clustered(100, 20)
    twice = embeddings(passages.vectors.repeat(2, 1, 1))
    for candidates in (199, 200, 500):
        index = MuveraIndex("Flat", candidates=candidates)
        found, exact = ranked(index, queries, twice), ranked(ExactIndex(), queries, twice)
        assert torch.equal(found.rows, exact.rows)
        assert torch.equal(found.scores, exact.scores)


def test_short_queries_are_ranked_exactly():
    queries, passages = clustered(600, 20)
    index = MuveraIndex("IVF64,Flat", candidates=50, nprobe=1)
    found, exact = ranked(index, queries, passages, 50), ranked(ExactIndex(), queries, passages, 50)
    assert (found.rows >= 0).all()
    assert torch.equal(found.rows, exact.rows)  # a list holds about ten passages: every query is short


def test_seed_determines_ranking():
    queries, passages = clustered(500, 20)

    def rows(seed: int) -> torch.Tensor:
        return ranked(MuveraIndex("IVF16,SQ8", candidates=12, seed=seed), queries, passages).rows

    assert torch.equal(rows(0), rows(0))
    assert not torch.equal(rows(0), rows(1))


@pytest.mark.parametrize("k", [1, 2, 5])
def test_float16_small_pools_and_other_query_lengths(k):
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
def test_settings_below_one_are_rejected(name):
    with pytest.raises(ConfigError) as caught:
        MuveraIndex(**{name: 0})
    assert (caught.value.code, caught.value.key, caught.value.found) == ("index-setting-too-small", name, 0)


def test_nlist_above_passages_is_rejected():
    with pytest.raises(ConfigError) as caught:
        MuveraIndex(nlist=512).build(clustered(300, 1)[1])
    assert (caught.value.code, caught.value.found, caught.value.most) == ("faiss-nlist-too-large", 512, 300)


def test_too_wide_encoding_is_rejected() -> None:
    with pytest.raises(ConfigError) as caught:
        MuveraIndex(hyperplanes=40)
    assert (caught.value.code, caught.value.found) == ("muvera-encoding-too-long", 20 * 2**40 * 16)


@pytest.mark.parametrize("damage", ["empty", "other tensors"])
def test_unreadable_maps_are_reported(tmp_path, damage) -> None:
    _, passages = clustered(100, 1)
    index = MuveraIndex()
    index.build(passages)
    index.save(tmp_path)
    file = tmp_path / MAPS_FILE
    if damage == "other tensors":
        save_file({"points": torch.zeros(1)}, file)
    else:
        file.write_bytes(b"")
    with pytest.raises(DataError) as caught:
        Index.load(tmp_path, passages, verify=False)
    assert (caught.value.code, caught.value.path) == ("muvera-maps-unreadable", file)
