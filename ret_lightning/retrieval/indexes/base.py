"""The interface of every index: a pool of passages that can be searched.

All indexes put their results in the same order: by MaxSim in float64, rounded to float32, equal scores by the lower row.
Float32 arithmetic alone would not do: its last bit changes with the shape of a block and the number of threads, so that
equal passages would change places. With float64 a score changes only where its sum lies within about 1e-15 of the border
between two float32 numbers, and equal passages tie.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from numbers import Integral
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from ret_lightning.config.targets.own_packages import import_own_packages
from ret_lightning.config.targets.renamed_keys import current_settings
from ret_lightning.errors import ConfigError, DataError
from ret_lightning.retrieval.indexes.serialization import MANIFEST, read_verified_manifest, write_saved_index
from ret_lightning.retrieval.ranking import Ranking
from ret_lightning.retrieval.store.embeddings import Embeddings

QUERY_BLOCK = 1024  # queries at a time: enough to be at the full speed of a matrix product


# Index classes by the name that index.json has of them: the class's own, and outside this package its dotted name.
KINDS: dict[str, type[Index]] = {}
_PACKAGE = __name__.partition(".")[0]


class Index(ABC):
    """A searchable pool. Settings go into the constructor, a pool into `build`; building again replaces the pool.

    A subclass implements `_build` and `_search`, and keeps every argument of its constructor as an attribute of the same name.
    Subclassing registers the class, so that `load` finds it. What `_build` made is stored by `_save` and restored by
    `_restore`; a class that overrides neither is built again when it is loaded.

    Args:
        device: where scores are computed, a CPU or a CUDA device; None for the device that the pool's vectors are on.

    Attributes:
        approximate: whether a ranking can differ from `ExactIndex`'s.
        shardable: whether each of several ranks may build the index of its own shard of the pool only, because the merged
            rankings of the shards are the ranking of the pool.
        renamed_settings: earlier names of the constructor's arguments, each with today's, so that indexes saved by earlier
            versions can be loaded.

    Raises:
        ConfigError: if the device is not available, or has no float64, which passages are ordered in.
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
                f"index: there is no device {device!r}; name cpu, cuda or cuda:0",
                code="index-device-unknown",
                found=str(device),
            ) from error
        if self.device is not None and self.device.type == "mps":
            raise ConfigError(
                "index: device mps has no float64, which the order of passages needs; use device=cpu",
                code="index-device-mps",
                found=str(device),
            )
        if self.device is not None and self.device.type == "cuda" and not torch.cuda.is_available():
            raise ConfigError(
                f"index: device {self.device}: there is no GPU here that PyTorch can use; use device=cpu",
                code="index-device-without-gpu",
                found=str(device),
            )
        self._passages: Embeddings | None = None

    @torch.no_grad()
    def build(self, passages: Embeddings) -> None:
        """Makes the index of these passages; if that fails, the index stays what it was.

        Args:
            passages: N ids and their (N, k, d) vectors, in memory or of an `EmbeddingStore`; kept, not copied.

        Raises:
            TypeError: on a tensor and whatever else is no `Embeddings`.
        """
        _check_passages(passages, f"{type(self).__name__}.build")
        self._build(passages)
        self._passages = passages

    @torch.no_grad()
    def search(self, queries: Tensor, top_k: int) -> Ranking:
        """Ranks the pool for each query.

        Args:
            queries: (Nq, Lq, d), floating point, finite; d as in the pool, Lq may differ from the passages' k.
            top_k: K, how many passages to return for each query.

        Returns:
            A `Ranking` of shape (Nq, K) on the CPU. It is full, min(K, N) passages per query, unless an approximate index
            has its exact fallback turned off.

        Raises:
            ConfigError: if `top_k` is no whole number above 0.
            TypeError: if queries are no tensor.
            ValueError: on queries that do not fit the pool, or before `build`.
        """
        passages = self._passages
        if passages is None:
            raise ValueError(f"{type(self).__name__}: build the index before searching it")
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
        """`search` without an exact fallback for queries with too few candidates, where the index has one."""
        return self.search(queries, top_k)

    def clear(self) -> None:
        """Release the pool, and what was built of it."""
        self._passages = None

    def clone(self, device: str | torch.device | None = None) -> Index:
        """A new index of the same class and settings, not built; `device` as in the constructor."""
        return create_index(index_class_name(type(self)), index_settings(self), device)

    def save(self, folder: str | Path) -> None:
        """Write what `build` made, without the passages.

        Args:
            folder: created if needed; a saved index in it is replaced once the new one is complete.

        Raises:
            ValueError: before `build`.
        """
        if self._passages is None:
            raise ValueError(f"{type(self).__name__}: build the index before saving it")
        write_saved_index(Path(folder), index_class_name(type(self)), index_settings(self), self._passages, self._save)

    @staticmethod
    def load(
        folder: str | Path, passages: Embeddings, device: str | torch.device | None = None, verify: bool = True
    ) -> Index:
        """Load a saved index; it is of the class that was saved, and ranks as the saved one does.

        A class outside this package is found if it is imported, or in one of the packages in RET_LIGHTNING_TARGETS.

        Args:
            folder: that `save` wrote.
            passages: the N passages that it was built of, (N, k, d), in the same order; kept, not copied. Their shape, ids
                and a few dozen of their vectors are compared with those; of an `EmbeddingStore` no more is read by loading.
            device: see `Index`; a FAISS index is on the CPU.
            verify: compares the files with their checksums, which reads them once more.

        Raises:
            DataError: if there is no index, it is torn, of other passages, or of a class that cannot be found.
            TypeError: as `build`.
        """
        folder = Path(folder)
        _check_passages(passages, "Index.load")
        content = read_verified_manifest(folder, passages, verify)
        _import_kind(content["kind"], folder / MANIFEST)
        try:
            index = create_index(content["kind"], content["settings"], device)
        except (ValueError, TypeError) as error:
            raise DataError(
                f"{folder / MANIFEST}: {error}; build the index again",
                code="saved-index-settings",
                path=folder / MANIFEST,
            ) from None
        try:
            index._restore(folder, passages, content["state"])
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{folder / MANIFEST}: its state is not that of a {type(index).__name__} ({error!r}); build the "
                "index again",
                code="saved-index-state",
                path=folder / MANIFEST,
            ) from None
        index._passages = passages
        return index

    @abstractmethod
    def _build(self, passages: Embeddings) -> None:
        """Make what `_search` needs of the passages; if it raises, the index must be what it was."""

    @abstractmethod
    def _search(self, queries: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
        """Queries on the index's device, top_k at most N -> rows (Nq, top_k) int64, scores (Nq, top_k) float32."""

    def _save(self, folder: Path) -> dict[str, Any]:
        """Write files of any name into an empty folder, and return what JSON can store."""
        return {}

    def _restore(self, folder: Path, passages: Embeddings, state: dict[str, Any]) -> None:
        """Restore what `_build` made from the files and the state of `_save`."""
        self._build(passages)


def index_class_name(cls: type[Index]) -> str:
    """The name of a class in index.json."""
    return cls.__name__ if cls.__module__.partition(".")[0] == _PACKAGE else f"{cls.__module__}.{cls.__qualname__}"


def index_settings(index: Index) -> dict[str, Any]:
    """The constructor's arguments, but for the device, which belongs to the machine.

    Raises:
        ConfigError: if the index does not keep one of them.
    """
    parameters = inspect.signature(type(index)).parameters.values()
    names = [each.name for each in parameters if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)]
    if missing := [name for name in names if not hasattr(index, name)]:
        raise ConfigError(
            f"{type(index).__name__}: its constructor must keep the argument {missing[0]} as an attribute of that name, "
            "so that the index can be saved",
            code="index-argument-not-kept",
            key=missing[0],
        )
    return {name: getattr(index, name) for name in names if name != "device"}


