"""Embeddings on disk: memory-mapped float16 or float32 vectors, ids, and a manifest.

    folder/vectors.f16     N x k x d little-endian float16 numbers without a header; vectors.f32 for float32
    folder/ids.json        the N ids
    folder/manifest.json   fingerprint, config, shapes, checksums; written last, so a store without it is not finished

While a store is written, `plan.json` describes the finished store, and `parts/` holds a marker with the checksum of each
finished part. Rows are divided into parts of equal size, and part p belongs to rank p % world. All ranks write into one
file, each at the offsets of its own rows, so that the result does not depend on the number of ranks. Any number of ranks
can continue an interrupted store: parts whose rows match the checksum of their marker are kept.

Rows can be marked as provisional, for example because their images were not readable. They are part of the finished store,
but their parts are written again when the store is created again, unless the caller keeps them.

Shapes: N items of k vectors of width d.
"""

from __future__ import annotations

import json
import mmap
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import torch
from torch import Tensor

from ret_lightning.errors import DataError
from ret_lightning.retrieval.store.embeddings import Embeddings, check_ids
from ret_lightning.retrieval.store.store_plan import (
    DTYPES,
    IDS,
    MANIFEST,
    PARTS,
    PLAN,
    PROVISIONAL,
    SUMS,
    StorePlan,
    check_same_plan,
    marker_file,
    provisional_rows,
    read_plan,
    read_store_json,
    reopen_if_provisional,
    sha256,
    sha256_of_part,
    write_marker,
)
from ret_lightning.runtime.atomic_files import write_text

# A store has about MAX_PARTS parts of at most MAX_PART_ROWS rows, which bounds the work lost by an interruption.
MAX_PARTS, MAX_PART_ROWS = 64, 4096


