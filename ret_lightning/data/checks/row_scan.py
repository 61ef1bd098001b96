"""Scans of rows and images for problems, with the parsers and the image reader of training."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, cast

import numpy as np

from ret_lightning.data.bad_rows import BadRow, DeferredLocation, Tally
from ret_lightning.data.batch import hash_text
from ret_lightning.data.images.archive_index import normalize_member_name
from ret_lightning.data.images.sources import ImageReader
from ret_lightning.data.layouts.subset_names import UNKNOWN, SubsetNames
from ret_lightning.data.readers.fields import Content
from ret_lightning.data.readers.row_files import FileSpan, RowFiles
from ret_lightning.data.readers.source_location import Location, SourceLocation
from ret_lightning.data.rows import M2KR_ROWS, ExtraColumns, Passage, Query, RowParser
from ret_lightning.errors import DataError
from ret_lightning.inputs.items import Side

Role = Literal["training", "queries", "pool"]

NO_IMAGE = -1  # instead of a hash, which is never negative
ONE_COLOUR = "one_colour_image"  # kind of a note
SAMPLED = 50  # texts per subset and side that a scan returns
_TEXTS = ("instruction", "question", "passage_text")


@dataclass
class SideCounts:
    """Counts of the queries or the passages of a subset.

    Attributes:
        rows: number of valid rows.
        with_text: number of valid rows with a text.
        with_image: number of valid rows with an image.
        characters: total length of the texts, in characters.
        sample: some of the texts.
    """

    rows: int = 0
    with_text: int = 0
    with_image: int = 0
    characters: int = 0
    sample: list[str] = field(default_factory=list)

    def add(self, side: Query | Passage, sampled: bool) -> None:
        """Count the query or the passage of a row.

        Args:
            side: the query or passage.
            sampled: whether to keep its text in `sample`, up to `SAMPLED` texts.
        """
        self.rows += 1
        self.with_image += side.image is not None
        if side.text is not None:
            self.with_text += 1
            self.characters += len(side.text)
            if sampled and len(self.sample) < SAMPLED:
                self.sample.append(side.text)

    def update(self, other: SideCounts, max_sample: int) -> None:
        """Add the counts of later rows.

        Args:
            other: counts of later rows.
            max_sample: number of texts that `sample` keeps at most.
        """
        self.rows += other.rows
        self.with_text += other.with_text
        self.with_image += other.with_image
        self.characters += other.characters
        self.sample += other.sample[: max(0, max_sample - len(self.sample))]


_Numbers: TypeAlias = Any  # list[int] during the scan, (n,) int64 array after it


@dataclass
class ScanResult:
    """Result of a `RowScan`. Attributes other than the tallies describe the valid rows only.

    Attributes:
        rows: number of rows, and of bad rows by kind.
        problems: other problems by kind.
        notes: other findings by kind.
        sides: counts by subset and side, `query` or `passage`.
        data_ids: (rows,) int64, `hash_text` of the data_ids of training rows and queries.
        data_id_texts: data_ids of queries.
        passage_ids: passage ids of a candidate pool.
        positives: ids of the positives of queries.
        positions: (rows,) int64, `RawRow.position` of each row.
        number_ids: number of rows whose passage id is a number; of several ids the first counts.
        query_images: (rows,) int64, `hash_image_path` of the images of training rows and queries; NO_IMAGE without an image.
        images: (n,) int64, `hash_image_path` of the images of all passages that have one.
        paths: hash of an image path to the path, the subset and the source location of the first row that names it.
        broken: error that stopped the scan before the end of the span.
    """

    rows: Tally = field(default_factory=Tally)
    problems: Tally = field(default_factory=Tally)
    notes: Tally = field(default_factory=Tally)
    sides: dict[tuple[str, str], SideCounts] = field(default_factory=dict)
    data_ids: _Numbers = field(default_factory=list)
    data_id_texts: list[str] = field(default_factory=list)
    passage_ids: list[str] = field(default_factory=list)
    positives: list[tuple[str, ...]] = field(default_factory=list)
    positions: _Numbers = field(default_factory=list)
    number_ids: int = 0
    images: _Numbers = field(default_factory=list)
    query_images: _Numbers = field(default_factory=list)
    paths: dict[int, tuple[str, str, Location]] = field(default_factory=dict)
    broken: BadRow | None = None


@dataclass(frozen=True)
class RowScan:
    """A task for a worker process that reads a span of rows and returns a `ScanResult`.

    Attributes:
        files: the files of the span.
        span: the span to read.
        role: role of the rows.
        subset: subset of the rows, or the rule that returns the subset of a training row.
        reader: reader of images that are stored in the rows; None: they are not checked.
        sampled: whether to return a sample of the texts.
        parser: parser of the rows.
        extra: further fields of training rows that are passed to the loss.
    """

    files: RowFiles
    span: FileSpan
    role: Role
    subset: str | SubsetNames
    reader: ImageReader | None
    sampled: bool
    parser: RowParser = M2KR_ROWS
    extra: ExtraColumns | None = None

    def __call__(self) -> ScanResult:
        """Scan the span. Errors in the files are part of the result and are not raised."""
        result = ScanResult()
        location: Location = SourceLocation(self.files.paths[self.span.file], 1)
        try:
            for raw in self.files.read(self.span):
                location = self.files.location(raw)
                result.rows.rows += 1
                try:
                    self._add(result, raw.content, location, raw.position)
                except DataError as error:
                    result.rows.add(BadRow.of(error, location))
        except DataError as error:
            result.broken = BadRow("broken_file", error.message, location)
        for name in ("data_ids", "positions", "images", "query_images"):
            setattr(result, name, np.array(getattr(result, name), np.int64))
        return result

    def _add(self, result: ScanResult, content: Content, location: Location, position: int) -> None:
        deferred = DeferredLocation(location)
        fields = self.parser.fields(content, cast(Location, deferred))
        values = fields.values
        query: Query | None
        passages: tuple[Passage, ...]
        if self.role == "training":
            pair = self.parser.pair(fields, self.extra)
            query, passages = pair.query, (pair.passage, *pair.negatives)
            subset = cast(SubsetNames, self.subset)(query.subset, query.data_id)
            if subset == UNKNOWN:
                result.notes.add(
                    BadRow("unknown_subset", f"{deferred}: data_id {query.data_id!r} does not name a subset", location)
                )
        else:
            query = self.parser.query(fields) if self.role == "queries" else None
            passages = (self.parser.passage(fields),) if self.role == "pool" else ()
            subset = str(self.subset)
        sides: list[tuple[Side, Query | Passage]] = [] if query is None else [("query", query)]
        sides += [("passage", passage) for passage in passages]
        if self.reader:  # before the counts, because a broken image makes it a bad row
            for _, side in sides:
                if isinstance(side.image, bytes):
                    self._check_image(result, side.image, deferred, location, subset)
        for name in _TEXTS:
            if isinstance(values.get(name), str) and not values[name].strip():
                result.notes.add(BadRow("empty_text", f"{deferred}: field {name} is blank", location))
        for name, side in sides:
            result.sides.setdefault((subset, name), SideCounts()).add(side, self.sampled)
            key = hash_image_path(side.image_path) if side.image_path else NO_IMAGE
            if name == "query":
                result.query_images.append(key)
            elif key != NO_IMAGE:
                result.images.append(key)
            if side.image_path:
                result.paths.setdefault(key, (side.image_path, subset, location))
        result.positions.append(position)
        if self.role == "pool":
            result.passage_ids.append(passages[0].passage_id)
            if passages[0].text is None and passages[0].image is None:
                result.problems.add(BadRow("empty_text", f"{deferred}: passage has neither text nor image", location))
        if query is not None:
            result.data_ids.append(hash_text(query.data_id))
        if query is not None and self.role == "queries":
            result.data_id_texts.append(query.data_id)
            result.positives.append(query.passage_ids)
        named = values["passage_id"]
        named = named[0] if isinstance(named, list) else named
        result.number_ids += not isinstance(named, str)

    def _check_image(
        self,
        result: ScanResult,
        image: bytes,
        deferred: DeferredLocation,
        location: Location,
        subset: str,
    ) -> None:
        try:
            assert self.reader is not None
            picture = self.reader(image, cast(Location, deferred), subset)
        except DataError as error:
            if self.role == "training":
                raise
            result.problems.add(BadRow.of(error, location))  # the row is used without its image
            return
        if note := _find_one_colour(picture, "in the row", location, subset):
            result.notes.add(note)


@dataclass(frozen=True)
class ImageScan:
    """A task for a worker process that checks image files.

    Attributes:
        reader: the image reader of training, without its transform.
        decoded: whether to decode the images; otherwise only their existence is checked.
        images: hash of the path, path, and subset and source location of a row that names it, for each image.
    """

    reader: ImageReader
    decoded: bool
    images: list[tuple[int, str, str, Location]]

    def __call__(self) -> dict[int, BadRow]:
        """Check the images.

        Returns:
            Hash of the path to the problem, for images with a problem and for images of one colour (kind `ONE_COLOUR`).
        """
        found = {}
        for key, path, subset, location in self.images:
            deferred = DeferredLocation(location)
            try:
                if self.decoded:
                    picture = self.reader(path, cast(Location, deferred), subset)
                    if note := _find_one_colour(picture, path, location, subset):
                        found[key] = note
                else:
                    self.reader.source.find(path)
            except DataError as error:
                text = error.message if self.decoded else f"{deferred} (subset {subset}): {error.message}"
                found[key] = BadRow(error.kind, text, location)
        return found


def _find_one_colour(picture: Any, name: str, location: Location, subset: str) -> BadRow | None:
    """Return a note if all pixels of an image are equal, otherwise None."""
    extrema = picture.getextrema()
    if any(low != high for low, high in extrema):
        return None
    colour = "".join(f"{low:02x}" for low, _ in extrema)
    deferred = DeferredLocation(location)
    return BadRow(
        ONE_COLOUR, f"{deferred} (subset {subset}): all pixels of image {name} have the colour #{colour}", location
    )


class NoTransform:
    """Identity transform of an `ImageReader` that only decodes.

    Args:
        transform: transform whose `least_side` is adopted, so that JPEGs are decoded at the same scale as in training.
    """

    def __init__(self, transform: Any) -> None:
        self.least_side = getattr(transform, "least_side", None)

    def __call__(self, image: Any) -> Any:
        """Return the image."""
        return image


def hash_image_path(path: str) -> int:
    """Return a 63-bit hash of an image path, equal for equivalent paths."""
    return hash_text(normalize_member_name(path))
