"""Options of encoding passages, common to all kinds of search indexes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class EncodingOptions:
    """How passages are encoded.

    Attributes:
        checkpoint: a run folder, a training checkpoint, a folder in the published layout, or a hub id. None: the checkpoint
            of the existing index.
        image_root: folder or archive that contains the image paths, see `image_source`. None: no passage has an image.
        batch_size: number of rows per batch.
        num_workers: number of processes that decode images while the model runs; 0: the encoding process.
        processes: number of processes that encode, each a part of the passages, distributed over the available GPUs.
        device: device to encode on. None: a GPU if there is one.
        dtype: dtype of autocast. None: the dtype of the weights.
    """

    checkpoint: str | None = None
    image_root: str | None = None
    batch_size: int = 32
    num_workers: int = 0
    processes: int = 1
    device: str | None = None
    dtype: str | None = None

    @classmethod
    def from_paths(
        cls, checkpoint: str | Path | None, image_root: str | Path | None, **settings: Any
    ) -> EncodingOptions:
        """Create options from paths of type `str` or `Path`; `settings` are the other attributes."""
        return cls(
            checkpoint=None if checkpoint is None else str(checkpoint),
            image_root=None if image_root is None else str(image_root),
            **settings,
        )
