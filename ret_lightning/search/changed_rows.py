"""Passages that were edited after ret-index was interrupted: only the parts with their rows are encoded again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ret_lightning.data.rows import Passage, hash_rows
from ret_lightning.retrieval.store.store_plan import change_config, drop_rows
from ret_lightning.runtime.atomic_files import whole_file

DIGESTS = "row_digests.npy"  # in the folder of a version while it is made: (rows,) uint64


def write_digests(folder: Path, passages: Sequence[Passage]) -> None:
    """Store a digest of each passage, by which `drop_changed` finds those that were edited."""
    folder.mkdir(parents=True, exist_ok=True)
    with whole_file(folder / DIGESTS) as unfinished, unfinished.open("wb") as file:
        np.save(file, hash_rows(passages))


def drop_changed(
    folder: Path, store: Path, first: int, passages: Sequence[Passage], config: Mapping[str, Any]
) -> int | None:
    """Have the parts of an interrupted store written again whose passages have changed.

    Args:
        folder: of the version.
        store: folder of its store, which holds passages of the same ids.
        first: the row of the first of the passages.
        passages: as they are now.
        config: for the store's plan.

    Returns:
        How many passages have changed; None if that is not known, and then nothing was done.
    """
    try:
        before = np.load(folder / DIGESTS)
    except (OSError, ValueError):  # of an earlier version, or not whole
        return None
    now = hash_rows(passages)
    if before.shape != now.shape:
        return None
    changed = np.flatnonzero(before != now)
    # In this order, so that after a kill in between no part counts that was made from other content than stated.
    drop_rows(store, (first + changed).tolist())
    write_digests(folder, passages)
    change_config(store, config)
    return len(changed)
