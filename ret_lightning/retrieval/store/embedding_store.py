"""Embeddings on disk: vectors in half precision (or float32) that are mapped into memory, ids, and a manifest.

    folder/vectors.f16     N x k x d float16 numbers, row by row, little-endian, nothing else; of float32, vectors.f32
    folder/ids.json        the N ids
    folder/manifest.json   fingerprint, config, shapes, checksums; written last, so a store without it is not finished

While it is being written, `plan.json` says what the store will be, and `parts/` holds a note for each finished part, with
the checksum of its rows. Rows fall into parts of equal size, and part p belongs to rank p % world; ranks write into the one
file, each at the places of its own rows, so whoever reads sees one array, whatever number of ranks made it. An interrupted
store is continued, by any number of ranks: parts whose rows agree with their note are kept. Rows that were called provisional
(their images could not be read, say) go into the finished store, but whoever creates it again gets their parts to write again,
unless he says that they would come out as they are.
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

# Rows a part: a 64th of the store, so that ranks share evenly, but no more than an interruption may cost.
MAX_PARTS, MAX_PART_ROWS = 64, 4096


class EmbeddingStore:
    """A finished store, opened for reading; `create` begins or continues one, `open` reads one.

    Attributes:
        folder: where it lies.
        plan: shapes, fingerprint and config.
        embeddings: ids and vectors; (N, k, d) float16 or float32 on the CPU, mapped into memory: nothing is read before it is
            used, and what an index has read it gives back, so a search does not end with the store in memory.
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
        """Begins a store, or goes on with one that was interrupted; of several ranks, the first before all others.

        Args:
            folder: a new or empty folder, or that of the same store.
            ids: N different strings.
            shape: (k, d).
            fingerprint: of the checkpoint.
            config: how the vectors are made; JSON.
            part_rows: rows that are written, checked and continued as one; None for automatic. A store that is there already
                keeps its own.
            batch_rows: parts are made of whole batches of so many rows.
            dtype: of the numbers on disk.

        Raises:
            StoreMismatch: if another store is in the folder.
            DataError: if files that are none of a store's are.
            ValueError: on ids or shapes that `Embeddings` would refuse, or another dtype.
        """
        if dtype not in DTYPES:
            raise ValueError(f"create: dtype must be float16 or float32, got {dtype!r}")
        folder = Path(folder)
        check_ids(tuple(ids))
        if min(shape) < 1:
            raise ValueError(f"create: shape must be (k, d), both above 0, got {tuple(shape)}")
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
                    f"{folder}: holds {others[0]!r}, which is no part of a store; choose an empty folder",
                    code="store-folder-not-empty",
                    path=folder,
                    found=others[0],
                )
        if MANIFEST not in found:
            if PLAN not in found or not _ids_match(folder, plan):
                write_text(folder / IDS, text)
                write_text(folder / PLAN, json.dumps(asdict(plan), indent=1))
            (folder / PARTS).mkdir(exist_ok=True)
            # Of full length from the start, without losing what is there.
            with open(folder / plan.vectors_file, "ab") as file:
                file.truncate(plan.count * plan.row_bytes)
        return StoreInProgress(folder, plan)

    @staticmethod
    def open(folder: str | Path, fingerprint: str | None = None, verify: bool = True) -> EmbeddingStore:
        """Opens a finished store.

        Args:
            folder: the store's.
            fingerprint: of the checkpoint whose vectors are wanted; None takes any.
            verify: compares the vectors with their checksums, which reads the file once (without keeping it in memory).

        Raises:
            DataError: if there is no store, it is not finished, torn or changed, or of another checkpoint.
        """
        folder = Path(folder)
        if not (folder / MANIFEST).exists():
            if (folder / PLAN).exists():
                plan = read_plan(folder, PLAN)
                missing = sum(not marker_file(folder, part).exists() for part in range(plan.parts))
                raise DataError(
                    f"{folder}: the store is not finished, {missing} of {plan.parts} parts are missing; "
                    "run the encoding again, it goes on where it stopped",
                    code="store-not-finished",
                    path=folder,
                    missing=missing,
                    parts=plan.parts,
                )
            raise DataError(
                f"{folder}: no store of embeddings, it has no {MANIFEST}", code="store-missing", path=folder
            )
        plan, sums = read_plan(folder, MANIFEST), read_store_json(folder / MANIFEST).get(SUMS)
        if fingerprint is not None and plan.fingerprint != fingerprint:
            raise DataError(
                f"{folder}: the store is of checkpoint {plan.fingerprint!r}, not of {fingerprint!r}; encode it again in "
                "another folder, or give the checkpoint that it was made with",
                code="store-other-checkpoint",
                path=folder,
                found=plan.fingerprint,
                expected=fingerprint,
            )
        try:
            text, size = (folder / IDS).read_bytes(), (folder / plan.vectors_file).stat().st_size
        except OSError as error:
            raise _corrupt_store(folder, f"{Path(error.filename).name} cannot be read ({error.strerror})") from None
        if sha256(text) != plan.ids_sha256:
            raise _corrupt_store(folder, f"{IDS} was changed: its checksum is not the manifest's")
        if size != plan.count * plan.row_bytes:
            raise _corrupt_store(
                folder, f"{plan.vectors_file} has {size} bytes, expected {plan.count * plan.row_bytes}"
            )
        if not isinstance(sums, list) or len(sums) != plan.parts:
            raise _corrupt_store(folder, f"{MANIFEST} has not the checksums of {plan.parts} parts")
        if verify:
            for part, wanted in enumerate(sums):
                if sha256_of_part(folder, plan, part) != wanted:
                    rows = plan.rows(part)
                    raise _corrupt_store(
                        folder,
                        f"{plan.vectors_file} was changed: the checksum of rows {rows.start} to {rows.stop - 1} is wrong",
                    )
        return EmbeddingStore(folder, plan, json.loads(text))