def create_index(kind: str, settings: dict[str, Any], device: str | torch.device | None = None) -> Index:
    """A new index, not built, of a kind and with the settings of `index_settings`.

    Raises:
        ValueError, TypeError: on another kind or unknown settings.
    """
    if kind not in KINDS:
        raise ValueError(f"index kind {kind!r} is not known, only {', '.join(sorted(KINDS))}")
    cls = KINDS[kind]
    settings = current_settings(settings, cls.renamed_settings)
    return cls(**settings, **({"device": device} if "device" in inspect.signature(cls).parameters else {}))


def _import_kind(kind: Any, file: Path) -> None:
    """Import the class of a saved index where RET_LIGHTNING_TARGETS allows it; raises DataError if it remains unknown."""
    if kind in KINDS:
        return
    module = str(kind).rpartition(".")[0]
    hint = import_own_packages([module] if module else [])
    if kind not in KINDS:
        raise DataError(
            f"{file}: no index class is called {kind}; {hint or 'index the passages again'}",
            code="saved-index-class-unknown",
            path=file,
            found=kind,
        )


def check_at_least_one(index: Index, **settings: int | None) -> None:
    """Raises ConfigError for the first setting below 1; None is automatic."""
    for name, value in settings.items():
        if value is not None and value < 1:
            raise ConfigError(
                f"{type(index).__name__}: {name} must be at least 1, or null for automatic; got {value}",
                code="index-setting-too-small",
                key=name,
                found=value,
            )


def _check_passages(passages: Embeddings, where: str) -> None:
    if not isinstance(passages, Embeddings):
        raise TypeError(
            f"{where}: passages must be Embeddings, got {type(passages).__name__}; Embeddings(ids, vectors) makes them of N "
            "ids and (N, k, d) vectors"
        )


def _check_search(queries: Tensor, top_k: int, width: int) -> None:
    if not isinstance(top_k, Integral) or top_k < 1:
        raise ConfigError(
            f"search: top_k must be a whole number, 1 or more; got {top_k!r}", code="top-k-too-small", found=top_k
        )
    if not isinstance(queries, Tensor):
        raise TypeError(f"search: queries must be a tensor (Nq, Lq, d), got {type(queries).__name__}")
    if queries.dim() != 3 or queries.shape[1] == 0 or not queries.is_floating_point():
        raise ValueError(
            f"search: queries must be (Nq, Lq, d), floating point, Lq above 0; got {queries.dtype} "
            f"of shape {tuple(queries.shape)}"
        )
    if queries.shape[2] != width:
        raise ValueError(f"search: queries have width {queries.shape[2]}, the pool's vectors {width}")
    broken = ~torch.isfinite(queries).flatten(1).all(dim=1)
    if broken.any():
        raise ValueError(f"search: {int(broken.sum())} queries are not finite, first row {int(broken.nonzero()[0])}")


@contextmanager
def _full_precision(device: torch.device) -> Iterator[None]:
    """Products of float32, and sums of half precision, are made in float32, though training may run with TF32 or autocast."""
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
    except RuntimeError:  # the caller uses the settings by backend of PyTorch 2.9, which refuses to be asked both ways
        backends = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)
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
