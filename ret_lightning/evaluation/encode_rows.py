"""Rows to vectors, for an index and for a file of queries."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ret_lightning.data.images.sources import ImageReader, image_source
from ret_lightning.data.rows import Passage, Query
from ret_lightning.data.torch_datasets import Collator, EvaluationRows
from ret_lightning.errors import ConfigError, DataError
from ret_lightning.inputs.cut_texts import TextCount
from ret_lightning.models import RetRetriever
from ret_lightning.models.precision import dtype_named
from ret_lightning.runtime.fork_context import fork_context
from ret_lightning.runtime.progress import progress_bar

PLURAL = {"query": "queries", "passage": "passages"}


def encoded(
    retriever: RetRetriever,
    rows: Sequence[Query] | Sequence[Passage],
    image_root: str | None,
    batch_size: int,
    num_workers: int,
    dtype: str | None = None,
    bar: bool = True,
    texts: TextCount | None = None,
) -> Iterator[Tensor]:
    """The vectors of rows, a batch at a time, with a bar on a terminal.

    Args:
        retriever: in eval mode, on the device to encode on.
        rows: queries, or passages.
        image_root: a folder or an archive of images, see `data.images.sources.image_source`.
        batch_size: rows a pass of the model.
        num_workers: processes that decode images while the model runs; 0: this one does it.
        dtype: what to compute in (autocast); None: float32, or as the weights are.
        bar: whether to show one.
        texts: the texts of the rows are added to it, and how many of them the tokenizer cuts.

    Yields:
        (B, k, d) float32 of length 1, on the model's device.

    Raises:
        DataError: naming the row, and its image if that is missing or cannot be decoded, or the vectors are not finite.
        ConfigError: if there are images and no `image_root`.
    """
    if not rows:
        return
    side = "query" if isinstance(rows[0], Query) else "passage"
    lost = next((row for row in rows if row.image_path is not None), None) if image_root is None else None
    if lost is not None:
        raise ConfigError(
            f"{lost.place} names the image {lost.image_path}; image_root=DIR tells where images are",
            code="image-root-not-given",
            path=lost.place.file,
            line=lost.place.line,
            found=lost.image_path,
        )
    tower = getattr(retriever, f"{side}_tower")
    device = tower.start.device
    read_image = ImageReader(image_source(image_root or ""), tower.image_transform)
    loader = DataLoader(
        EvaluationRows(rows, read_image, PLURAL[side]),
        batch_size=batch_size,
        collate_fn=Collator(tower.tokenizer, tower.image_transform.size).evaluation,
        num_workers=num_workers,
        multiprocessing_context=fork_context() if num_workers else None,
        pin_memory=device.type == "cuda",
    )
    precision = torch.autocast(device.type, None if dtype is None else dtype_named(dtype), enabled=dtype is not None)
    with progress_bar(
        total=len(rows), desc=f"encoding {PLURAL[side]}", unit="row", delay=1, disable=not bar
    ) as progress:
        for batch in loader:
            with torch.inference_mode(), precision:
                vectors = retriever.encode(side, batch.inputs.to(device))
            finite = vectors.isfinite().flatten(1).all(dim=1).tolist()
            if not all(finite):
                place = rows[int(batch.rows[finite.index(False)])].place
                raise DataError(
                    f"{place}: the model encodes this {side} to numbers that are not finite; give another checkpoint"
                    + (f", or leave dtype={dtype} out" if dtype is not None else ""),
                    code="row-vectors-not-finite",
                    path=place.file,
                    line=place.line,
                )
            if texts is not None:
                texts.add(batch.texts)
            yield vectors
            progress.update(len(batch))
