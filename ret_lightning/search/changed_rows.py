"""Detect passages that were edited after ret-index was interrupted, so that only their parts are encoded again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ret_lightning.data.rows import Passage, hash_rows
from ret_lightning.retrieval.store.store_plan import change_config, drop_rows
from ret_lightning.runtime.atomic_files import whole_file

DIGESTS = "row_digests.npy"  # (rows,) uint64, in the folder of an unfinished version


def write_digests(folder: Path, passages: Sequence[Passage]) -> None:
    """Store a digest of each passage for `drop_changed`."""
    folder.mkdir(parents=True, exist_ok=True)
    with whole_file(folder / DIGESTS) as unfinished, unfinished.open("wb") as file:
        np.save(file, hash_rows(passages))


def drop_changed(
    folder: Path, store: Path, first: int, passages: Sequence[Passage], config: Mapping[str, Any]
) -> int | None:
    """Discard the parts of an interrupted store whose passages have changed.

    Args:
        folder: folder of the index version.
        store: folder of its store, which holds passages with the same ids.
        first: row of the first of the passages in the store.
        passages: the current passages.
        config: new config of the plan of the store.

    Returns:
        The number of changed passages; None if it is unknown, in which case nothing is discarded.
    """
    try:
        before = np.load(folder / DIGESTS)
    except (OSError, ValueError):  # missing or incomplete
        return None
    now = hash_rows(passages)
    if before.shape != now.shape:
        return None
    changed = np.flatnonzero(before != now)
    # In this order, a kill in between never leaves a part that does not match the stored digests.
    drop_rows(store, (first + changed).tolist())
    write_digests(folder, passages)
    change_config(store, config)
    return len(changed)
