from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ret_lightning.errors import ConfigError
from ret_lightning.ops.maxsim import maxsim
from ret_lightning.retrieval import Embeddings, ExactIndex, FaissIndex, MuveraIndex
from ret_lightning.retrieval.indexes import base as index_module
from ret_lightning.retrieval.indexes import exact as exact_module
from tests.support.exact_search import assert_ranking, search
from tests.support.random_pools import brute_force, clustered, embeddings


def test_query_blocks_do_not_change_ranking(monkeypatch):
    queries, passages = clustered(100, 20)
    expected = search(passages, queries, 10)
    monkeypatch.setattr(index_module, "QUERY_BLOCK", 3)
    assert_ranking(search(passages, queries, 10), expected.rows.numpy(), expected.scores.numpy())


@pytest.mark.parametrize("make", [ExactIndex, FaissIndex])
def test_empty_pool_and_no_queries(make):
    index = make()
    index.build(embeddings(torch.zeros(0, 2, 4)))
    assert index.search(torch.ones(3, 2, 4), 2).rows.tolist() == [[-1, -1]] * 3
    index.build(embeddings(torch.ones(2, 2, 4)))
    assert index.search(torch.zeros(0, 2, 4), 2).rows.shape == (0, 2)


def test_build_replaces_passages():
    queries, passages = clustered(50, 5)
    _, others = clustered(60, 5, k=3, seed=1)
    index = ExactIndex()
    index.build(others)
    index.build(passages)
    assert_ranking(index.search(queries, 10), *brute_force(queries, passages, 10))


def test_queries_of_other_length_and_dtype():
    queries, passages = clustered(50, 5)
    queries = queries[:, :3].half()
    assert_ranking(search(passages, queries, 10), *brute_force(queries, passages, 10))


def test_search_ignores_training_precision(monkeypatch):
    queries, passages = clustered(1000, 100)
    monkeypatch.setattr(exact_module, "MARGIN", 1)  # so that an imprecise coarse score could discard a passage
    seen = []

    def spy(*vectors):
        seen.append(torch.get_float32_matmul_precision())
        return maxsim(*vectors)

    monkeypatch.setattr(exact_module, "maxsim", spy)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            ranking = search(passages, queries, 10)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    assert set(seen) == {"highest"}
    assert_ranking(ranking, *brute_force(queries, passages, 10))


def test_search_ignores_per_backend_precision(monkeypatch):
    """PyTorch 2.9 has precision settings per backend, which exclude reading the global one."""
    if not hasattr(torch.backends.cuda.matmul, "fp32_precision"):
        pytest.skip("this PyTorch has no settings by backend")
    queries, passages = clustered(300, 10)
    backends = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)
    seen = []

    def spy(*vectors):
        seen.append([backend.fp32_precision for backend in backends])
        return maxsim(*vectors)

    monkeypatch.setattr(exact_module, "maxsim", spy)
    before = [backend.fp32_precision for backend in backends]
    try:
        for backend, setting in zip(backends, ("tf32", "bf16"), strict=True):
            backend.fp32_precision = setting
        ranking = search(passages, queries, 10)
        assert [backend.fp32_precision for backend in backends] == ["tf32", "bf16"]
    finally:
        for backend, setting in zip(backends, before, strict=True):
            backend.fp32_precision = setting
    assert seen
    assert all(settings == ["ieee", "ieee"] for settings in seen)
    assert_ranking(ranking, *brute_force(queries, passages, 10))


def test_clear_releases_passages():
    queries, passages = clustered(300, 3)
    for index in (ExactIndex(), FaissIndex("IVF8,SQ8", candidates=50), MuveraIndex("Flat", candidates=50)):
        index.build(passages)
        alive = weakref.ref(passages.vectors)
        index.search(queries, 5)
        index.clear()
        with pytest.raises(ValueError, match="call build before search"):
            index.search(queries, 5)
        assert not [v for v in vars(index).values() if isinstance(v, Embeddings)]
        passages = clustered(300, 3)[1]
        gc.collect()
        assert alive() is None


def test_tensors_that_require_grad_are_accepted():
    queries, passages = clustered(60, 5)
    expected = brute_force(queries, passages, 5)
    passages = Embeddings(passages.ids, passages.vectors.clone().requires_grad_())
    for index in (ExactIndex(), FaissIndex(candidates=20)):
        index.build(passages)
        assert_ranking(index.search(queries.clone().requires_grad_(), 5), *expected)


class LargestTensor(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple) else (result,):
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


@pytest.mark.parametrize("top_k", [10, 990])
@pytest.mark.parametrize("index", [ExactIndex(), FaissIndex(candidates=995)])
def test_search_memory_is_bounded_by_block(index, top_k):
    queries, passages = clustered(1000, 64, k=16, d=8)
    index.build(passages)
    with LargestTensor() as largest:
        index.search(queries, top_k)
    assert 0 < largest.elements <= 1 << 22 < 64 * 1000 * 16 * 16


def test_search_before_build_fails():
    with pytest.raises(ValueError, match="ExactIndex: the index is not built; call build before search"):
        ExactIndex().search(torch.zeros(1, 1, 1), 1)


@pytest.mark.parametrize(
    ("queries", "message"),
    [
        (torch.zeros(2, 4), r"\(Nq, Lq, d\).*shape \(2, 4\)"),
        (torch.zeros(2, 0, 4), r"Lq of at least 1.*\(2, 0, 4\)"),
        (torch.zeros(2, 1, 4, dtype=torch.int64), "floating-point.*torch.int64"),
        (torch.zeros(2, 1, 5), "expected queries of width 4.*got 5"),
        (torch.tensor([[[0.0] * 4], [[torch.nan] * 4]]), "1 queries are not finite, the first is query 1"),
    ],
)
def test_invalid_queries_are_rejected(queries, message):
    with pytest.raises(ValueError, match=message):
        search(embeddings(torch.zeros(3, 2, 4)), queries, 1)


def test_invalid_search_arguments_are_rejected():
    for top_k in (2.5, 0):
        with pytest.raises(ConfigError) as caught:
            search(embeddings(torch.zeros(3, 2, 4)), torch.zeros(1, 1, 4), top_k)
        assert (caught.value.code, caught.value.found) == ("top-k-too-small", top_k)
    with pytest.raises(TypeError, match=r"expected a \(Nq, Lq, d\) tensor of queries, got ndarray"):
        search(embeddings(torch.zeros(3, 2, 4)), torch.zeros(1, 1, 4).numpy(), 1)


def test_invalid_settings_are_rejected():
    with pytest.raises(ConfigError) as caught:
        ExactIndex(block=0)
    assert (caught.value.code, caught.value.key, caught.value.found) == ("index-setting-too-small", "block", 0)
    devices = {"x": "index-device-unknown", "mps": "index-device-mps"}
    if not torch.cuda.is_available():
        devices["cuda:0"] = "index-device-without-gpu"
    for device, code in devices.items():
        with pytest.raises(ConfigError) as caught:
            ExactIndex(device=device)
        assert (caught.value.code, caught.value.found) == (code, device)
