"""Encode rows outside of an evaluation: passages to index and queries to answer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from ret_lightning.data.images.sources import ImageReader, image_source
from ret_lightning.data.rows import Passage, Query
from ret_lightning.data.torch_datasets import EvaluationRows
from ret_lightning.evaluation.encode_rows import encode_rows
from ret_lightning.inputs.items import Side
from ret_lightning.inputs.truncated_texts import TextCount
from ret_lightning.models import RetRetriever


def encode_batches(
    retriever: RetRetriever,
    rows: Sequence[Query] | Sequence[Passage],
    image_root: str | None,
    batch_size: int,
    num_workers: int,
    dtype: str | None = None,
    progress: bool = True,
    texts: TextCount | None = None,
) -> Iterator[Tensor]:
    """Encode rows batch by batch.

    Args:
        retriever: retriever in eval mode on the device to encode on.
        rows: all queries or all passages.
        image_root: folder or archive of the images, see `image_source`; None if no row has an image. `check_images`
            verifies that all images exist.
        batch_size: number of rows per batch B.
        num_workers: number of processes that decode images while the model runs; 0: the calling process.
        dtype: dtype of autocast; None: float32, or the dtype of the weights.
        progress: whether to display a progress bar.
        texts: count to which the texts of the rows and the number of truncated texts are added.

    Yields:
        (B, k, d) float32, L2-normalised, on the device of the model.

    Raises:
        DataError: if an image is missing or cannot be decoded, or a vector is not finite. The error names the row.
    """
    if not rows:
        return
    side: Side = "query" if isinstance(rows[0], Query) else "passage"
    read_image = ImageReader(image_source(image_root or ""), getattr(retriever, f"{side}_tower").image_transform)
    dataset = EvaluationRows(rows, read_image, subset="", side=side)
    for batch, vectors in encode_rows(
        retriever, dataset, batch_size=batch_size, num_workers=num_workers, dtype=dtype, progress=progress
    ):
        if texts is not None:
            texts.add(batch.texts)
        yield vectors
