"""Vectors of rows that belong to no evaluation: of passages to index, and of queries to answer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from ret_lightning.data.images.sources import ImageReader, image_source
from ret_lightning.data.rows import Passage, Query
from ret_lightning.data.torch_datasets import EvaluationRows
from ret_lightning.evaluation.encode_rows import encode_rows
from ret_lightning.inputs.truncated_texts import TextCount
from ret_lightning.models import RetRetriever


def encoded(
    retriever: RetRetriever,
    rows: Sequence[Query] | Sequence[Passage],
    image_root: str | None,
    batch_size: int,
    num_workers: int,
    dtype: str | None = None,
    progress: bool = True,
    texts: TextCount | None = None,
) -> Iterator[Tensor]:
    """Encode rows, a batch at a time.

    Args:
        retriever: in eval mode, on the device to encode on.
        rows: all queries, or all passages.
        image_root: a folder or an archive of images, see `image_source`; `check_images` looks for all of them.
        batch_size: rows per batch.
        num_workers: processes that decode images while the model runs; 0: this one does it.
        dtype: what to compute in (autocast); None: float32, or as the weights are.
        progress: whether to show a bar.
        texts: the texts of the rows are added to it, and how many of them the tokenizer cuts.

    Yields:
        (B, k, d) float32 of length 1, on the model's device.

    Raises:
        DataError: naming the row, and its image if that is missing or cannot be decoded, or the vectors are not finite.
    """
    if not rows:
        return
    side = "query" if isinstance(rows[0], Query) else "passage"
    read_image = ImageReader(image_source(image_root or ""), getattr(retriever, f"{side}_tower").image_transform)
    dataset = EvaluationRows(rows, read_image, subset="", side=side)
    for batch, vectors in encode_rows(
        retriever, dataset, batch_size=batch_size, num_workers=num_workers, dtype=dtype, progress=progress
    ):
        if texts is not None:
            texts.add(batch.texts)
        yield vectors