class EmbeddingStore:
    """A finished store, opened for reading. `create` starts or continues a store, `open` opens a finished one.

    Attributes:
        folder: folder of the store.
        plan: shapes, fingerprint and config.
        embeddings: ids and (N, k, d) float16 or float32 vectors on the CPU, memory-mapped. Vectors are read on access, and
            an index releases the pages that it has read.
    """

    def __init__(self, folder: Path, plan: StorePlan, ids: Sequence[str]) -> None:
        self.folder = folder
        self.plan = plan
        self.embeddings: Embeddings = _map_embeddings(folder / plan.vectors_file, plan, ids)

    @staticmethod
    def create(
        folder: str | Path,
        ids: Sequence[str],
        shape: tuple[int, int],
        fingerprint: str,
        config: Mapping[str, Any] | None = None,
        part_rows: int | None = None,
        dtype: Literal["float16", "float32"] = "float16",
        batch_rows: int = 1,
    ) -> StoreInProgress:
        """Start a store, or continue an interrupted one. With several ranks, call it on the first rank before the others.

        Args:
            folder: a new or empty folder, or the folder of the same store.
            ids: N unique strings.
            shape: shape (k, d) of an item.
            fingerprint: fingerprint of the checkpoint.
            config: settings that determine the vectors; JSON-serializable.
            part_rows: number of rows per part, the unit that is written, verified and continued. None: automatic. An
                existing store keeps its value.
            dtype: dtype on disk.
            batch_rows: the automatic `part_rows` is a multiple of it.

        Raises:
            StoreMismatch: if the folder holds another store.
            DataError: if the folder holds other files.
            ValueError: if ids, shape or dtype are invalid.
        """
        if dtype not in DTYPES:
            raise ValueError(f"create: dtype: expected float16 or float32, got {dtype!r}")
        folder = Path(folder)
        check_ids(tuple(ids))
        if min(shape) < 1:
            raise ValueError(f"create: shape: expected (k, d), both above 0, got {tuple(shape)}")
        text = json.dumps(list(ids))
        automatic = max(1, min(MAX_PART_ROWS, -(-len(ids) // MAX_PARTS)))
        plan = StorePlan(
            fingerprint=fingerprint,
            config=json.loads(json.dumps(config or {})),
            count=len(ids),
            vectors=shape[0],
            width=shape[1],
            part_rows=part_rows or -(-automatic // batch_rows) * batch_rows,
            ids_sha256=sha256(text.encode()),
            dtype=dtype,
        )
        found = [name for name in (MANIFEST, PLAN) if (folder / name).exists()]
        if found:
            before = read_plan(folder, found[0])
            plan = replace(plan, part_rows=before.part_rows)
            check_same_plan(folder, before, plan)
            if found[0] == MANIFEST and reopen_if_provisional(folder, plan):
                found.remove(MANIFEST)
        elif folder.is_dir():
            names = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
            if others := sorted(names - {plan.vectors_file, IDS, PARTS}):
                raise DataError(
                    f"{folder}: unexpected file {others[0]!r}, not part of an embedding store; choose an empty folder",
                    code="store-folder-not-empty",
                    path=folder,
                    found=others[0],
                )
        if MANIFEST not in found:
            if PLAN not in found or not _ids_match(folder, plan):
                write_text(folder / IDS, text)
                write_text(folder / PLAN, json.dumps(asdict(plan), indent=1))
            (folder / PARTS).mkdir(exist_ok=True)
            # Extend the file to its full length and keep its content.
            with (folder / plan.vectors_file).open("ab") as file:
                file.truncate(plan.count * plan.row_bytes)
        return StoreInProgress(folder, plan)

    @staticmethod
    def open(folder: str | Path, fingerprint: str | None = None, verify: bool = True) -> EmbeddingStore:
        """Open a finished store.

        Args:
            folder: folder of the store.
            fingerprint: expected fingerprint of the checkpoint. None: any.
            verify: whether to compare the vectors with their checksums, which reads the file once without keeping it in
                memory.

        Raises:
            DataError: if there is no store, it is not finished, it is corrupt, or it belongs to another checkpoint.
        """
        folder = Path(folder)
        if not (folder / MANIFEST).exists():
            if (folder / PLAN).exists():
                plan = read_plan(folder, PLAN)
                missing = sum(not marker_file(folder, part).exists() for part in range(plan.parts))
                raise DataError(
                    f"{folder}: embedding store is not finished, {missing} of {plan.parts} parts are missing; "
                    "run the same command again to continue",
                    code="store-not-finished",
                    path=folder,
                    missing=missing,
                    parts=plan.parts,
                )
            raise DataError(f"{folder}: no embedding store, {MANIFEST} is missing", code="store-missing", path=folder)
        plan, sums = read_plan(folder, MANIFEST), read_store_json(folder / MANIFEST).get(SUMS)
        if fingerprint is not None and plan.fingerprint != fingerprint:
            raise DataError(
                f"{folder}: embedding store: expected checkpoint fingerprint {fingerprint!r}, got {plan.fingerprint!r}; use "
                "the checkpoint that encoded it, or encode again into another folder",
                code="store-other-checkpoint",
                path=folder,
                found=plan.fingerprint,
                expected=fingerprint,
            )
        try:
            text, size = (folder / IDS).read_bytes(), (folder / plan.vectors_file).stat().st_size
        except OSError as error:
            raise _corrupt_store(folder, f"{Path(error.filename).name} is not readable ({error.strerror})") from None
        if sha256(text) != plan.ids_sha256:
            raise _corrupt_store(folder, f"{IDS}: checksum differs from the manifest")
        if size != plan.count * plan.row_bytes:
            raise _corrupt_store(
                folder, f"{plan.vectors_file}: expected {plan.count * plan.row_bytes} bytes, got {size}"
            )
        if not isinstance(sums, list) or len(sums) != plan.parts:
            raise _corrupt_store(folder, f"{MANIFEST}: expected checksums of {plan.parts} parts")
        if verify:
            for part, expected in enumerate(sums):
                if sha256_of_part(folder, plan, part) != expected:
                    rows = plan.rows(part)
                    raise _corrupt_store(
                        folder,
                        f"{plan.vectors_file}: checksum of rows {rows.start} to {rows.stop - 1} differs from the manifest",
                    )
        return EmbeddingStore(folder, plan, json.loads(text))


class StoreInProgress:
    """A store that is being written: call `writer` on each rank, then `finish` once."""

    def __init__(self, folder: Path, plan: StorePlan) -> None:
        self.folder = folder
        self.plan = plan

    @property
    def finished(self) -> bool:
        """Whether the store is finished."""
        return (self.folder / MANIFEST).exists()

    def writer(
        self, rank: int = 0, world: int = 1, keep_provisional: Callable[[list[int]], bool] = lambda rows: False
    ) -> StoreWriter:
        """Return the writer of one of `world` ranks.

        Every row belongs to one rank, whatever was written before.

        Args:
            rank: rank of this process, in [0, world).
            world: number of ranks.
            keep_provisional: called once for each complete part of this rank that has provisional rows, with these rows;
                returns whether to keep the part.

        Raises:
            ValueError: if the rank is not in [0, world).
        """
        if not 0 <= rank < world:
            raise ValueError(f"writer: rank: expected a value in [0, {world}), got {rank}")
        own = [] if self.finished else range(rank, self.plan.parts, world)
        missing = []
        for part in own:
            provisional = provisional_rows(self.folder, part) if self._is_complete(part) else None
            if provisional is None or (provisional and not keep_provisional(provisional)):
                missing.append(part)
        return StoreWriter(self.folder, self.plan, missing)

    def finish(self) -> EmbeddingStore:
        """Write the manifest. Call it on one rank after all ranks have written.

        Returns:
            The finished store.

        Raises:
            DataError: if a part is missing or does not match its checksum.
        """
        if not self.finished:
            for part in range(self.plan.parts):
                if not self._is_complete(part):
                    rows = self.plan.rows(part)
                    raise DataError(
                        f"{self.folder}: rows {rows.start} to {rows.stop - 1} of the embedding store are missing; run "
                        "the same command again to continue",
                        code="store-rows-missing",
                        path=self.folder,
                        first=rows.start,
                        last=rows.stop - 1,
                    )
            sums = [read_store_json(marker_file(self.folder, part))["sha256"] for part in range(self.plan.parts)]
            provisional = [row for part in range(self.plan.parts) for row in provisional_rows(self.folder, part)]
            manifest = {**asdict(self.plan), SUMS: sums} | ({PROVISIONAL: provisional} if provisional else {})
            write_text(self.folder / MANIFEST, json.dumps(manifest, indent=1))
        shutil.rmtree(self.folder / PARTS, ignore_errors=True)
        (self.folder / PLAN).unlink(missing_ok=True)
        return EmbeddingStore.open(self.folder, verify=False)

    def _is_complete(self, part: int) -> bool:
        """Return whether the rows of a part match its marker; False if the marker is missing or malformed."""
        try:
            expected = json.loads(marker_file(self.folder, part).read_text(encoding="utf-8"))["sha256"]
        except (OSError, ValueError, KeyError, TypeError):
            return False
        return sha256_of_part(self.folder, self.plan, part) == expected


class StoreWriter:
    """Write the vectors of one rank in the order of `rows`, in batches of any size.

    Attributes:
        rows: positions in `ids` that this rank still has to encode, ascending.
    """

    def __init__(self, folder: Path, plan: StorePlan, parts: list[int]) -> None:
        self.rows = [row for part in parts for row in plan.rows(part)]
        self._folder = folder
        self._plan = plan
        self._parts = parts
        self._buffer: list[np.ndarray] = []
        self._provisional: set[int] = set()

    def add(self, vectors: Tensor, provisional: Iterable[int] = ()) -> None:
        """Add the next rows. A part is written with its marker as soon as it is full.

        Args:
            vectors: (n, k, d) floating-point tensor on any device; stored in the dtype of the store.
            provisional: positions in `ids` of those rows that may have to be written again, see `StoreInProgress.writer`.

        Raises:
            ValueError: if the shape is invalid, there are more rows than expected, or a value is not finite in this dtype.
        """
        plan = self._plan
        if vectors.shape[1:] != (plan.vectors, plan.width):
            raise ValueError(
                f"add: expected vectors of shape (n, {plan.vectors}, {plan.width}), got {tuple(vectors.shape)}"
            )
        numbers = vectors.detach().to("cpu", getattr(torch, plan.dtype)).numpy()
        if not np.isfinite(numbers).all():
            raise ValueError(f"add: vectors must be finite in {plan.dtype}, got nan, inf or a larger value")
        remaining = sum(len(plan.rows(part)) for part in self._parts) - sum(map(len, self._buffer))
        if len(numbers) > remaining:
            raise ValueError(f"add: expected at most {remaining} more rows, got {len(numbers)}")
        self._buffer.append(numbers)
        self._provisional.update(provisional)
        while self._parts and sum(map(len, self._buffer)) >= len(plan.rows(self._parts[0])):
            buffered, size = np.concatenate(self._buffer), len(plan.rows(self._parts[0]))
            self._write(self._parts.pop(0), buffered[:size])
            self._buffer = [buffered[size:]]

    def _write(self, part: int, numbers: np.ndarray) -> None:
        content = np.ascontiguousarray(numbers, dtype=self._plan.numbers).tobytes()
        with (self._folder / self._plan.vectors_file).open("r+b") as file:
            file.seek(self._plan.rows(part).start * self._plan.row_bytes)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # a marker on disk must imply its rows on disk, even after a power failure
        write_marker(self._folder, part, sha256(content), sorted(self._provisional.intersection(self._plan.rows(part))))


@dataclass(frozen=True, eq=False)
class _MappedEmbeddings(Embeddings):
    """Memory-mapped embeddings. Their values were checked when they were written."""

    mapped: mmap.mmap
    file: IO[bytes]
    first: int = 0  # row of the file that is row 0 of `vectors`

    def __post_init__(self) -> None:
        pass  # ids and values were checked when they were written

    def take(self, rows: Tensor) -> Tensor:
        """Return the vectors of items, read from the file: accessing a map loads up to 2 MiB around each item.

        Args:
            rows: int64 tensor of any shape, values of at least 0.

        Returns:
            (*rows.shape, k, d) tensor on the CPU.

        Raises:
            DataError: if the file was truncated after it was opened.
        """
        if not hasattr(os, "preadv"):  # Windows
            return super().take(rows)
        positions = rows.flatten().tolist()
        numbers = np.dtype(str(self.vectors.dtype).removeprefix("torch."))
        taken = np.empty((len(positions), *self.vectors.shape[1:]), dtype=numbers.newbyteorder("<"))
        size = taken[:1].nbytes
        for item, row in zip(taken, positions, strict=True):
            if os.preadv(self.file.fileno(), [item], (self.first + row) * size) != size:
                raise DataError(
                    f"{self.file.name}: truncated before row {row} after it was opened; encode the store again",
                    code="store-file-cut",
                    path=self.file.name,
                    row=row,
                )
        return torch.from_numpy(taken).unflatten(0, rows.shape)

    def part(self, start: int, stop: int) -> Embeddings:
        return replace(self, ids=self.ids[start:stop], vectors=self.vectors[start:stop], first=self.first + start)

    def release(self) -> None:
        if hasattr(mmap, "MADV_DONTNEED"):  # only on Unix
            self.mapped.madvise(mmap.MADV_DONTNEED)


def _map_embeddings(file: Path, plan: StorePlan, ids: Sequence[str]) -> Embeddings:
    shape = (plan.count, plan.vectors, plan.width)
    if plan.count == 0:  # an empty file cannot be mapped
        return Embeddings(tuple(ids), torch.zeros(shape, dtype=getattr(torch, plan.dtype)))
    opened = file.open("rb", buffering=0)
    # Copy on write, since PyTorch has no read-only tensors; writes are discarded by the next `release`.
    mapped = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_COPY)
    vectors = torch.from_numpy(np.frombuffer(mapped, dtype=plan.numbers).reshape(shape))
    return _MappedEmbeddings(tuple(ids), vectors, mapped, opened)


def _ids_match(folder: Path, plan: StorePlan) -> bool:
    try:
        return sha256((folder / IDS).read_bytes()) == plan.ids_sha256
    except OSError:
        return False


def _corrupt_store(folder: Path, reason: str) -> DataError:
    return DataError(
        f"{folder}: corrupt embedding store: {reason}; delete it and encode again",
        code="store-torn",
        path=folder,
        reason=reason,
    )
