"""Candidates from a FAISS index with one fixed-dimensional encoding per passage, ranked by exact MaxSim."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ret_lightning.config.targets.renamed_keys import FAISS_KEYS, accept_renamed
from ret_lightning.errors import ConfigError, DataError
from ret_lightning.retrieval.indexes.base import check_at_least_one
from ret_lightning.retrieval.indexes.faiss_build import MAX_GPU_HITS, FaissSpec, build_faiss, is_on_gpu
from ret_lightning.retrieval.indexes.faiss_candidates import FaissCandidates
from ret_lightning.retrieval.indexes.faiss_defaults import automatic_nlist, automatic_nprobe, fill_factory
from ret_lightning.retrieval.indexes.muvera_encoding import FixedDimensionalEncoding
from ret_lightning.retrieval.store.embeddings import Embeddings

log = logging.getLogger(__name__)

ENCODING_BLOCK = 128  # passages or queries encoded at a time
MAPS_FILE = "maps.safetensors"
MIN_IVF_PASSAGES = 4096
MAX_ENCODING_WIDTH = 1 << 20  # 4 MiB per passage
TRAINING_ENCODINGS = 8192


class MuveraIndex(FaissCandidates):
    """Rank the passages with the nearest fixed-dimensional encodings by their exact MaxSim scores.

    A search needs one lookup per query instead of one per query vector. `FixedDimensionalEncoding` defines the encoding.

    Args:
        factory: FAISS index factory string for the encodings, with the placeholder `{nlist}` if it has inverted lists.
        candidates: number of passages per query whose exact scores are computed, at least top_k. None: 4 * top_k, at least
            512.
        repetitions: number of independent space partitions.
        hyperplanes: number b of hyperplanes, for 2^b parts per partition. None: chosen so that a part holds four vectors of
            a passage on average.
        projection: dimension to which the mean of a part is projected; at most the vector width.
        nlist: number of inverted lists. None: the largest power of two up to 4 * sqrt(N); no inverted lists below 4,096
            passages.
        nprobe: number of inverted lists to search. None: nlist / 4, at least 32, because encodings spread over more lists
            than token vectors.
        training_points: number of encodings to train on. None: 8,192.
        seed: seed of the hyperplanes, the projections, the training points and k-means.
        gpu: whether FAISS uses a GPU. None: if `device` is a GPU, faiss-gpu is installed and it supports the index.
        device: CPU or CUDA device on which exact scores are computed. None: the device of the passage vectors.
        exact_fallback: whether to rank a query with fewer than top_k candidates exactly.

    Raises:
        ConfigError: if a number is below 1 or the encoding is too wide. `build` raises it if FAISS rejects the factory
            string, if there are too few vectors for the index, or if a setting has no placeholder in the factory string.
    """

    file = "encodings.faiss"

    @accept_renamed(FAISS_KEYS)
    def __init__(
        self,
        factory: str = "IVF{nlist},SQ8",
        candidates: int | None = None,
        repetitions: int = 20,
        hyperplanes: int | None = None,
        projection: int = 16,
        nlist: int | None = None,
        nprobe: int | None = None,
        training_points: int | None = None,
        seed: int = 0,
        gpu: bool | None = None,
        device: str | torch.device | None = None,
        exact_fallback: bool = True,
    ) -> None:
        super().__init__(factory, candidates, nlist, nprobe, training_points, seed, gpu, device, exact_fallback)
        check_at_least_one(self, repetitions=repetitions, hyperplanes=hyperplanes, projection=projection)
        width = repetitions * 2 ** (hyperplanes or 1) * projection
        if width > MAX_ENCODING_WIDTH:
            raise ConfigError(
                f"MuveraIndex: encoding width repetitions * 2^hyperplanes * projection: expected at most {MAX_ENCODING_WIDTH}, "
                f"got {width} = {repetitions} * 2^{hyperplanes or 1} * {projection}; lower one of them",
                code="muvera-encoding-too-long",
                found=width,
                most=MAX_ENCODING_WIDTH,
            )
        self.repetitions = repetitions
        self.hyperplanes = hyperplanes
        self.projection = projection
        self._encoding: FixedDimensionalEncoding | None = None

    def _build_proposals(self, passages: Embeddings) -> None:
        k, width = passages.vectors.shape[1:]
        hyperplanes = self.hyperplanes or max(1, round(math.log2(k)) - 2)
        encoding = FixedDimensionalEncoding.sample(
            width, self.repetitions, hyperplanes, min(self.projection, width), self.seed
        )

        def encode(vectors: Tensor) -> Tensor:
            return torch.cat([encoding.encode_passages(block) for block in vectors.cpu().split(ENCODING_BLOCK)])

        spec = self._spec(len(passages))
        log.info("FAISS index of %d encodings of width %d: %s", len(passages), encoding.width, spec.factory)
        device = self.device or passages.vectors.device
        self._faiss, self._encoding = build_faiss(spec, passages, encoding.width, 1, encode, device), encoding

    def _spec(self, count: int) -> FaissSpec:
        nlist = self.nlist or automatic_nlist(count)
        factory = fill_factory(self.factory, {"nlist": nlist}, {"nlist": self.nlist})
        nprobe = self.nprobe
        if factory != self.factory:
            if count < MIN_IVF_PASSAGES and self.nlist is None:
                factory, nprobe = "Flat", None
            else:
                nprobe = nprobe or max(automatic_nprobe(nlist), nlist // 4)
        return FaissSpec(
            "MuveraIndex", factory, nprobe, self.training_points or TRAINING_ENCODINGS, self.seed, self.gpu
        )

    def _clear_proposals(self) -> None:
        super()._clear_proposals()
        self._encoding = None

    def _save_proposals(self, folder: Path) -> dict[str, Any]:
        from safetensors.torch import save_file

        assert self._encoding is not None
        save_file({"planes": self._encoding.planes, "signs": self._encoding.signs}, folder / MAPS_FILE)
        return super()._save_proposals(folder)

    def _restore_proposals(self, folder: Path, passages: Embeddings, state: dict[str, Any]) -> None:
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            self._encoding = FixedDimensionalEncoding(**load_file(folder / MAPS_FILE))
        except (SafetensorError, OSError, TypeError) as error:
            raise DataError(
                f"{folder / MAPS_FILE}: not readable ({error}); build the index again",
                code="muvera-maps-unreadable",
                path=folder / MAPS_FILE,
            ) from None
        super()._restore_proposals(folder, passages, state)

    def _propose(self, queries: Tensor, count: int) -> tuple[Tensor, Tensor]:
        encoding = self._encoding
        assert encoding is not None
        encoded = torch.cat([encoding.encode_queries(block) for block in queries.cpu().split(ENCODING_BLOCK)])
        found = min(count, MAX_GPU_HITS) if is_on_gpu(self._faiss) else count
        _, rows = self._faiss.search(encoded.numpy(), found)
        candidates = torch.nn.functional.pad(torch.from_numpy(rows), (0, count - found), value=-1)
        return candidates, (candidates >= 0).sum(dim=1)
