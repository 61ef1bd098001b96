"""PyTorch data loaders over rows, for training, evaluation and search."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from ret_lightning.data.sampling.batch_samplers import fill_idle_rank
from ret_lightning.data.torch_datasets import Collator, EvaluationRows
from ret_lightning.runtime.fork_context import fork_context


def make_row_loader(
    rows: Dataset[Any],
    batches: Iterable[Any],
    collate: Callable[[Any], Any],
    num_workers: int = 0,
    pin_memory: bool = False,
    seed: int = 0,
    persistent_workers: bool = False,
) -> DataLoader[Any]:
    """Create a data loader.

    Args:
        rows: dataset of the rows.
        batches: batch sampler, which yields the indices of the rows of each batch.
        collate: function that collates rows into a batch.
        num_workers: number of loader processes; 0: load in the calling process.
        pin_memory: whether to copy batches to page-locked memory, for a GPU.
        seed: seed of the loader's own generator, so that creating an iterator does not change the global random state.
        persistent_workers: whether to keep the loader processes between epochs.
    """
    return DataLoader(
        rows,
        batch_sampler=batches,
        collate_fn=collate,
        num_workers=num_workers,
        multiprocessing_context=fork_context() if num_workers else None,
        pin_memory=pin_memory,
        generator=torch.Generator().manual_seed(seed),
        persistent_workers=persistent_workers and num_workers > 0,
    )


def make_evaluation_loader(
    rows: EvaluationRows,
    batches: Sequence[Sequence[int]],
    collator: Collator,
    is_repeated: bool = False,
    **options: Any,
) -> DataLoader[Any]:
    """Create a data loader of `EvaluationBatch`.

    Args:
        rows: dataset of one side of a subset.
        batches: row indices of each batch.
        collator: collator with the tokenizer of the tower that encodes the rows.
        is_repeated: whether the rows repeat those of another rank, as in `EvaluationBatch`.
        options: further arguments of `make_row_loader`.
    """
    collate = partial(collator.evaluation, subset=rows.subset, side=rows.side, is_repeated=is_repeated)
    return make_row_loader(rows, batches, collate, **options)


def make_evaluation_loaders(
    files: Sequence[EvaluationRows], batches: list[list[list[int]]], collator: Collator, **options: Any
) -> list[DataLoader[Any]]:
    """Create the evaluation loaders of a rank, one per dataset.

    A rank without any batch repeats the first row of the first dataset, because Lightning skips the evaluation loop on a rank
    without batches (see `fill_idle_rank`).

    Args:
        files: datasets of one side of a subset each.
        batches: this rank's batches of each dataset, each a list of row indices.
        collator: collator of the batches.
        options: further arguments of `make_row_loader`.
    """
    is_idle = not any(batches)
    return [
        make_evaluation_loader(rows, own, collator, is_repeated=is_idle, **options)
        for rows, own in zip(files, fill_idle_rank(batches), strict=True)
    ]