class StoreInProgress:
    """A store that is being written: `writer` for each rank, then `finish` once."""

    def __init__(self, folder: Path, plan: StorePlan) -> None:
        self.folder = folder
        self.plan = plan

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do."""
        return (self.folder / MANIFEST).exists()

    def writer(
        self, rank: int = 0, world: int = 1, keep_provisional: Callable[[list[int]], bool] = lambda rows: False
    ) -> StoreWriter:
        """What one of `world` ranks has to write; every row belongs to one rank, whatever was written before.

        Args:
            rank: of this process.
            world: how many there are.
            keep_provisional: called once for each complete part of this rank that has provisional rows, with these rows;
                returns whether to keep the part.

        Raises:
            ValueError: if the rank is not in [0, world).
        """
        if not 0 <= rank < world:
            raise ValueError(f"writer: rank {rank} is not in [0, {world})")
        own = [] if self.finished else range(rank, self.plan.parts, world)
        missing = []
        for part in own:
            again = provisional_rows(self.folder, part) if self._is_complete(part) else None
            if again is None or (again and not keep_provisional(again)):
                missing.append(part)
        return StoreWriter(self.folder, self.plan, missing)

    def finish(self) -> EmbeddingStore:
        """Writes the manifest, after all ranks have written; call it on one rank.

        Raises:
            DataError: naming the first part that is missing or does not agree with its checksum.
        """
        if not self.finished:
            for part in range(self.plan.parts):
                if not self._is_complete(part):
                    rows = self.plan.rows(part)
                    raise DataError(
                        f"{self.folder}: rows {rows.start} to {rows.stop - 1} are missing; run the encoding again, it goes "
                        "on where it stopped",
                        code="store-rows-missing",
                        path=self.folder,
                        first=rows.start,
                        last=rows.stop - 1,
                    )
            sums = [read_store_json(marker_file(self.folder, part))["sha256"] for part in range(self.plan.parts)]
            again = [row for part in range(self.plan.parts) for row in provisional_rows(self.folder, part)]
            manifest = {**asdict(self.plan), SUMS: sums} | ({PROVISIONAL: again} if again else {})
            write_text(self.folder / MANIFEST, json.dumps(manifest, indent=1))
        shutil.rmtree(self.folder / PARTS, ignore_errors=True)
        (self.folder / PLAN).unlink(missing_ok=True)
        return EmbeddingStore.open(self.folder, verify=False)

    def _is_complete(self, part: int) -> bool:
        """Whether a part is there as its note says; a note that is broken, or of other rows, counts as none."""
        try:
            wanted = json.loads(marker_file(self.folder, part).read_text(encoding="utf-8"))["sha256"]
        except (OSError, ValueError, KeyError, TypeError):
            return False
        return sha256_of_part(self.folder, self.plan, part) == wanted


class StoreWriter:
    """Takes the vectors of one rank's rows, in the order of `rows`, in batches of any size.

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
        """Takes the next rows; a part is on disk, with its note, as soon as it is full.

        Args:
            vectors: (n, k, d), floating point, on any device; stored in the dtype of the store.
            provisional: those of these rows, positions in `ids`, that whoever creates the store again, be it finished or not,
                may have to write again: see `StoreInProgress.writer`.

        Raises:
            ValueError: on another shape, more rows than there are, or a number that this dtype cannot hold.
        """
        plan = self._plan
        if vectors.shape[1:] != (plan.vectors, plan.width):
            raise ValueError(f"add: vectors must be (n, {plan.vectors}, {plan.width}), got {tuple(vectors.shape)}")
        numbers = vectors.detach().to("cpu", getattr(torch, plan.dtype)).numpy()
        if not np.isfinite(numbers).all():
            raise ValueError(f"add: a number is not finite, or too large for {plan.dtype}")
        left = sum(len(plan.rows(part)) for part in self._parts) - sum(map(len, self._buffer))
        if len(numbers) > left:
            raise ValueError(f"add: {len(numbers)} rows more, and only {left} are left")
        self._buffer.append(numbers)
        self._provisional.update(provisional)
        while self._parts and sum(map(len, self._buffer)) >= len(plan.rows(self._parts[0])):
            everything, size = np.concatenate(self._buffer), len(plan.rows(self._parts[0]))
            self._write(self._parts.pop(0), everything[:size])
            self._buffer = [everything[size:]]

    def _write(self, part: int, numbers: np.ndarray) -> None:
        content = np.ascontiguousarray(numbers, dtype=self._plan.numbers).tobytes()
        with open(self._folder / self._plan.vectors_file, "r+b") as file:
            file.seek(self._plan.rows(part).start * self._plan.row_bytes)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # the note must not outlive the rows when the power fails
        write_marker(self._folder, part, sha256(content), sorted(self._provisional.intersection(self._plan.rows(part))))


