"""What the indexes share whose candidates come from a FAISS index: its settings, and its file."""

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
    """An index whose candidates come from a FAISS index, stored in a file of FAISS's own format.

    Args:
        factory: FAISS index factory string; see the subclass for its places.
        candidates: see `CandidateIndex`.
        nlist: inverted lists (IVF); None for automatic.
        nprobe: inverted lists to search; None for automatic.
        training_points: vectors to train on; None for automatic.
        seed: of the random numbers that the index is made with.
        gpu: whether FAISS runs on a GPU; None: if `device` is one, faiss-gpu is installed and it has the index.
        device: where exact scores are made, see `Index`.
        exact_fallback: see `CandidateIndex`.

    Raises:
        ConfigError: if a number is below 1. `build` raises it if FAISS refuses the factory string, if the index needs more
            vectors than the pool has, or if a setting is given that the factory string has no place for.
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
        self._faiss: faiss.Index | None = None

    def _clear_proposals(self) -> None:
        self._faiss = None

    def _save_proposals(self, folder: Path) -> dict[str, Any]:
        _write(self._faiss, folder / self.file)
        return {}

    def _restore_proposals(self, folder: Path, passages: Embeddings, state: dict[str, Any]) -> None:
        self._faiss = _read(folder / self.file)


def _write(index: faiss.Index, file: Path) -> None:
    """Write a FAISS index; one on a GPU is copied to the CPU first."""
    import faiss

    faiss.write_index(faiss.index_gpu_to_cpu(index) if is_on_gpu(index) else index, str(file))


def _read(file: Path) -> faiss.Index:
    """Read a FAISS index into memory; raises DataError if FAISS cannot."""
    import faiss

    try:
        return faiss.read_index(str(file))
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise DataError(
            f"{file}: FAISS cannot read it ({reason}); build the index again", code="faiss-file-unreadable", path=file
        ) from None
