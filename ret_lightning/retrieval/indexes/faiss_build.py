"""A FAISS index of a factory string, trained on a part of the pool and filled block by block, without a copy of the pool."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ret_lightning.errors import ConfigError
from ret_lightning.retrieval.indexes.faiss_defaults import automatic_nprobe
from ret_lightning.retrieval.store.embeddings import Embeddings
from ret_lightning.runtime.progress import progress_bar

if TYPE_CHECKING:
    import faiss

PASSAGES_PER_BLOCK = 2048
# Rounds of k-means for codes. FAISS's 25 take two and a half times as long, for candidates that are the same to 0.001.
PQ_ITERATIONS, PQ_POINTS_PER_CENTROID = 10, 64

MAX_GPU_HITS = 2048  # FAISS's limit

# On a command line a comma means a sweep, unless the value is in quotes of its own.
FACTORY_EXAMPLES = (
    "for example 'Flat', 'IVF64,Flat', 'IVF64,SQfp16', 'IVF64,PQ16' or 'HNSW32' "
    "(with a comma, on a command line: 'retrieval.factory=\"IVF64,Flat\"')"
)


@dataclass(frozen=True)
class FaissSpec:
    """What to build.

    Attributes:
        name: of the index class, for messages.
        factory: FAISS index factory string, its places filled in.
        nprobe: inverted lists to search; None for automatic.
        training_points: vectors to train on.
        seed: of the choice of these and of k-means.
        gpu: whether to use a GPU; None: if the device is one and FAISS was built for it.
    """

    name: str
    factory: str
    nprobe: int | None
    training_points: int
    seed: int
    gpu: bool | None


def build_faiss(
    spec: FaissSpec, passages: Embeddings, width: int, per_passage: int, encode: Callable[[Tensor], Tensor], device
) -> faiss.Index:
    """Trains and fills an index for inner products.

    Args:
        spec: see `FaissSpec`.
        passages: the pool.
        width: of what is indexed.
        per_passage: how many vectors are indexed of each passage.
        encode: (n, k, d) vectors of the pool -> (n * per_passage, width) float32, on the CPU.
        device: the one that the index's scores are made on.

    Raises:
        ConfigError: if FAISS refuses the factory string, or the pool has too few vectors for it.
    """
    import faiss

    count = len(passages) * per_passage
    shape = f"{len(passages)} passages x {per_passage} vectors"
    try:
        index = faiss.index_factory(width, spec.factory, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        raise ConfigError(
            f"{spec.name}: FAISS has no index {spec.factory!r} for vectors of width {width} and inner products "
            f"({_reason(error)}); choose {FACTORY_EXAMPLES}",
            code="faiss-factory-unknown",
            found=spec.factory,
            width=width,
        ) from None
    ivf = faiss.try_extract_index_ivf(index)
    if ivf is None and spec.nprobe is not None:
        raise ConfigError(
            f"{spec.name}: nprobe={spec.nprobe} needs inverted lists, and {spec.factory!r} has none; leave it "
            "out, or use an IVF factory such as 'IVF64,Flat'",
            code="faiss-nprobe-without-ivf",
            found=spec.nprobe,
            factory=spec.factory,
        )
    if ivf is not None and not 1 <= ivf.nlist <= count:
        raise ConfigError(
            f"{spec.name}: {spec.factory!r} has nlist={ivf.nlist}, and the pool {count} vectors ({shape}); "
            f"use nlist=1 to {count}, or 'Flat'",
            code="faiss-nlist-too-large",
            found=ivf.nlist,
            most=count,
        )
    _prepare(faiss, index, spec)
    try:
        with _single_threaded(faiss, spec.factory):
            if not index.is_trained:
                index.train(_training_points(spec, passages, per_passage, encode))
            index = _on_gpu(faiss, index, spec, device)
            starts = range(0, len(passages), PASSAGES_PER_BLOCK)
            for start in progress_bar(starts, desc=f"index {spec.factory}", unit="block", delay=5, leave=False):
                index.add(encode(passages.vectors[start : start + PASSAGES_PER_BLOCK]).numpy())
                passages.release()
    except RuntimeError as error:
        raise ConfigError(
            f"{spec.name}: {spec.factory!r} cannot be built from {count} vectors of width {width} ({shape}): "
            f"{_reason(error)}; choose {FACTORY_EXAMPLES}",
            code="faiss-index-not-built",
            factory=spec.factory,
            vectors=count,
            width=width,
        ) from None
    return index


def _prepare(faiss, index: faiss.Index, spec: FaissSpec) -> None:
    """Set seeds, nprobe and the length of training; all training points are used, without a warning if they are few."""
    ivf = faiss.try_extract_index_ivf(index)
    if ivf is not None:
        ivf = faiss.downcast_index(ivf)
        ivf.nprobe = min(spec.nprobe or automatic_nprobe(ivf.nlist), ivf.nlist)
        ivf.cp.min_points_per_centroid, ivf.cp.max_points_per_centroid = 1, max(1, spec.training_points)
        ivf.cp.seed = spec.seed
    for holder in (index, ivf):
        quantizer = getattr(holder, "pq", None)
        if quantizer is not None:
            quantizer.cp.niter, quantizer.cp.max_points_per_centroid = PQ_ITERATIONS, PQ_POINTS_PER_CENTROID
            quantizer.cp.min_points_per_centroid = 1
            quantizer.cp.seed = spec.seed
            if hasattr(
                holder, "do_polysemous_training"
            ):  # it numbers centroids for a kind of search that is not used here
                holder.do_polysemous_training = False


def _training_points(spec: FaissSpec, passages: Embeddings, per_passage: int, encode: Callable[[Tensor], Tensor]):
    """The encoded vectors of randomly sampled passages: `spec.training_points`, rounded up to whole passages."""
    wanted = min(len(passages), -(-spec.training_points // per_passage))
    drawn = torch.randperm(len(passages), generator=torch.Generator().manual_seed(spec.seed))[:wanted]
    places = drawn.sort().values
    return torch.cat([encode(passages.take(block)) for block in places.split(PASSAGES_PER_BLOCK)]).numpy()


def uses_gpu(gpu: bool | None, device: torch.device) -> bool:
    """Whether FAISS is to use a GPU.

    Args:
        gpu: true, false, or None: where `device` is one.
        device: the one that the index's scores are made on.

    Raises:
        ConfigError: if it must, and cannot.
    """
    import faiss

    gpus = faiss.get_num_gpus() if hasattr(faiss, "StandardGpuResources") else 0
    if gpu and not gpus:
        raise ConfigError(
            "index: gpu=true, and this FAISS has no GPU; install faiss-gpu in place of faiss-cpu, or leave gpu out",
            code="faiss-without-gpu",
        )
    return bool(gpus) and (device.type == "cuda" if gpu is None else gpu)


def is_on_gpu(index: object) -> bool:
    """Whether a FAISS index, or what stands behind its transforms (as of OPQ), is on a GPU."""
    import faiss

    while isinstance(index, faiss.IndexPreTransform):
        index = faiss.downcast_index(index.index)
    return type(index).__name__.startswith("GpuIndex")


def _on_gpu(faiss, index: faiss.Index, spec: FaissSpec, device: torch.device) -> faiss.Index:
    """The index on the GPU of `device`, where that is wanted and can be."""
    if not uses_gpu(spec.gpu, device):
        return index
    number = device.index if device.type == "cuda" else None
    if number is None:  # the one that this process, a rank of several, works with
        number = torch.cuda.current_device() if torch.cuda.is_available() else 0
    try:
        return faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), number, index)
    except RuntimeError as error:
        if spec.gpu:
            raise ConfigError(
                f"{spec.name}: FAISS cannot have {spec.factory!r} on a GPU ({_reason(error)}); leave gpu out",
                code="faiss-not-on-gpu",
                factory=spec.factory,
            ) from None
        return index  # graphs and 4-bit codes are for CPUs only


@contextmanager
def _single_threaded(faiss, factory: str) -> Iterator[None]:
    """Graphs (HNSW, NSG) come out differently each time that several threads add to them."""
    threads = faiss.omp_get_max_threads()
    if re.search("HNSW|NSG", factory):
        faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(threads)


def _reason(error: RuntimeError) -> str:
    """FAISS's message without the C++ function and source line in front of it."""
    return re.sub(r"^Error in .* at \S+:\d+: ", "", str(error), flags=re.DOTALL).strip()
