"""Torch loaders over rows, made in one way for training, evaluation and search."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from ret_lightning.data.torch_datasets import Collator, EvaluationRows
from ret_lightning.runtime.fork_context import fork_context


def make_row_loader(
    rows: Dataset,
    batches: Iterable[Any],
    collate: Callable[[Any], Any],
    num_workers: int = 0,
    pin_memory: bool = False,
    seed: int = 0,
    persistent_workers: bool = False,
) -> DataLoader:
    """Make a loader.

    Args:
        rows: what is loaded from.
        batches: of each batch the indices of its rows.
        collate: makes a batch.
        num_workers: processes that load; 0: the calling one.
        pin_memory: whether batches are in page-locked memory, for a GPU.
        seed: of a generator of the loader's own, so that making an iterator samples nothing from the global random state.
        persistent_workers: whether the processes stay for the next epoch.
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
) -> DataLoader:
    """Make a loader of `EvaluationBatch`.

    Args:
        rows: of one side of a subset.
        batches: of each batch the positions of its rows.
        collator: of the tower that encodes them.
        is_repeated: see `EvaluationBatch`.
        options: of `make_row_loader`.
    """
    collate = partial(collator.evaluation, subset=rows.subset, side=rows.side, is_repeated=is_repeated)
    return make_row_loader(rows, batches, collate, **options)
