"""Encode rows to vectors, for evaluations, search indexes and query files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ret_lightning.data.batch import EvaluationBatch
from ret_lightning.data.loaders import make_evaluation_loader
from ret_lightning.data.sampling.batch_samplers import split_evaluation_batches
from ret_lightning.data.torch_datasets import Collator, EvaluationRows
from ret_lightning.data.types import PLURAL
from ret_lightning.errors import DataError
from ret_lightning.models.precision import dtype_named
from ret_lightning.models.two_towers import TwoTowers
from ret_lightning.runtime.progress import progress_bar


def encode_batch(retriever: TwoTowers, batch: EvaluationBatch) -> Tensor:
    """Encode a batch with the tower of its side.

    Args:
        retriever: the model.
        batch: B queries or passages, on the model's device.

    Returns:
        (B, k, d) float32, vectors of length 1, on the model's device.
    """
    return retriever.encode(batch.side, batch.inputs)


def encode_rows(
    retriever: TwoTowers,
    rows: EvaluationRows,
    batches: Sequence[Sequence[int]] | None = None,
    batch_size: int = 64,
    num_workers: int = 0,
    dtype: str | None = None,
    progress: bool = True,
) -> Iterator[tuple[EvaluationBatch, Tensor]]:
    """Encode the rows of one side batch by batch, with a progress bar on a terminal.

    To continue after an interruption, pass the missing batches, as returned by `EmbeddingSink.begin`.

    Args:
        retriever: the model, in eval mode, on the device to encode on.
        rows: queries or passages.
        batches: for each batch, the positions of its rows; None encodes all rows in order.
        batch_size: number of rows per batch if `batches` is None.
        num_workers: number of processes that decode images; 0 decodes in the current process.
        dtype: name of the autocast dtype, for example `bfloat16`; None disables autocast.
        progress: whether to display a progress bar.

    Yields:
        A batch on the model's device, and its (B, k, d) float32 vectors of length 1 on the same device.

    Raises:
        DataError: if an image is missing or cannot be decoded, or vectors are not finite; the error has the location of
            the row.
    """
    batches = split_evaluation_batches(range(len(rows)), batch_size) if batches is None else batches
    if not batches:
        return
    tower = getattr(retriever, f"{rows.side}_tower")
    device = tower.start.device
    collator = Collator(tower.tokenizer, tower.image_transform.size)
    loader = make_evaluation_loader(rows, batches, collator, num_workers=num_workers, pin_memory=device.type == "cuda")
    precision = torch.autocast(device.type, None if dtype is None else dtype_named(dtype), enabled=dtype is not None)
    with progress_bar(
        total=sum(map(len, batches)), desc=f"encoding {PLURAL[rows.side]}", unit="row", delay=1, disable=not progress
    ) as bar:
        for loaded in loader:
            batch = loaded.to(device)
            with torch.inference_mode(), precision:
                vectors = encode_batch(retriever, batch)
            check_finite(rows, batch, vectors, f" or omit dtype={dtype}" if dtype is not None else "")
            yield batch, vectors
            bar.update(len(batch))


def check_finite(rows: EvaluationRows, batch: EvaluationBatch, vectors: Tensor, remedy: str = "") -> None:
    """Check that the vectors of a batch are finite.

    Args:
        rows: the rows of the file.
        batch: B rows of the file.
        vectors: (B, k, d), the vectors of the batch.
        remedy: text to append to the error message.

    Raises:
        DataError: if a vector is not finite; the error has the location of the first such row.
    """
    finite = vectors.isfinite().flatten(1).all(dim=1).tolist()
    if not all(finite):
        location = rows.rows[int(batch.rows[finite.index(False)])].location
        raise DataError(
            f"{location}: non-finite vectors of this {batch.side}; use another checkpoint{remedy}",
            code="row-vectors-not-finite",
            path=location.file,
            line=location.line,
        )
