"""Check of a corpus before training: all rows with the parsers and all images with the reader of training."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from typing import Any, Literal

import numpy as np

from ret_lightning.data.bad_rows import MAX_REPORTED, BadRow
from ret_lightning.data.checks.check_report import CheckReport, resolve_messages
from ret_lightning.data.checks.corpus_part import CorpusPart, find_repeated, plan_scans
from ret_lightning.data.checks.row_scan import (
    NO_IMAGE,
    ONE_COLOUR,
    ImageScan,
    NoTransform,
    Role,
    ScanResult,
)
from ret_lightning.data.datamodule import RetrievalDataModule
from ret_lightning.data.images.sources import ImageReader
from ret_lightning.data.layouts.subset_names import SubsetNames
from ret_lightning.data.readers.row_files import RowFiles
from ret_lightning.data.readers.source_location import ByteLocation
from ret_lightning.data.types import find_unreachable
from ret_lightning.errors import DataError
from ret_lightning.inputs.truncated_texts import find_truncated
from ret_lightning.runtime.cpu_cores import usable_cores
from ret_lightning.runtime.fork_context import fork_context
from ret_lightning.runtime.progress import progress_bar

Images = Literal["decode", "exist", "none"]

_IMAGES_PER_TASK = 128


class CorpusCheck:
    """Check of the files of a data module, which finds the problems that training and evaluation would have.

    The check continues after a problem. It needs about 32 bytes of memory per training row, twice that while rows are compared,
    and the ids of queries and candidate pools.

    Args:
        data: the data module of training, before `setup`.
        images: `decode` decodes every image, `exist` checks that the files exist, `none` skips images.
        image_share: fraction of the images that are checked, in [0, 1]; the choice is deterministic.
        workers: number of processes; None: one per core.
        progress: whether to display progress bars on stderr after two seconds.
    """

    def __init__(
        self,
        data: RetrievalDataModule,
        images: Images = "decode",
        image_share: float = 1.0,
        workers: int | None = None,
        progress: bool = True,
    ) -> None:
        self.data = data
        self.images = images
        self.image_share = image_share
        self.workers = workers or usable_cores()
        self.progress = progress
        self.report = CheckReport()
        self._parts: list[CorpusPart] = []
        self._seen = _NumberSet()
        self._bad_images: dict[int, BadRow] = {}

    def run(self) -> CheckReport:
        """Run the check.

        Returns:
            The report.

        Raises:
            ConfigError: if a setting of the data module names an unknown subset.
            DataError: if a worker process is killed.
        """
        start = time.perf_counter()
        reader = self._build_reader()
        self._plan(reader)
        try:
            self._scan(reader)
        except BrokenProcessPool as error:
            raise DataError(
                f"a worker process was killed, probably because memory ran out; free memory or decrease workers={self.workers}",
                code="check-process-killed",
                workers=self.workers,
            ) from error
        for part in self._parts:
            self._report_rows(part)
        self._report_unreachable()
        self._report_images()
        self._report_leaks()
        self._report_sides()
        self.report.rows = sum(result.rows.rows for part in self._parts for result in part.results)
        self.report.seconds = round(time.perf_counter() - start, 3)
        return self.report

    def _build_reader(self) -> ImageReader | None:
        if self.images == "none":
            return None
        try:
            source = self.data.layout.image_source()
        except DataError as error:
            self.report.add(self.report.problems, "images", error.kind, [error.message])
            return None
        return ImageReader(source, NoTransform(self.data.image_transform), self.data.max_image_pixels)

    def _plan(self, reader: ImageReader | None) -> None:
        """Plan the scans of all files, and report missing files."""
        files, chosen = self.data.layout, self.data.subset_names
        found = files.subsets()
        names = found if chosen is None else chosen
        if not names:
            self._find_files("test", lambda: files.query_files((*files.evaluated_subsets, "any")[0], "test"))
        row_reader = reader if self.images == "decode" else None
        subsets = SubsetNames((*files.known_subsets(), *names))
        if training := self._find_files("training", files.training_files):
            try:
                subsets = self.data.training_names(names)
            except DataError as error:
                self.report.add(self.report.problems, "training", "no_rows", [error.message])
            self._add_part("training", "training", training, subsets, row_reader)
        for name in names:
            sides: list[tuple[str, Role, Callable[[], RowFiles]]] = [
                (f"test/{name} queries", "queries", partial(files.query_files, name, "test")),
                (f"test/{name} pool", "pool", partial(files.passage_files, name)),
            ]
            validation = self.data.validation
            if validation == "val" or (validation == "auto" and files.has_validation(name)):
                sides.append((f"val/{name} queries", "queries", partial(files.query_files, name, "val")))
            for part, role, rows in sides:
                if found_rows := self._find_files(part, rows):
                    self._add_part(part, role, found_rows, name, row_reader)
        for name in files.pools():
            if name not in found and (chosen is None or name in chosen):
                self._find_files(f"test/{name} queries", partial(files.query_files, name, "test"))

    def _find_files(self, where: str, files: Callable[[], RowFiles]) -> RowFiles | None:
        try:
            return files()
        except DataError as error:
            message = error.message
            if not any(finding.first == [message] for finding in self.report.problems):
                kind = error.kind if error.kind == "lfs_pointer" else "missing_file"
                self.report.add(self.report.problems, where, kind, [message])
            return None

    def _add_part(
        self, name: str, role: Role, files: RowFiles, subset: str | SubsetNames, reader: ImageReader | None
    ) -> None:
        parser, extra = self.data.layout.parser, self.data.extra_columns
        try:
            self._parts.append(
                CorpusPart(name, role, files, list(plan_scans(files, role, subset, reader, parser=parser, extra=extra)))
            )
        except DataError as error:
            self.report.add(self.report.problems, name, "broken_file", [error.message])

    def _scan(self, reader: ImageReader | None) -> None:
        """Scan all spans and images with the worker processes."""
        scans = ((part, i, scan, size) for part in self._parts for i, (scan, size) in enumerate(part.scans))
        image_scans: deque[ImageScan] = deque()
        running: dict[Future[Any], tuple[Any, ...]] = {}
        total = sum(size for part in self._parts for _, size in part.scans)
        bar_options = {"disable": not self.progress, "delay": 2, "mininterval": 1}
        with (
            ProcessPoolExecutor(self.workers, fork_context()) as pool,
            progress_bar(desc="rows", total=total, unit="B", unit_scale=True, **bar_options) as row_bar,
            progress_bar(desc="images", total=0, unit="image", unit_scale=True, **bar_options) as image_bar,
        ):
            while True:
                # Images first, because waiting image tasks are kept in memory.
                while len(running) < 2 * self.workers:
                    if image_scans:
                        image_scan = image_scans.popleft()
                        running[pool.submit(image_scan)] = (image_scan,)
                    elif (next_scan := next(scans, None)) is not None:
                        running[pool.submit(next_scan[2])] = next_scan
                    else:
                        break
                if not running:
                    return
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    job = running.pop(future)
                    result = future.result()
                    if len(job) == 1:
                        self._bad_images.update(result)
                        image_bar.update(len(job[0].images))
                        continue
                    part, number, _, size = job
                    part.results[number] = result
                    row_bar.update(size)
                    if reader:
                        image_scans.extend(self._plan_images(result, reader))
                        image_bar.total = self.report.images
                    result.paths = {}

    def _plan_images(self, result: ScanResult, reader: ImageReader) -> Iterator[ImageScan]:
        labels = np.array(list(result.paths), np.int64)
        labels = labels[labels < self.image_share * 2.0**63]
        new = self._seen.add(labels)
        self.report.images += len(new)
        for start in range(0, len(new), _IMAGES_PER_TASK):
            images = [(key, *result.paths[key]) for key in new[start : start + _IMAGES_PER_TASK].tolist()]
            yield ImageScan(reader, self.images == "decode", images)

    def _report_rows(self, part: CorpusPart) -> None:
        report = self.report
        broken = [result.broken for result in part.results if result.broken]
        report.add(report.problems, part.name, "broken_file", resolve_messages(broken))
        rows = part.merge_tallies("rows")
        report.add_tally(report.problems, part.name, rows)
        if rows.rows == rows.bad and not broken:
            report.add(report.problems, part.name, "no_rows", [f"{part.files}: no valid rows"])
        report.add_tally(report.problems, part.name, part.merge_tallies("problems"))
        report.add_tally(report.notes, part.name, part.merge_tallies("notes"))
        if part.role == "training":
            ids = part.concatenate("data_ids")
            again = len(ids) - len(np.unique(ids))
            report.add(report.notes, part.name, "repeated_data_id", [], again)
            return
        field_name = "passage_ids" if part.role == "pool" else "data_id_texts"
        values = part.collect(field_name)
        twice = find_repeated(values)
        reported = part.locations([position for pair in twice[:MAX_REPORTED] for position in pair])
        messages = [
            f"{location}: {'passage_id' if part.role == 'pool' else 'data_id'} {values[pair[0]]!r} occurs twice in the file, "
            f"first in line {first.line}"
            for pair, location, first in zip(twice, reported[::2], reported[1::2], strict=False)
        ]
        report.add(report.problems, part.name, "duplicate_id", messages, len(twice))

    def _report_unreachable(self) -> None:
        """Report queries without a positive in the candidate pool, and ids of mixed types."""
        pools = {part.name.split("/")[1].removesuffix(" pool"): part for part in self._parts if part.role == "pool"}
        for part in self._parts:
            pool = pools.get(part.name.split("/")[-1].removesuffix(" queries")) if part.role == "queries" else None
            if pool is None:
                continue
            positives = part.collect("positives")
            unreachable = find_unreachable(positives, set(pool.collect("passage_ids")))
            messages = [
                f"{location}: no positive of the query is in the candidate pool: {', '.join(positives[position][:5])}"
                for position, location in zip(unreachable, part.locations(unreachable[:MAX_REPORTED]), strict=False)
            ]
            self.report.add(self.report.problems, part.name, "unreachable_query", messages, len(unreachable))
            numbers = [sum(result.number_ids for result in side.results) for side in (part, pool)]
            totals = [sum(len(result.positions) for result in side.results) for side in (part, pool)]
            if 0 < sum(numbers) < sum(totals):
                message = (
                    f"passage_id is a number in {numbers[0]} of {totals[0]} queries and {numbers[1]} of {totals[1]} passages, "
                    "and a string in the others; ids are compared as strings"
                )
                self.report.add(self.report.notes, part.name, "ids_of_two_types", [message])

    def _report_images(self) -> None:
        kinds: dict[str, list[int]] = {}
        for key, row in self._bad_images.items():
            kinds.setdefault(row.kind, []).append(key)
        for kind, keys in sorted(kinds.items()):
            bad = np.array(sorted(keys), np.int64)
            uses = sum(
                int(np.isin(part.concatenate(side), bad).sum())
                for part in self._parts
                for side in ("images", "query_images")
            )
            rows = sorted((self._bad_images[key] for key in keys), key=_file_and_position)
            findings, share = self.report.problems, ""
            if kind == ONE_COLOUR:
                findings, share = (
                    self.report.notes,
                    f" of {self.report.images} images ({len(keys) / self.report.images:.2%})",
                )
            summary = f"{share}, referenced {uses} time{'s' * (uses != 1)} by the rows"
            self.report.add(findings, "images", kind, resolve_messages(rows[:MAX_REPORTED]), len(keys), summary)

    def _report_leaks(self) -> None:
        """Report queries of evaluation whose data_id or image also occurs in training rows."""
        training = next((part for part in self._parts if part.role == "training"), None)
        if training is None:
            return
        for part in (part for part in self._parts if part.role == "queries"):
            ids = part.collect("data_id_texts")
            for attribute, what in (("data_ids", "data_id"), ("query_images", "image")):
                own = part.concatenate(attribute)
                leaked = np.flatnonzero(np.isin(own, training.concatenate(attribute)) & (own != NO_IMAGE)).tolist()
                messages = [
                    f"{location}: the {what} of query {ids[position]!r} also occurs in a training row"
                    for position, location in zip(leaked, part.locations(leaked[:MAX_REPORTED]), strict=False)
                ]
                self.report.add(self.report.notes, part.name, f"{what}_in_training", messages, len(leaked))

    def _report_sides(self) -> None:
        truncated_fraction = self._build_truncated_fraction()
        for part in self._parts:
            for (subset, side), counts in sorted(part.merge_sides().items()):
                name = f"training {side}" if part.role == "training" else part.name.replace(f"/{subset}", "")
                self.report.add_side(name, subset, counts, truncated_fraction)

    def _build_truncated_fraction(self) -> Callable[[list[str]], float] | None:
        """Return a function from texts to the fraction that is truncated; None if the tokenizer has no `max_length`."""
        tokenizer: Any = self.data.tokenizer
        if not hasattr(tokenizer, "max_length"):
            return None
        return lambda texts: sum(find_truncated(tokenizer, texts)) / len(texts)


def _file_and_position(row: BadRow) -> tuple[str, int]:
    location = row.location
    return str(location.file), location.byte if isinstance(location, ByteLocation) else location.line


class _NumberSet:
    """A growing set of int64 numbers that needs eight bytes per number."""

    def __init__(self) -> None:
        self._old = np.zeros(0, np.int64)
        self._new = np.zeros(0, np.int64)  # merged into `_old` when it grows

    def add(self, labels: np.ndarray) -> np.ndarray:
        """Add numbers, which must be distinct, and return those that were not in the set, in their order."""
        labels = labels[~(_is_in(labels, self._old) | _is_in(labels, self._new))]
        self._new = np.sort(np.concatenate([self._new, labels]))
        if len(self._new) > max(100_000, len(self._old) // 8):
            self._old, self._new = np.sort(np.concatenate([self._old, self._new])), np.zeros(0, np.int64)
        return labels


def _is_in(labels: np.ndarray, values: np.ndarray) -> np.ndarray:
    if len(values) == 0:
        return np.zeros(len(labels), bool)
    return values[np.searchsorted(values, labels).clip(max=len(values) - 1)] == labels
