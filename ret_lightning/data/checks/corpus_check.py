"""A corpus looked at before a day of training: all rows by the parsers, all images by the reader that training uses."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Literal

import numpy as np

from ret_lightning.data.bad_rows import SHOWN, BadRow
from ret_lightning.data.checks.check_report import CheckReport, row_messages
from ret_lightning.data.checks.corpus_part import CorpusPart, repeated, row_scans
from ret_lightning.data.checks.row_scan import (
    NO_IMAGE,
    ONE_COLOUR,
    Facts,
    ImageLook,
    Role,
    Untransformed,
)
from ret_lightning.data.datamodule import RetrievalDataModule
from ret_lightning.data.images.sources import ImageReader
from ret_lightning.data.layouts.subset_names import SubsetNames
from ret_lightning.data.readers.row_files import RowFiles
from ret_lightning.data.readers.source_location import BytePlace
from ret_lightning.data.types import unreachable_queries
from ret_lightning.errors import DataError
from ret_lightning.inputs.truncated_texts import cut_texts
from ret_lightning.runtime.cpu_cores import usable_cores
from ret_lightning.runtime.fork_context import fork_context
from ret_lightning.runtime.progress import progress_bar

Images = Literal["decode", "exist", "none"]

_IMAGES_A_TASK = 128
_SIDE_OF = {"queries": "query", "pool": "passage"}


class CorpusCheck:
    """Finds whatever would go wrong in training and evaluation on a data module's files.

    It continues after every problem. Memory: some 32 bytes a training row, as much again while they are compared, and the ids
    of queries and pools.

    Args:
        data: not set up; its files, subsets, image reader and tokenizer are those of training.
        images: `decode` every image, only see whether they `exist`, or `none`.
        image_share: of the images that are looked at, always the same ones.
        workers: processes; None: one a core.
        progress: bars on stderr, for what takes more than two seconds.
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
        self._seen = _Labels()
        self._bad_images: dict[int, BadRow] = {}

    def run(self) -> CheckReport:
        """Looks at everything.

        Raises:
            ConfigError: if the data's settings name a subset that there is not.
            DataError: if a process dies.
        """
        start = time.perf_counter()
        reader = self._reader()
        self._plan(reader)
        try:
            self._scan(reader)
        except BrokenProcessPool as error:
            raise DataError(
                "a process was killed, which mostly means that memory ran out: set fewer workers",
                code="check-process-killed",
                workers=self.workers,
            ) from error
        for part in self._parts:
            self._tell_rows(part)
        self._tell_pairs()
        self._tell_images()
        self._tell_leaks()
        self._tell_sides()
        self.report.rows = sum(facts.rows.rows for part in self._parts for facts in part.facts)
        self.report.seconds = round(time.perf_counter() - start, 3)
        return self.report

    def _reader(self) -> ImageReader | None:
        if self.images == "none":
            return None
        try:
            source = self.data.layout.image_source()
        except DataError as error:
            self.report.add(self.report.problems, "images", error.kind, [error.message])
            return None
        return ImageReader(source, Untransformed(self.data.image_transform), self.data.max_image_pixels)

    def _plan(self, reader: ImageReader | None) -> None:
        """Which files there are, and which are missing."""
        files, chosen = self.data.layout, self.data.subset_names
        found = files.subsets()
        names = found if chosen is None else chosen
        if not names:
            self._missing("test", lambda: files.query_files((*files.evaluated_subsets, "any")[0], "test"))
        row_reader = reader if self.images == "decode" else None
        subsets = SubsetNames((*files.known_subsets(), *names))
        if training := self._missing("training", files.training_files):
            try:
                subsets = self.data.training_names(names)
            except DataError as error:
                self.report.add(self.report.problems, "training", "no_rows", [error.message])
            self._add_part("training", "training", training, subsets, row_reader)
        for name in names:
            sides: list[tuple[str, Role, Callable[[], RowFiles]]] = [
                (f"test/{name} queries", "queries", lambda name=name: files.query_files(name, "test")),
                (f"test/{name} pool", "pool", lambda name=name: files.passage_files(name)),
            ]
            validation = self.data.validation
            if validation == "val" or (validation == "auto" and files.has_validation(name)):
                sides.append((f"val/{name} queries", "queries", lambda name=name: files.query_files(name, "val")))
            for part, role, rows in sides:
                if found_rows := self._missing(part, rows):
                    self._add_part(part, role, found_rows, name, row_reader)
        for name in files.pools():
            if name not in found and (chosen is None or name in chosen):
                self._missing(f"test/{name} queries", lambda name=name: files.query_files(name, "test"))

    def _missing(self, where: str, files: Callable[[], RowFiles]) -> RowFiles | None:
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
                CorpusPart(name, role, files, list(row_scans(files, role, subset, reader, parser=parser, extra=extra)))
            )
        except DataError as error:
            self.report.add(self.report.problems, name, "broken_file", [error.message])

    def _scan(self, reader: ImageReader | None) -> None:
        """All stretches and images, by all processes."""
        scans = ((part, i, scan, size) for part in self._parts for i, (scan, size) in enumerate(part.scans))
        looks: deque[ImageLook] = deque()
        running: dict[Future, tuple] = {}
        total = sum(size for part in self._parts for _, size in part.scans)
        hidden = {"disable": not self.progress, "delay": 2, "mininterval": 1}
        with (
            ProcessPoolExecutor(self.workers, fork_context()) as pool,
            progress_bar(desc="rows", total=total, unit="B", unit_scale=True, **hidden) as row_bar,
            progress_bar(desc="images", total=0, unit="image", unit_scale=True, **hidden) as image_bar,
        ):
            while True:
                # Images first, and few at a time: what waits is kept in memory.
                while len(running) < 2 * self.workers:
                    if looks:
                        look = looks.popleft()
                        running[pool.submit(look)] = (look,)
                    elif (following := next(scans, None)) is not None:
                        running[pool.submit(following[2])] = following
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
                    part.facts[number] = result
                    row_bar.update(size)
                    if reader:
                        looks.extend(self._looks(result, reader))
                        image_bar.total = self.report.images
                    result.paths = {}

    def _looks(self, facts: Facts, reader: ImageReader) -> Iterator[ImageLook]:
        labels = np.array(list(facts.paths), np.int64)
        labels = labels[labels < self.image_share * 2.0**63]
        new = self._seen.add(labels)
        self.report.images += len(new)
        for start in range(0, len(new), _IMAGES_A_TASK):
            images = [(key, *facts.paths[key]) for key in new[start : start + _IMAGES_A_TASK].tolist()]
            yield ImageLook(reader, self.images == "decode", images)

    def _tell_rows(self, part: CorpusPart) -> None:
        report = self.report
        broken = [facts.broken for facts in part.facts if facts.broken]
        report.add(report.problems, part.name, "broken_file", row_messages(broken))
        rows = part.tally("rows")
        report.add_tally(report.problems, part.name, rows)
        if rows.rows == rows.bad and not broken:
            report.add(report.problems, part.name, "no_rows", [f"{part.files}: no row can be used"])
        report.add_tally(report.problems, part.name, part.tally("problems"))
        report.add_tally(report.notes, part.name, part.tally("notes"))
        if part.role == "training":
            ids = part.joined("data_ids")
            again = len(ids) - len(np.unique(ids))
            report.add(report.notes, part.name, "repeated_data_id", [], again)
            return
        field_name = "passage_ids" if part.role == "pool" else "data_id_texts"
        values = part.listed(field_name)
        twice = repeated(values)
        shown = part.places([position for pair in twice[:SHOWN] for position in pair])
        messages = [
            f"{place}: {'passage_id' if part.role == 'pool' else 'data_id'} {values[pair[0]]!r} stands in the file twice, "
            f"first in line {first.line}"
            for pair, place, first in zip(twice, shown[::2], shown[1::2], strict=False)
        ]
        report.add(report.problems, part.name, "duplicate_id", messages, len(twice))

    def _tell_pairs(self) -> None:
        """Queries against their pools."""
        pools = {part.name.split("/")[1].removesuffix(" pool"): part for part in self._parts if part.role == "pool"}
        for part in self._parts:
            pool = pools.get(part.name.split("/")[-1].removesuffix(" queries")) if part.role == "queries" else None
            if pool is None:
                continue
            positives = part.listed("positives")
            lost = unreachable_queries(positives, set(pool.listed("passage_ids")))
            messages = [
                f"{place}: none of the query's passages is in the pool: {', '.join(positives[position][:5])}"
                for position, place in zip(lost, part.places(lost[:SHOWN]), strict=False)
            ]
            self.report.add(self.report.problems, part.name, "unreachable_query", messages, len(lost))
            numbers = [sum(facts.number_ids for facts in side.facts) for side in (part, pool)]
            totals = [sum(len(facts.positions) for facts in side.facts) for side in (part, pool)]
            if 0 < sum(numbers) < sum(totals):
                message = (
                    f"passage_id is a number in {numbers[0]} of {totals[0]} queries and {numbers[1]} of {totals[1]} passages, "
                    "else a string; they are compared as strings"
                )
                self.report.add(self.report.notes, part.name, "ids_of_two_types", [message])

    def _tell_images(self) -> None:
        kinds: dict[str, list[int]] = {}
        for key, row in self._bad_images.items():
            kinds.setdefault(row.kind, []).append(key)
        for kind, keys in sorted(kinds.items()):
            bad = np.array(sorted(keys), np.int64)
            uses = sum(
                int(np.isin(part.joined(side), bad).sum())
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
            summary = f"{share}, named in {uses} {'place' if uses == 1 else 'places'} of the rows"
            self.report.add(findings, "images", kind, row_messages(rows[:SHOWN]), len(keys), summary)

    def _tell_leaks(self) -> None:
        """Queries of evaluation that stand in training, too."""
        training = next((part for part in self._parts if part.role == "training"), None)
        if training is None:
            return
        for part in (part for part in self._parts if part.role == "queries"):
            ids = part.listed("data_id_texts")
            for attribute, what in (("data_ids", "data_id"), ("query_images", "image")):
                own = part.joined(attribute)
                leaked = np.flatnonzero(np.isin(own, training.joined(attribute)) & (own != NO_IMAGE)).tolist()
                messages = [
                    f"{place}: the {what} of query {ids[position]!r} is that of a training row, too"
                    for position, place in zip(leaked, part.places(leaked[:SHOWN]), strict=False)
                ]
                self.report.add(self.report.notes, part.name, f"{what}_in_training", messages, len(leaked))

    def _tell_sides(self) -> None:
        for part in self._parts:
            for (subset, side), counts in sorted(part.sides().items()):
                name = f"training {side}" if part.role == "training" else part.name.replace(f"/{subset}", "")
                self.report.add_side(name, subset, counts, self._share_cut())

    def _share_cut(self) -> Callable[[list[str]], float] | None:
        """What tells the share of texts that the tokenizer cuts; None for one that does not tell its limit."""
        tokenizer = self.data.tokenizer
        if not hasattr(tokenizer, "max_length"):
            return None
        return lambda texts: sum(cut_texts(tokenizer, texts)) / len(texts)


def _file_and_position(row: BadRow) -> tuple[str, int]:
    place = row.place
    return str(place.file), place.byte if isinstance(place, BytePlace) else place.line


class _Labels:
    """A growing set of numbers, eight bytes each."""

    def __init__(self) -> None:
        self._old = np.zeros(0, np.int64)
        self._new = np.zeros(0, np.int64)  # merged into the others when there are many

    def add(self, labels: np.ndarray) -> np.ndarray:
        """Takes different numbers; gives those that it did not have, in their order."""
        labels = labels[~(_among(labels, self._old) | _among(labels, self._new))]
        self._new = np.sort(np.concatenate([self._new, labels]))
        if len(self._new) > max(100_000, len(self._old) // 8):
            self._old, self._new = np.sort(np.concatenate([self._old, self._new])), np.zeros(0, np.int64)
        return labels


def _among(labels: np.ndarray, those: np.ndarray) -> np.ndarray:
    if len(those) == 0:
        return np.zeros(len(labels), bool)
    return those[np.searchsorted(those, labels).clip(max=len(those) - 1)] == labels
