"""Rows to vectors: the one way for evaluations, search indexes and files of queries."""

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
    """Encode a batch by the tower of its side: (B, k, d) vectors of length 1, float32, on the model's device."""
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
    """Encode the rows of one side, a batch at a time, with a bar on a terminal.

    To continue after an interruption, pass the batches that are missing: `EmbeddingSink.begin` returns them.

    Args:
        retriever: in eval mode, on the device to encode on.
        rows: queries, or passages.
        batches: of each batch the positions of its rows; None: all rows, in order.
        batch_size: rows a batch where `batches` is None.
        num_workers: processes that decode images while the model runs; 0: this one does it.
        dtype: what to compute in (autocast); None: float32, or as the weights are.
        progress: whether to show a bar.

    Yields:
        A batch on the model's device, and its (B, k, d) float32 vectors of length 1 there.

    Raises:
        DataError: naming the row, if its image is missing or cannot be decoded, or its vectors are not finite.
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
            check_finite(rows, batch, vectors, f", or leave dtype={dtype} out" if dtype is not None else "")
            yield batch, vectors
            bar.update(len(batch))


def check_finite(rows: EvaluationRows, batch: EvaluationBatch, vectors: Tensor, remedy: str = "") -> None:
    """Raise DataError, naming the first row of a batch whose vectors are not finite; `remedy` ends the message."""
    finite = vectors.isfinite().flatten(1).all(dim=1).tolist()
    if not all(finite):
        location = rows.rows[int(batch.rows[finite.index(False)])].location
        raise DataError(
            f"{location}: the model encodes this {batch.side} to numbers that are not finite; give another checkpoint{remedy}",
            code="row-vectors-not-finite",
            path=location.file,
            line=location.line,
        )
