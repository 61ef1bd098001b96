"""The interface of an index: a searchable set of passages.

Every index orders its results by the MaxSim score in float64, rounded to float32, and equal scores by the lower row. Scores
computed in float32 depend in the last bit on the block shape and the number of threads, so equal passages could change
places. A float64 score changes the rounded result only if it lies within about 1e-15 of the midpoint of two float32
numbers.

Shapes: N passages of k vectors and Nq queries of Lq vectors of width d; K = top_k results per query.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from numbers import Integral
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from ret_lightning.config.targets.own_packages import import_own_packages
from ret_lightning.config.targets.renamed_keys import current_settings
from ret_lightning.errors import ConfigError, DataError
from ret_lightning.retrieval.indexes.serialization import MANIFEST, read_verified_manifest, write_saved_index
from ret_lightning.retrieval.ranking import Ranking
from ret_lightning.retrieval.store.embeddings import Embeddings

QUERY_BLOCK = 1024  # queries per block; large enough for a fast matmul


# Index classes by `index_class_name`.
KINDS: dict[str, type[Index]] = {}
_PACKAGE = __name__.partition(".")[0]


class Index(ABC):
    """A searchable set of passages.

    The constructor receives the settings and `build` the passages; `build` replaces earlier passages.

    A subclass implements `_build` and `_search`, and stores every constructor argument as an attribute of the same name.
    Subclassing registers the class, so that `load` finds it. Override `_save` and `_restore` to store the result of
    `_build`; a class that overrides neither is built again when it is loaded.

    Args:
        device: CPU or CUDA device on which scores are computed. None: the device of the passage vectors.

    Attributes:
        approximate: whether a ranking can differ from that of `ExactIndex`.
        shardable: whether each of several ranks may index only its shard of the passages, because merging the rankings of
            the shards yields the ranking of all passages.
        renamed_settings: earlier names of constructor arguments mapped to the current names, so that indexes saved by
            earlier versions can be loaded.

    Raises:
        ConfigError: if the device is unknown, is not available, or does not support float64.
    """

    approximate: ClassVar[bool] = True
    shardable: ClassVar[bool] = False
    renamed_settings: ClassVar[Mapping[str, str]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        KINDS[index_class_name(cls)] = cls

    def __init__(self, device: str | torch.device | None = None) -> None:
        try:
            self.device = None if device is None else torch.device(device)
        except RuntimeError as error:
            raise ConfigError(
                f"index: unknown device {device!r}, expected cpu, cuda or cuda:N",
                code="index-device-unknown",
                found=str(device),
            ) from error
        if self.device is not None and self.device.type == "mps":
            raise ConfigError(
                "index: device mps does not support float64, which ranking requires; use device=cpu",
                code="index-device-mps",
                found=str(device),
            )
        if self.device is not None and self.device.type == "cuda" and not torch.cuda.is_available():
            raise ConfigError(
                f"index: device {self.device} is not available to PyTorch; use device=cpu",
                code="index-device-without-gpu",
                found=str(device),
            )
        self._passages: Embeddings | None = None

    @torch.no_grad()
    def build(self, passages: Embeddings) -> None:
        """Build the index from passages. If this fails, the index keeps its earlier state.

        Args:
            passages: N ids and their (N, k, d) vectors, in memory or from an `EmbeddingStore`; not copied.

        Raises:
            TypeError: if `passages` is not an `Embeddings`.
        """
        _check_passages(passages, f"{type(self).__name__}.build")
        self._build(passages)
        self._passages = passages

    @torch.no_grad()
    def search(self, queries: Tensor, top_k: int) -> Ranking:
        """Rank the passages for each query.

        Args:
            queries: (Nq, Lq, d) floating-point tensor with finite values. d is that of the passages; Lq may differ from k.
            top_k: number of passages to return per query (K), at least 1.

        Returns:
            A `Ranking` of shape (Nq, K) on the CPU. Each row holds min(K, N) passages, unless an approximate index has its
            exact fallback turned off.

        Raises:
            ConfigError: if `top_k` is not an integer of at least 1.
            TypeError: if `queries` is not a tensor.
            ValueError: if the queries do not match the passages or are not finite, or the index is not built.
        """
        passages = self._passages
        if passages is None:
            raise ValueError(f"{type(self).__name__}: the index is not built; call build before search")
        _check_search(queries, top_k, passages.vectors.shape[2])
        rows = torch.full((len(queries), top_k), -1)
        scores = torch.full((len(queries), top_k), -torch.inf)
        found = min(top_k, len(passages))
        device = self.device or passages.vectors.device
        with _full_precision(device):
            for i in range(0, len(queries) if found else 0, QUERY_BLOCK):
                block = slice(i, i + QUERY_BLOCK)
                best_rows, best_scores = self._search(queries[block].to(device, torch.float32), found)
                rows[block, :found] = best_rows.cpu()
                scores[block, :found] = best_scores.cpu()
        return Ranking(rows, scores)

    def search_candidates(self, queries: Tensor, top_k: int) -> Ranking:
        """Search without the exact fallback for queries with too few candidates.

        Args:
            queries: (Nq, Lq, d) floating-point tensor with finite values.
            top_k: number of passages to return per query.

        Returns:
            A `Ranking` of shape (Nq, top_k). An index without a fallback returns the same ranking as `search`.
        """
        return self.search(queries, top_k)

    @property
    def _built(self) -> Embeddings:
        """The passages of the index, which `search` has checked to be built."""
        assert self._passages is not None
        return self._passages

    def clear(self) -> None:
        """Release the passages and everything that was built from them."""
        self._passages = None

    def clone(self, device: str | torch.device | None = None) -> Index:
        """Create an index of the same class and settings that is not built.

        Args:
            device: CPU or CUDA device on which scores are computed. None: the device of the passage vectors.
        """
        return create_index(index_class_name(type(self)), index_settings(self), device)

    def save(self, folder: str | Path) -> None:
        """Save the result of `build`, without the passages.

        Args:
            folder: folder to write, created if needed. An index saved there earlier is replaced once the new one is
                complete.

        Raises:
            ValueError: if the index is not built.
        """
        if self._passages is None:
            raise ValueError(f"{type(self).__name__}: the index is not built; call build before save")
        write_saved_index(Path(folder), index_class_name(type(self)), index_settings(self), self._passages, self._save)

    @staticmethod
    def load(
        folder: str | Path, passages: Embeddings, device: str | torch.device | None = None, verify: bool = True
    ) -> Index:
        """Load a saved index. It has the class of the saved index and returns the same rankings.

        A class outside this package must be imported already or be in one of the packages listed in RET_LIGHTNING_TARGETS.

        Args:
            folder: folder written by `save`.
            passages: the N passages that the index was built from, (N, k, d), in the same order; not copied. Their shape,
                their ids and a sample of their vectors are compared with the saved index.
            device: CPU or CUDA device on which scores are computed; None: the device of the passage vectors. The FAISS part
                of an index is on the CPU.
            verify: whether to compare the files with their checksums, which reads them once.

        Raises:
            DataError: if the folder holds no index, the index is corrupt or was built from other passages, or its class is
                unknown.
            TypeError: if `passages` is not an `Embeddings`.
        """
        folder = Path(folder)
        _check_passages(passages, "Index.load")
        content = read_verified_manifest(folder, passages, verify)
        _import_kind(content["kind"], folder / MANIFEST)
        try:
            index = create_index(content["kind"], content["settings"], device)
        except (ValueError, TypeError) as error:
            raise DataError(
                f"{folder / MANIFEST}: invalid settings: {error}; build the index again",
                code="saved-index-settings",
                path=folder / MANIFEST,
                reason=str(error),
            ) from None
        try:
            index._restore(folder, passages, content["state"])
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{folder / MANIFEST}: invalid state of {type(index).__name__} ({error!r}); build the index again",
                code="saved-index-state",
                path=folder / MANIFEST,
            ) from None
        index._passages = passages
        return index

    @abstractmethod
    def _build(self, passages: Embeddings) -> None:
        """Build what `_search` needs from the passages. If this raises, the index must keep its earlier state."""

    @abstractmethod
    def _search(self, queries: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
        """Return the best passages of each query.

        Args:
            queries: (Nq, Lq, d) float32 on the device of the index.
            top_k: number of passages per query, at most N.

        Returns:
            rows (Nq, top_k) int64 and scores (Nq, top_k) float32.
        """

    def _save(self, folder: Path) -> dict[str, Any]:
        """Write files with any names into an empty folder and return a JSON-serializable state."""
        return {}

    def _restore(self, folder: Path, passages: Embeddings, state: dict[str, Any]) -> None:
        """Restore the result of `_build` from the files and the state of `_save`."""
        self._build(passages)


def index_class_name(cls: type[Index]) -> str:
    """Return the name of an index class in index.json: the class name, or the dotted name outside this package."""
    return cls.__name__ if cls.__module__.partition(".")[0] == _PACKAGE else f"{cls.__module__}.{cls.__qualname__}"


def index_settings(index: Index) -> dict[str, Any]:
    """Return the constructor arguments of an index, without the device.

    Raises:
        ConfigError: if the index does not store an argument as an attribute.
    """
    parameters = inspect.signature(type(index)).parameters.values()
    names = [each.name for each in parameters if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)]
    if missing := [name for name in names if not hasattr(index, name)]:
        raise ConfigError(
            f"{type(index).__name__}: constructor argument {missing[0]} is not stored; an index that is saved must store each "
            "argument as an attribute of the same name",
            code="index-argument-not-kept",
            key=missing[0],
        )
    return {name: getattr(index, name) for name in names if name != "device"}


def create_index(kind: str, settings: dict[str, Any], device: str | torch.device | None = None) -> Index:
    """Create an index that is not built.

    Args:
        kind: name of the class as returned by `index_class_name`.
        settings: constructor arguments as returned by `index_settings`; earlier names are accepted.
        device: CPU or CUDA device on which scores are computed.

    Raises:
        ValueError: if the class is unknown.
        TypeError: if a setting is unknown.
    """
    if kind not in KINDS:
        raise ValueError(f"unknown index class {kind!r}, expected one of {', '.join(sorted(KINDS))}")
    cls = KINDS[kind]
    settings = current_settings(settings, cls.renamed_settings)
    return cls(**settings, **({"device": device} if "device" in inspect.signature(cls).parameters else {}))


def _import_kind(kind: object, file: Path) -> None:
    """Import the class of a saved index if RET_LIGHTNING_TARGETS allows it; raise DataError if it remains unknown."""
    if kind in KINDS:
        return
    module = str(kind).rpartition(".")[0]
    hint = import_own_packages([module] if module else [])
    if kind not in KINDS:
        raise DataError(
            f"{file}: unknown index class {kind}; {hint or 'index the passages again'}",
            code="saved-index-class-unknown",
            path=file,
            found=kind,
        )


def check_at_least_one(index: Index, **settings: int | None) -> None:
    """Raise ConfigError for the first setting below 1; None means automatic and is allowed."""
    for name, value in settings.items():
        if value is not None and value < 1:
            raise ConfigError(
                f"{type(index).__name__}: {name}: expected at least 1, or null for automatic, got {value}",
                code="index-setting-too-small",
                key=name,
                found=value,
            )


def _check_passages(passages: Embeddings, where: str) -> None:
    if not isinstance(passages, Embeddings):
        raise TypeError(
            f"{where}: expected Embeddings, got {type(passages).__name__}; create them with Embeddings(ids, vectors) from N "
            "ids and (N, k, d) vectors"
        )


def _check_search(queries: Tensor, top_k: int, width: int) -> None:
    if not isinstance(top_k, Integral) or top_k < 1:
        raise ConfigError(
            f"search: top_k: expected an integer of at least 1, got {top_k!r}", code="top-k-too-small", found=top_k
        )
    if not isinstance(queries, Tensor):
        raise TypeError(f"search: expected a (Nq, Lq, d) tensor of queries, got {type(queries).__name__}")
    if queries.dim() != 3 or queries.shape[1] == 0 or not queries.is_floating_point():
        raise ValueError(
            f"search: expected floating-point queries of shape (Nq, Lq, d) with Lq of at least 1, got {queries.dtype} "
            f"of shape {tuple(queries.shape)}"
        )
    if queries.shape[2] != width:
        raise ValueError(f"search: expected queries of width {width}, as the passages, got {queries.shape[2]}")
    broken = ~torch.isfinite(queries).flatten(1).all(dim=1)
    if broken.any():
        raise ValueError(
            f"search: {int(broken.sum())} queries are not finite, the first is query {int(broken.nonzero()[0])}"
        )


@contextmanager
def _full_precision(device: torch.device) -> Iterator[None]:
    """Disable TF32, autocast and reduced-precision accumulation within the context."""
    half = torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
    try:
        with _highest_float32(), torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = half


@contextmanager
def _highest_float32() -> Iterator[None]:
    try:
        before = torch.get_float32_matmul_precision()
    except RuntimeError:  # the caller uses the per-backend settings of PyTorch 2.9, which exclude the global one
        backends = (torch.backends.cuda.matmul, cast(Any, torch.backends.mkldnn).matmul)
        settings = [backend.fp32_precision for backend in backends]
        for backend in backends:
            backend.fp32_precision = "ieee"
        try:
            yield
        finally:
            for backend, setting in zip(backends, settings, strict=True):
                backend.fp32_precision = setting
        return
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
