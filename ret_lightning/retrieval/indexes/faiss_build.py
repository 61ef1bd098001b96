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

PASSAGES_A_BLOCK = 2048
# Rounds of k-means for codes. FAISS's 25 take two and a half times as long, for candidates that are the same to 0.001.
CODE_ROUNDS, CODE_POINTS = 10, 64

MOST_HITS_ON_A_GPU = 2048  # FAISS's limit

# On a command line a comma means a sweep, unless the value is in quotes of its own.
FACTORY_EXAMPLES = (
    "for example 'Flat', 'IVF64,Flat', 'IVF64,SQfp16', 'IVF64,PQ16' or 'HNSW32' "
    "(with a comma, on a command line: 'retrieval.factory=\"IVF64,Flat\"')"
)


@dataclass(frozen=True)
class Recipe:
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
    recipe: Recipe, passages: Embeddings, width: int, per_passage: int, encode: Callable[[Tensor], Tensor], device
) -> faiss.Index:
    """Trains and fills an index for inner products.

    Args:
        recipe: see `Recipe`.
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
        index = faiss.index_factory(width, recipe.factory, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        raise ConfigError(
            f"{recipe.name}: FAISS has no index {recipe.factory!r} for vectors of width {width} and inner products "
            f"({_reason(error)}); choose {FACTORY_EXAMPLES}",
            code="faiss-factory-unknown",
            found=recipe.factory,
            width=width,
        ) from None
    ivf = faiss.try_extract_index_ivf(index)
    if ivf is None and recipe.nprobe is not None:
        raise ConfigError(
            f"{recipe.name}: nprobe={recipe.nprobe} needs inverted lists, and {recipe.factory!r} has none; leave it "
            "out, or use an IVF factory such as 'IVF64,Flat'",
            code="faiss-probes-without-cells",
            found=recipe.nprobe,
            factory=recipe.factory,
        )
    if ivf is not None and not 1 <= ivf.nlist <= count:
        raise ConfigError(
            f"{recipe.name}: {recipe.factory!r} has nlist={ivf.nlist}, and the pool {count} vectors ({shape}); "
            f"use nlist=1 to {count}, or 'Flat'",
            code="faiss-cells-too-many",
            found=ivf.nlist,
            most=count,
        )
    _prepare(faiss, index, recipe)
    try:
        with _one_thread(faiss, recipe.factory):
            if not index.is_trained:
                index.train(_training_points(recipe, passages, per_passage, encode))
            index = _on_gpu(faiss, index, recipe, device)
            starts = range(0, len(passages), PASSAGES_A_BLOCK)
            for start in progress_bar(starts, desc=f"index {recipe.factory}", unit="block", delay=5, leave=False):
                index.add(encode(passages.vectors[start : start + PASSAGES_A_BLOCK]).numpy())
                passages.release()
    except RuntimeError as error:
        raise ConfigError(
            f"{recipe.name}: {recipe.factory!r} cannot be built from {count} vectors of width {width} ({shape}): "
            f"{_reason(error)}; choose {FACTORY_EXAMPLES}",
            code="faiss-index-not-built",
            factory=recipe.factory,
            vectors=count,
            width=width,
        ) from None
    return index


def _prepare(faiss, index: faiss.Index, recipe: Recipe) -> None:
    """Set seeds, nprobe and the length of training; all training points are used, without a warning if they are few."""
    ivf = faiss.try_extract_index_ivf(index)
    if ivf is not None:
        ivf = faiss.downcast_index(ivf)
        ivf.nprobe = min(recipe.nprobe or automatic_nprobe(ivf.nlist), ivf.nlist)
        ivf.cp.min_points_per_centroid, ivf.cp.max_points_per_centroid = 1, max(1, recipe.training_points)
        ivf.cp.seed = recipe.seed
    for holder in (index, ivf):
        quantizer = getattr(holder, "pq", None)
        if quantizer is not None:
            quantizer.cp.niter, quantizer.cp.max_points_per_centroid = CODE_ROUNDS, CODE_POINTS
            quantizer.cp.min_points_per_centroid = 1
            quantizer.cp.seed = recipe.seed
            if hasattr(
                holder, "do_polysemous_training"
            ):  # it numbers centroids for a kind of search that is not used here
                holder.do_polysemous_training = False


def _training_points(recipe: Recipe, passages: Embeddings, per_passage: int, encode: Callable[[Tensor], Tensor]):
    """The encoded vectors of randomly sampled passages: `recipe.training_points`, rounded up to whole passages."""
    wanted = min(len(passages), -(-recipe.training_points // per_passage))
    drawn = torch.randperm(len(passages), generator=torch.Generator().manual_seed(recipe.seed))[:wanted]
    places = drawn.sort().values
    return torch.cat([encode(passages.take(block)) for block in places.split(PASSAGES_A_BLOCK)]).numpy()


def goes_on_gpu(gpu: bool | None, device: torch.device) -> bool:
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


def _on_gpu(faiss, index: faiss.Index, recipe: Recipe, device: torch.device) -> faiss.Index:
    """The index on the GPU of `device`, where that is wanted and can be."""
    if not goes_on_gpu(recipe.gpu, device):
        return index
    number = device.index if device.type == "cuda" else None
    if number is None:  # the one that this process, a rank of several, works with
        number = torch.cuda.current_device() if torch.cuda.is_available() else 0
    try:
        return faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), number, index)
    except RuntimeError as error:
        if recipe.gpu:
            raise ConfigError(
                f"{recipe.name}: FAISS cannot have {recipe.factory!r} on a GPU ({_reason(error)}); leave gpu out",
                code="faiss-not-on-gpu",
                factory=recipe.factory,
            ) from None
        return index  # graphs and 4-bit codes are for CPUs only


@contextmanager
def _one_thread(faiss, factory: str) -> Iterator[None]:
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
