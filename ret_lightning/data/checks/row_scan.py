"""What there is to know of a stretch of rows before anything is trained on them; read by the parsers of training."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from PIL import Image

from ret_lightning.data.bad_rows import BadRow, Tally, UntoldPlace
from ret_lightning.data.batch import text_hash
from ret_lightning.data.images.archive_index import member_name
from ret_lightning.data.images.sources import ImageReader
from ret_lightning.data.layouts.subset_names import UNKNOWN, SubsetNames
from ret_lightning.data.readers.row_files import RowFiles, Stretch
from ret_lightning.data.readers.source_location import BytePlace, Place
from ret_lightning.data.rows import M2KR_ROWS, ExtraColumns, Passage, Query, RowParser
from ret_lightning.errors import DataError

Role = Literal["training", "queries", "pool"]

NO_IMAGE = -1  # in place of a hash, which is never negative
ONE_COLOUR = "one_colour_image"  # a kind of note
SAMPLED = 50  # texts of a subset and side that a stretch gives away
_TEXTS = ("instruction", "question", "passage_text")


@dataclass
class SideCounts:
    """One side of a subset's rows.

    Attributes:
        rows: good ones.
        with_text: of them.
        with_image: of them.
        characters: of all texts together.
        sample: some of the texts.
    """

    rows: int = 0
    with_text: int = 0
    with_image: int = 0
    characters: int = 0
    sample: list[str] = field(default_factory=list)

    def add(self, side: Query | Passage, sampled: bool) -> None:
        """Counts one side of a row."""
        self.rows += 1
        self.with_image += side.image is not None
        if side.text is not None:
            self.with_text += 1
            self.characters += len(side.text)
            if sampled and len(self.sample) < SAMPLED:
                self.sample.append(side.text)

    def update(self, other: SideCounts, most: int) -> None:
        """Adds what came later; keeps at most so many texts."""
        self.rows += other.rows
        self.with_text += other.with_text
        self.with_image += other.with_image
        self.characters += other.characters
        self.sample += other.sample[: max(0, most - len(self.sample))]


@dataclass
class Facts:
    """What a stretch holds; of the good rows, but for the tallies.

    Attributes:
        rows: all rows, and the bad ones by kind.
        problems: what else would go wrong, by kind.
        notes: what is worth knowing, by kind.
        sides: counts by subset and side, `query` or `passage`.
        data_ids: (rows,) int64, `text_hash` of each data_id; of training rows and queries.
        data_id_texts: the data_ids themselves; of queries.
        passage_ids: of a pool.
        positives: of queries.
        positions: (rows,) int64, where each row stands, see `RawRow`.
        number_ids: how many passage ids are numbers; a row of queries counts by its first.
        query_images: (rows,) int64, `image_label` of each query's image path, or NO_IMAGE; of training rows and queries.
        images: (n,) int64, likewise of all passages that have one.
        paths: each image once, by its label: path, subset, place of the first row.
        broken: why the stretch could not be read to its end.
    """

    rows: Tally = field(default_factory=Tally)
    problems: Tally = field(default_factory=Tally)
    notes: Tally = field(default_factory=Tally)
    sides: dict[tuple[str, str], SideCounts] = field(default_factory=dict)
    data_ids: np.ndarray | list[int] = field(default_factory=list)
    data_id_texts: list[str] = field(default_factory=list)
    passage_ids: list[str] = field(default_factory=list)
    positives: list[tuple[str, ...]] = field(default_factory=list)
    positions: np.ndarray | list[int] = field(default_factory=list)
    number_ids: int = 0
    images: np.ndarray | list[int] = field(default_factory=list)
    query_images: np.ndarray | list[int] = field(default_factory=list)
    paths: dict[int, tuple[str, str, Place | BytePlace]] = field(default_factory=dict)
    broken: BadRow | None = None


@dataclass(frozen=True)
class RowScan:
    """Reads a stretch and gives its `Facts`; to be called in another process.

    Attributes:
        files: whose stretch it is.
        stretch: to read.
        role: what the rows are.
        subset: of the rows; of training rows what tells it.
        reader: reads images that stand in the rows themselves; None: they are not looked at.
        sampled: whether texts are given away.
        parser: of the rows.
        extra: columns of training rows that the loss reads.
    """

    files: RowFiles
    stretch: Stretch
    role: Role
    subset: str | SubsetNames
    reader: ImageReader | None
    sampled: bool
    parser: RowParser = M2KR_ROWS
    extra: ExtraColumns | None = None

    def __call__(self) -> Facts:
        """Never raises for what the files hold."""
        facts = Facts()
        place: Place | BytePlace = Place(self.files.paths[self.stretch.file], 1)
        try:
            for raw in self.files.read(self.stretch):
                place = self.files.place(raw)
                facts.rows.rows += 1
                try:
                    self._add(facts, raw.content, place, raw.position)
                except DataError as error:
                    facts.rows.add(BadRow.of(error, place))
        except DataError as error:
            facts.broken = BadRow("broken_file", error.message, place)
        for name in ("data_ids", "positions", "images", "query_images"):
            setattr(facts, name, np.array(getattr(facts, name), np.int64))
        return facts

    def _add(self, facts: Facts, content: Any, place: Place | BytePlace, position: int) -> None:
        untold = UntoldPlace(place)
        fields = self.parser.fields(content, untold)
        values = fields.values
        if self.role == "training":
            row = self.parser.pair(fields, self.extra)
            query, passages = row.query, (row.passage, *row.negatives)
            subset = self.subset(query.subset, query.data_id)
            if subset == UNKNOWN:
                facts.notes.add(BadRow("unknown_subset", f"{untold}: data_id {query.data_id!r} tells no subset", place))
        else:
            row = self.parser.query(fields) if self.role == "queries" else self.parser.passage(fields)
            query, passages = (row, ()) if self.role == "queries" else (None, (row,))
            subset = self.subset
        sides = [("query", query)] * (query is not None) + [("passage", passage) for passage in passages]
        if self.reader:  # before anything is counted: it may turn out to be a bad row
            for _, side in sides:
                if isinstance(side.image, bytes):
                    self._look(facts, side.image, untold, place, subset)
        for name in _TEXTS:
            if isinstance(values.get(name), str) and not values[name].strip():
                facts.notes.add(BadRow("empty_text", f"{untold}: field {name} is an empty text", place))
        for name, side in sides:
            facts.sides.setdefault((subset, name), SideCounts()).add(side, self.sampled)
            key = image_label(side.image) if isinstance(side.image, str) else NO_IMAGE
            if name == "query":
                facts.query_images.append(key)
            elif key != NO_IMAGE:
                facts.images.append(key)
            if key != NO_IMAGE:
                facts.paths.setdefault(key, (side.image, subset, place))
        facts.positions.append(position)
        if self.role == "pool":
            facts.passage_ids.append(row.passage_id)
            if row.text is None and row.image is None:
                facts.problems.add(BadRow("empty_text", f"{untold}: the passage has neither text nor image", place))
        else:
            facts.data_ids.append(text_hash(query.data_id))
        if self.role == "queries":
            facts.data_id_texts.append(query.data_id)
            facts.positives.append(query.passage_ids)
        named = values["passage_id"]
        named = named[0] if isinstance(named, list) else named
        facts.number_ids += not isinstance(named, str)

    def _look(self, facts: Facts, image: bytes, untold: UntoldPlace, place: Place | BytePlace, subset: str) -> None:
        try:
            picture = self.reader(image, untold, subset)
        except DataError as error:
            if self.role == "training":
                raise
            facts.problems.add(BadRow.of(error, place))  # the row goes without its image
            return
        if note := _one_colour(picture, "in the row", untold, place, subset):
            facts.notes.add(note)


@dataclass(frozen=True)
class ImageLook:
    """Looks at images; to be called in another process.

    Attributes:
        reader: that of training, but without its transform.
        decoded: whether the images are decoded, or only found.
        images: label, path, subset and place of a row that names it, of each.
    """

    reader: ImageReader
    decoded: bool
    images: list[tuple[int, str, str, Place | BytePlace]]

    def __call__(self) -> dict[int, BadRow]:
        """What is wrong, by the image's label; images of one colour are of the kind `ONE_COLOUR`."""
        found = {}
        for key, path, subset, place in self.images:
            untold = UntoldPlace(place)
            try:
                if self.decoded:
                    picture = self.reader(path, untold, subset)
                    if note := _one_colour(picture, path, untold, place, subset):
                        found[key] = note
                else:
                    self.reader.source.find(path)
            except DataError as error:
                text = error.message if self.decoded else f"{untold} (subset {subset}): {error.message}"
                found[key] = BadRow(error.kind, text, place)
        return found


def _one_colour(
    picture: Image.Image, name: str, untold: UntoldPlace, place: Place | BytePlace, subset: str
) -> BadRow | None:
    """A note on an image whose pixels are all equal."""
    extrema = picture.getextrema()
    if any(low != high for low, high in extrema):
        return None
    colour = "".join(f"{low:02x}" for low, _ in extrema)
    return BadRow(ONE_COLOUR, f"{untold} (subset {subset}): all pixels of image {name} are #{colour}", place)


class Untransformed:
    """Stands for the transform of an `ImageReader` that only has to decode.

    Args:
        transform: whose `least_side` decides how a JPEG is decoded.
    """

    def __init__(self, transform: Any) -> None:
        self.least_side = getattr(transform, "least_side", None)

    def __call__(self, image: Any) -> Any:
        """The picture itself."""
        return image


def image_label(path: str) -> int:
    """Return an image's path as a number, the same for all ways to write it."""
    return text_hash(member_name(path))
