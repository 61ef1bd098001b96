"""FAISS indexes from factory strings: settings, training points and devices."""

from __future__ import annotations

import faiss
import pytest
import torch

from ret_lightning.errors import ConfigError
from ret_lightning.retrieval import FaissIndex
from ret_lightning.retrieval.indexes import faiss_index as faiss_module
from ret_lightning.retrieval.indexes.faiss_build import is_on_gpu, uses_gpu
from tests.support.random_pools import clustered


def test_settings_are_passed_to_faiss():
    _, passages = clustered(1300, 1)
    index = FaissIndex("IVF{nlist},{pq}", nlist=50, nprobe=7, m=4, nbits=6, training_points=5000)
    index.build(passages)
    ivf = faiss.downcast_index(index._faiss)
    assert (ivf.nlist, ivf.nprobe, ivf.pq.M, ivf.pq.nbits) == (50, 7, 4, 6)
    index = FaissIndex("HNSW{M}_SQ8", M=8)
    index.build(passages)
    assert index._faiss.hnsw.nb_neighbors(1) == 8
    index = FaissIndex("IVF{nlist},{pq}")
    index.build(passages)
    assert isinstance(faiss.downcast_index(index._faiss), faiss.IndexIVFPQFastScan)


def test_seed_determines_training_points():
    _, passages = clustered(1300, 1)

    def centroids(seed: int):
        index = FaissIndex("IVF16,SQ8", training_points=500, seed=seed)
        index.build(passages)
        return faiss.downcast_index(index._faiss).quantizer.reconstruct_n(0, 16).tolist()

    assert centroids(0) == centroids(0) != centroids(1)


@pytest.mark.parametrize("factory", ["IVF8,PQ4x5", "PQ4x5", "OPQ4,IVF8,PQ4x5"])
def test_polysemous_training_is_disabled(factory):
    """The FAISS factory enables it, which makes training many times slower."""
    index = FaissIndex(factory)
    index.build(clustered(400, 1)[1])
    own = faiss.try_extract_index_ivf(index._faiss)
    own = faiss.downcast_index(own if own is not None else index._faiss)
    assert not own.do_polysemous_training
    assert faiss.index_factory(32, "IVF8,PQ4x5").do_polysemous_training


@pytest.mark.parametrize(
    ("gpu", "device", "gpus", "expected"),
    [
        (None, "cpu", 2, False),
        (None, "cuda", 2, True),
        (None, "cuda", 0, False),
        (True, "cpu", 1, True),
        (False, "cuda", 1, False),
    ],
)
def test_code_layout_follows_faiss_device(gpu, device, gpus, expected, monkeypatch):
    """With faiss-cpu and a model on a GPU, codes use the layout for CPUs."""
    monkeypatch.setattr(faiss, "StandardGpuResources", object, raising=False)
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    specs = []
    monkeypatch.setattr(faiss_module, "build_faiss", lambda spec, *_: specs.append(spec))
    FaissIndex("IVF{nlist},{pq}", gpu=gpu, device=device)._build_proposals(clustered(2000, 1, k=8)[1])
    assert uses_gpu(gpu, torch.device(device)) is expected
    assert specs[0].factory.endswith("PQ8x8" if expected else "PQ16x4fs")


@pytest.mark.parametrize(("device", "number"), [("cuda", 3), ("cuda:1", 1)])
def test_rank_builds_on_its_gpu(device, number, monkeypatch):
    used = []
    monkeypatch.setattr(faiss, "StandardGpuResources", object, raising=False)
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 4)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    monkeypatch.setattr(faiss, "index_cpu_to_gpu", lambda _, at, index: used.append(at) or index, raising=False)
    FaissIndex("IVF16,SQ8", device=device)._build_proposals(clustered(300, 1)[1])
    assert used == [number]


def test_is_on_gpu_looks_behind_transforms(monkeypatch):
    class GpuIndexFlat:
        pass

    inner = faiss.index_factory(32, "OPQ8,IVF4,Flat")
    assert isinstance(inner, faiss.IndexPreTransform)
    assert not is_on_gpu(inner)
    assert not is_on_gpu(faiss.IndexFlatIP(4))
    assert is_on_gpu(GpuIndexFlat())
    monkeypatch.setattr(faiss, "downcast_index", lambda index: GpuIndexFlat())
    assert is_on_gpu(inner)


def test_gpu_without_faiss_gpu_is_rejected():
    with pytest.raises(ConfigError) as caught:
        FaissIndex("IVF16,SQ8", gpu=True).build(clustered(300, 1)[1])
    assert caught.value.code == "faiss-without-gpu"


@pytest.mark.parametrize("gpu", [True, None])
def test_index_without_gpu_version_is_rejected_if_gpu_is_set(gpu, monkeypatch):
    def fail(*_):
        raise RuntimeError("This index type is not implemented on GPU.")

    monkeypatch.setattr(faiss, "StandardGpuResources", object, raising=False)
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 1)
    monkeypatch.setattr(faiss, "index_cpu_to_gpu", fail, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    index = FaissIndex("HNSW8_SQ8", gpu=gpu, device="cuda:0")
    if gpu is None:
        index._build_proposals(clustered(300, 1)[1])
        assert not is_on_gpu(index._faiss)
        return
    with pytest.raises(ConfigError) as caught:
        index._build_proposals(clustered(300, 1)[1])
    assert (caught.value.code, caught.value.factory) == ("faiss-not-on-gpu", "HNSW8_SQ8")
    assert "not implemented on GPU" in caught.value.reason
