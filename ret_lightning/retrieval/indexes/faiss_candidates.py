"""The base class of indexes whose candidates come from a FAISS index: common settings and the FAISS file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from ret_lightning.config.targets.renamed_keys import FAISS_KEYS
from ret_lightning.errors import DataError
from ret_lightning.retrieval.indexes.base import check_at_least_one
from ret_lightning.retrieval.indexes.candidates import CandidateIndex
from ret_lightning.retrieval.indexes.faiss_build import is_on_gpu
from ret_lightning.retrieval.store.embeddings import Embeddings

if TYPE_CHECKING:
    import faiss


class FaissCandidates(CandidateIndex):
    """An index whose candidates come from a FAISS index, which is saved in the file format of FAISS.

    Args:
        factory: FAISS index factory string; the subclass defines its placeholders.
        candidates: number of passages per query whose exact scores are computed. None: 4 * top_k, at least 512.
        nlist: number of inverted lists (IVF); None for automatic.
        nprobe: number of inverted lists to search; None for automatic.
        training_points: number of vectors to train on; None for automatic.
        seed: random seed for building the index.
        gpu: whether FAISS uses a GPU. None: if `device` is a GPU, faiss-gpu is installed and it supports the index.
        device: CPU or CUDA device on which exact scores are computed. None: the device of the passage vectors.
        exact_fallback: whether to rank a query with fewer than top_k candidates exactly.

    Raises:
        ConfigError: if a number is below 1. `build` raises it if FAISS rejects the factory string, if there are too few
            vectors for the index, or if a setting has no placeholder in the factory string.
    """

    file: ClassVar[str]
    renamed_settings = FAISS_KEYS

    def __init__(
        self,
        factory: str,
        candidates: int | None,
        nlist: int | None,
        nprobe: int | None,
        training_points: int | None,
        seed: int,
        gpu: bool | None,
        device: str | torch.device | None,
        exact_fallback: bool,
    ) -> None:
        super().__init__(candidates, device, exact_fallback)
        check_at_least_one(self, nlist=nlist, nprobe=nprobe, training_points=training_points)
        self.factory = factory
        self.nlist = nlist
        self.nprobe = nprobe
        self.training_points = training_points
        self.seed = seed
        self.gpu = gpu
        self._faiss: Any = None  # a faiss.Index, or an object with its `search`

    def _clear_proposals(self) -> None:
        self._faiss = None

    def _save_proposals(self, folder: Path) -> dict[str, Any]:
        _write_index(self._faiss, folder / self.file)
        return {}

    def _restore_proposals(self, folder: Path, passages: Embeddings, state: dict[str, Any]) -> None:
        self._faiss = _read_index(folder / self.file)


def _write_index(index: faiss.Index, file: Path) -> None:
    """Write a FAISS index; an index on a GPU is copied to the CPU first."""
    import faiss

    faiss.write_index(faiss.index_gpu_to_cpu(index) if is_on_gpu(index) else index, str(file))


def _read_index(file: Path) -> faiss.Index:
    """Read a FAISS index into memory; raise DataError if FAISS cannot read it."""
    import faiss

    try:
        return faiss.read_index(str(file))
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise DataError(
            f"{file}: not readable by FAISS ({reason}); build the index again", code="faiss-file-unreadable", path=file
        ) from None
