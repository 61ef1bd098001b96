"""Build a FAISS index from a factory string: train it on a sample of the passages and add all of them block by block.

Shapes: N passages of k vectors of width d.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ret_lightning.errors import ConfigError
from ret_lightning.retrieval.indexes.faiss_defaults import automatic_nprobe
from ret_lightning.retrieval.store.embeddings import Embeddings
from ret_lightning.runtime.progress import progress_bar

if TYPE_CHECKING:
    import faiss

PASSAGES_PER_BLOCK = 2048
# k-means iterations and training points per centroid of a product quantizer; fewer than the FAISS defaults of 25 and 256.
PQ_ITERATIONS, PQ_POINTS_PER_CENTROID = 10, 64

MAX_GPU_HITS = 2048  # limit of FAISS

# Hydra parses an unquoted comma on the command line as a sweep.
FACTORY_EXAMPLES = (
    "for example 'Flat', 'IVF64,Flat', 'IVF64,SQfp16', 'IVF64,PQ16' or 'HNSW32' "
    "(quote a value with a comma on the command line: 'retrieval.factory=\"IVF64,Flat\"')"
)


@dataclass(frozen=True)
class FaissSpec:
    """Specification of a FAISS index.

    Attributes:
        name: name of the index class, for error messages.
        factory: FAISS index factory string without placeholders.
        nprobe: number of inverted lists to search; None for automatic.
        training_points: number of vectors to train on.
        seed: seed of the sampling of training points and of k-means.
        gpu: whether to use a GPU. None: if the device is a GPU and FAISS supports GPUs.
    """

    name: str
    factory: str
    nprobe: int | None
    training_points: int
    seed: int
    gpu: bool | None


def build_faiss(
    spec: FaissSpec,
    passages: Embeddings,
    width: int,
    per_passage: int,
    encode: Callable[[Tensor], Tensor],
    device: torch.device,
) -> faiss.Index:
    """Train and fill a FAISS index for inner products.

    Args:
        spec: specification of the index.
        passages: the N passages.
        width: width of the indexed vectors.
        per_passage: number of indexed vectors per passage.
        encode: maps (n, k, d) passage vectors to (n * per_passage, width) float32 vectors on the CPU.
        device: device on which the index computes exact scores.

    Returns:
        The FAISS index, on a GPU if `spec` and `device` allow it.

    Raises:
        ConfigError: if FAISS rejects the factory string, a setting does not apply to it, or there are too few vectors for
            it.
    """
    import faiss

    count = len(passages) * per_passage
    shape = f"{len(passages)} passages x {per_passage} vectors"
    try:
        index = faiss.index_factory(width, spec.factory, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        raise ConfigError(
            f"{spec.name}: factory {spec.factory!r} is not a FAISS index for inner products of vectors of width {width} "
            f"({_clean_message(error)}); choose {FACTORY_EXAMPLES}",
            code="faiss-factory-unknown",
            found=spec.factory,
            width=width,
            reason=_clean_message(error),
        ) from None
    ivf = faiss.try_extract_index_ivf(index)
    if ivf is None and spec.nprobe is not None:
        raise ConfigError(
            f"{spec.name}: nprobe={spec.nprobe} requires inverted lists, which factory {spec.factory!r} does not have; remove "
            "nprobe, or use an IVF factory such as 'IVF64,Flat'",
            code="faiss-nprobe-without-ivf",
            found=spec.nprobe,
            factory=spec.factory,
        )
    if ivf is not None and not 1 <= ivf.nlist <= count:
        raise ConfigError(
            f"{spec.name}: factory {spec.factory!r} has nlist={ivf.nlist}, expected 1 to {count}, the number of vectors "
            f"({shape}); lower nlist, or use 'Flat'",
            code="faiss-nlist-too-large",
            found=ivf.nlist,
            most=count,
        )
    _configure(faiss, index, spec)
    try:
        with _single_threaded(faiss, spec.factory):
            if not index.is_trained:
                index.train(_sample_training_points(spec, passages, per_passage, encode))
            index = _move_to_gpu(faiss, index, spec, device)
            starts = range(0, len(passages), PASSAGES_PER_BLOCK)
            for start in progress_bar(starts, desc=f"index {spec.factory}", unit="block", delay=5, leave=False):
                index.add(encode(passages.vectors[start : start + PASSAGES_PER_BLOCK]).numpy())
                passages.release()
    except RuntimeError as error:
        raise ConfigError(
            f"{spec.name}: FAISS cannot build {spec.factory!r} from {count} vectors of width {width} ({shape}): "
            f"{_clean_message(error)}; choose {FACTORY_EXAMPLES}",
            code="faiss-index-not-built",
            factory=spec.factory,
            vectors=count,
            width=width,
            reason=_clean_message(error),
        ) from None
    return index


def _configure(faiss: Any, index: faiss.Index, spec: FaissSpec) -> None:
    """Set seeds, nprobe and training parameters; all training points are used, without a warning if they are few."""
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
            if hasattr(holder, "do_polysemous_training"):  # slow, and only used by polysemous search
                holder.do_polysemous_training = False


def _sample_training_points(
    spec: FaissSpec, passages: Embeddings, per_passage: int, encode: Callable[[Tensor], Tensor]
) -> np.ndarray:
    """Encode randomly sampled passages: `spec.training_points` vectors, rounded up to whole passages."""
    size = min(len(passages), -(-spec.training_points // per_passage))
    sampled = torch.randperm(len(passages), generator=torch.Generator().manual_seed(spec.seed))[:size]
    rows = sampled.sort().values
    return torch.cat([encode(passages.take(block)) for block in rows.split(PASSAGES_PER_BLOCK)]).numpy()


def uses_gpu(gpu: bool | None, device: torch.device) -> bool:
    """Return whether FAISS uses a GPU.

    Args:
        gpu: True, False, or None for "if `device` is a GPU".
        device: device on which the index computes exact scores.

    Raises:
        ConfigError: if `gpu` is True and FAISS finds no GPU.
    """
    import faiss

    gpus = faiss.get_num_gpus() if hasattr(faiss, "StandardGpuResources") else 0
    if gpu and not gpus:
        raise ConfigError(
            "index: gpu=true, but FAISS finds no GPU; install faiss-gpu on a machine with a GPU, or remove gpu",
            code="faiss-without-gpu",
        )
    return bool(gpus) and (device.type == "cuda" if gpu is None else gpu)


def is_on_gpu(index: object) -> bool:
    """Return whether a FAISS index, or the index behind its transforms (such as OPQ), is on a GPU."""
    import faiss

    while isinstance(index, faiss.IndexPreTransform):
        index = faiss.downcast_index(index.index)
    return type(index).__name__.startswith("GpuIndex")


def _move_to_gpu(faiss: Any, index: faiss.Index, spec: FaissSpec, device: torch.device) -> faiss.Index:
    """Move the index to the GPU of `device` if the specification allows it and FAISS supports it."""
    if not uses_gpu(spec.gpu, device):
        return index
    number = device.index if device.type == "cuda" else None
    if number is None:  # the current device of this rank
        number = torch.cuda.current_device() if torch.cuda.is_available() else 0
    try:
        return faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), number, index)
    except RuntimeError as error:
        if spec.gpu:
            reason = _clean_message(error)
            raise ConfigError(
                f"{spec.name}: gpu=true, but FAISS has no GPU index for factory {spec.factory!r} ({reason}); set gpu=false",
                code="faiss-not-on-gpu",
                factory=spec.factory,
                reason=reason,
            ) from None
        return index  # FAISS supports graphs and 4-bit codes on CPUs only


@contextmanager
def _single_threaded(faiss: Any, factory: str) -> Iterator[None]:
    """Build graphs (HNSW, NSG) with one thread; with several threads the graph differs between builds."""
    threads = faiss.omp_get_max_threads()
    if re.search("HNSW|NSG", factory):
        faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(threads)


def _clean_message(error: RuntimeError) -> str:
    """Return the message of FAISS without its C++ function and source line."""
    return re.sub(r"^Error in .* at \S+:\d+: ", "", str(error), flags=re.DOTALL).strip()