@dataclass(frozen=True, eq=False)
class _MappedEmbeddings(Embeddings):
    """Embeddings of a memory map; its numbers were checked when they were written."""

    mapped: mmap.mmap
    file: IO[bytes]
    first: int = 0  # the row of the file that is row 0 here

    def __post_init__(self) -> None:
        object.__setattr__(self, "ids", tuple(self.ids))

    def take(self, rows: Tensor) -> Tensor:
        """Read, not mapped: to touch a passage of 8 KiB in a map brings up to 2 MiB around it into memory."""
        if not hasattr(os, "preadv"):  # Windows
            return super().take(rows)
        places = rows.flatten().tolist()
        numbers = np.dtype(str(self.vectors.dtype).removeprefix("torch."))
        taken = np.empty((len(places), *self.vectors.shape[1:]), dtype=numbers.newbyteorder("<"))
        size = taken[:1].nbytes
        for piece, place in zip(taken, places, strict=True):
            if os.preadv(self.file.fileno(), [piece], (self.first + place) * size) != size:
                raise DataError(
                    f"{self.file.name}: ends before row {place}; it was cut short after it was opened",
                    code="store-file-cut",
                    path=self.file.name,
                    row=place,
                )
        return torch.from_numpy(taken).unflatten(0, rows.shape)

    def part(self, start: int, stop: int) -> Embeddings:
        return replace(self, ids=self.ids[start:stop], vectors=self.vectors[start:stop], first=self.first + start)

    def release(self) -> None:
        if hasattr(mmap, "MADV_DONTNEED"):  # elsewhere than on Unix the system decides alone
            self.mapped.madvise(mmap.MADV_DONTNEED)


def _map_embeddings(file: Path, plan: StorePlan, ids: Sequence[str]) -> Embeddings:
    shape = (plan.count, plan.vectors, plan.width)
    if plan.count == 0:  # an empty file cannot be mapped
        return Embeddings(ids, torch.zeros(shape, dtype=getattr(torch, plan.dtype)))
    opened = open(file, "rb", buffering=0)  # noqa: SIM115  stays open with the map, and is closed with it
    # Copy on write, since PyTorch knows no read-only tensors; what a caller writes is lost with the next `release`.
    mapped = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_COPY)
    vectors = torch.from_numpy(np.frombuffer(mapped, dtype=plan.numbers).reshape(shape))
    return _MappedEmbeddings(ids, vectors, mapped, opened)


def _ids_match(folder: Path, plan: StorePlan) -> bool:
    try:
        return sha256((folder / IDS).read_bytes()) == plan.ids_sha256
    except OSError:
        return False


def _corrupt_store(folder: Path, what: str) -> DataError:
    return DataError(
        f"{folder}: {what}; delete the store and encode it again", code="store-torn", path=folder, reason=what
    )
