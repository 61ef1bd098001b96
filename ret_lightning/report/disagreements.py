"""Queries on which variants disagree, with their texts and small images."""

from __future__ import annotations

import base64
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from omegaconf import OmegaConf
from PIL import Image

from ret_lightning.config.build import build
from ret_lightning.data.images.sources import ImageSource
from ret_lightning.data.types import EvaluationSubset, distinct_ids
from ret_lightning.errors import DataError, UserError
from ret_lightning.inputs import decode_image
from ret_lightning.report.comparison import PerQuery
from ret_lightning.report.run_folders import Run
from ret_lightning.report.variants import Variant

log = logging.getLogger(__name__)

SIDE = 144  # pixels; shown at half of it, so that it is sharp on a dense screen
_LONGEST = 220  # characters of a text


@dataclass(frozen=True)
class TestedOn:
    """What the runs were tested on, as far as it can be read here.

    Attributes:
        subsets: by name; empty where the data are not here.
        images: where image paths lead; None where the data are not here.
        missing: why not; empty where they are.
    """

    subsets: dict[str, EvaluationSubset]
    images: ImageSource | None
    missing: str


@dataclass(frozen=True)
class GalleryItem:
    """A text with an image, of a query or a passage; `image` is a data URI, or None with the reason in `note`."""

    id: str
    text: str
    image: str | None
    note: str


@dataclass(frozen=True)
class Answer:
    """What a variant made of a query: the metric's mean over seeds, of each seed, and its first seed's first passage."""

    variant: Variant
    mean: float
    by_seed: list[float]
    first: GalleryItem
    right: bool


@dataclass(frozen=True)
class Disagreement:
    """A query, what is right for it, and what each variant found."""

    subset: str
    query: GalleryItem
    gold: GalleryItem
    answers: list[Answer]


def open_test_data(run: Run) -> TestedOn:
    """The test split, by the data node of a run's config."""
    try:
        node = run.config["data"]
        # Rows are read, and no loader is made.
        unneeded = {key: None for key in ("tokenizer", "image_transform") if key in node}
        module = build(OmegaConf.create({"data": {**node, **unneeded}}).data)
        module.setup("test")
        subsets = {subset.name: subset for subset in module.evaluation_subsets("test")}
        return TestedOn(subsets, module.layout.image_source(), "")
    except UserError as error:
        reason = " ".join(error.message.split())
        log.warning("texts and images are left out: %s", reason)
        return TestedOn({}, None, reason)


def disagreements(
    variants: Sequence[Variant], queries: Mapping[str, PerQuery | str], data: TestedOn, most: int
) -> list[Disagreement]:
    """The queries whose means over seeds lie furthest apart between variants, the subsets in turn; equal ones by id.

    Args:
        variants: two or more; those that could not be judged by query are passed over, and so are those of other queries.
        queries: of each variant, by its fingerprint.
        data: their texts and images.
        most: how many to give.
    """
    judged = [(variant, found) for variant in variants if isinstance(found := queries[variant.fingerprint], PerQuery)]
    if len(judged) < 2:
        return []
    ranked: list[tuple[int, str, str]] = []  # place within the subset, subset, query
    for subset in judged[0][1].means:
        values = _by_query(judged, subset)
        spread = {q: max(own.values()) - min(own.values()) for q, own in values.items() if len(own) == len(judged)}
        order = sorted((q for q, apart in spread.items() if apart > 0), key=lambda q: (-spread[q], q))
        ranked += [(place, subset, query) for place, query in enumerate(order[:most])]
    teller = _Teller(data)
    ranked.sort(key=lambda entry: entry[0])  # stable: the subsets in turn
    return [_disagreement(judged, subset, query, teller) for _, subset, query in ranked[:most]]


def _by_query(judged: Sequence[tuple[Variant, PerQuery]], subset: str) -> dict[str, dict[str, float]]:
    values: dict[str, dict[str, float]] = {}
    for variant, found in judged:
        if subset in found.means:
            for query, value in zip(found.judged[subset][0].queries, found.means[subset].tolist(), strict=True):
                if not np.isnan(value):
                    values.setdefault(query, {})[variant.fingerprint] = value
    return values


def _disagreement(judged: Sequence[tuple[Variant, PerQuery]], subset: str, query: str, teller: _Teller) -> Disagreement:
    answers = []
    for variant, found in judged:
        runs = found.judged[subset]
        by_seed = [float(run.values[run.queries.index(query)]) for run in runs]
        at = runs[0].queries.index(query)
        best, right = runs[0].best[at], runs[0].best[at] in runs[0].positives[at]
        mean = float(found.means[subset][at])
        answers.append(Answer(variant, mean, by_seed, teller.passage(subset, best), right))
    first = judged[0][1].judged[subset][0]
    positives = first.positives[first.queries.index(query)]
    gold = teller.passage(subset, teller.known(subset, positives))
    return Disagreement(subset, teller.query(subset, query), gold, answers)


class _Teller:
    """Ids to texts and thumbnails."""

    def __init__(self, data: TestedOn) -> None:
        self.data = data
        self._rows: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {}
        self._images: dict[str, tuple[str | None, str]] = {}

    def query(self, subset: str, query: str) -> GalleryItem:
        return self._shown(query, self._of(subset)[0].get(query))

    def passage(self, subset: str, passage: str) -> GalleryItem:
        return (
            self._shown(passage, self._of(subset)[1].get(passage))
            if passage
            else GalleryItem("", "nothing found", None, "")
        )

    def known(self, subset: str, passages: Sequence[str]) -> str:
        """The first of the passages that the pool has, or else the first."""
        pool = self._of(subset)[1]
        return next((passage for passage in passages if passage in pool), passages[0] if passages else "")

    def _of(self, subset: str) -> tuple[dict[str, Any], dict[str, Any]]:
        if subset not in self._rows:
            rows = self.data.subsets.get(subset)
            queries = dict(zip(distinct_ids(rows.queries), rows.queries, strict=True)) if rows else {}
            pool = {passage.passage_id: passage for passage in rows.pool} if rows else {}
            self._rows[subset] = queries, pool
        return self._rows[subset]

    def _shown(self, name: str, row: Any) -> GalleryItem:
        if row is None:
            return GalleryItem(name, "", None, "" if self.data.missing else "not in the data")
        text = row.text or ""
        text = text if len(text) <= _LONGEST else text[:_LONGEST].rsplit(" ", 1)[0] + " …"
        image, note = self._image(row.image_path) if row.image_path else (None, "")
        return GalleryItem(name, text, image, note)

    def _image(self, path: str) -> tuple[str | None, str]:
        if path not in self._images:
            try:
                self._images[path] = thumbnail(decode_image(self.data.images.read(path), path)), ""
            except DataError as error:
                self._images[path] = None, error.kind.replace("_", " ")
        return self._images[path]


def thumbnail(image: Image.Image) -> str:
    """An RGB image as a data URI of at most `SIDE` pixels a side; small pictures stay as they are, without loss."""
    small = max(image.size) <= SIDE
    if not small:
        image = image.copy()
        image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    content = BytesIO()
    if small:
        image.save(content, "PNG", optimize=True)
    else:
        image.save(content, "JPEG", quality=80)
    return f"data:image/{'png' if small else 'jpeg'};base64,{base64.b64encode(content.getvalue()).decode()}"
