"""Queries on which variants disagree, with their texts and thumbnails."""

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
from ret_lightning.data.rows import Passage, Query
from ret_lightning.data.types import EvaluationSubset, distinct_ids
from ret_lightning.errors import DataError, UserError
from ret_lightning.inputs import decode_image
from ret_lightning.report.comparison import VariantScores
from ret_lightning.report.run_folders import Run
from ret_lightning.report.variants import Variant

log = logging.getLogger(__name__)

THUMBNAIL_SIZE = 144  # pixels; displayed at half this size, for screens with two pixels per CSS pixel
_MAX_TEXT_LENGTH = 220  # characters


@dataclass(frozen=True)
class GalleryData:
    """Texts and images of the test split.

    Attributes:
        subsets: by name; empty if the dataset cannot be read.
        images: source of the images; None if the dataset cannot be read.
        missing: why the dataset cannot be read; empty otherwise.
    """

    subsets: dict[str, EvaluationSubset]
    images: ImageSource | None
    missing: str


@dataclass(frozen=True)
class GalleryItem:
    """A query or passage of the gallery.

    Attributes:
        id: of the row.
        text: shortened text.
        image: thumbnail as a data URI; None if there is no image.
        note: why the image is missing; empty otherwise.
    """

    id: str
    text: str
    image: str | None
    note: str


@dataclass(frozen=True)
class VariantResult:
    """The result of a variant for one query.

    Attributes:
        variant: the variant.
        mean: the metric's mean over seeds.
        by_seed: the metric of each seed.
        first: the top-ranked passage of the first seed.
        correct: whether that passage is relevant.
    """

    variant: Variant
    mean: float
    by_seed: list[float]
    first: GalleryItem
    correct: bool


@dataclass(frozen=True)
class Disagreement:
    """A query, its relevant passage, and the result of each variant."""

    subset: str
    query: GalleryItem
    gold: GalleryItem
    results: list[VariantResult]


def load_gallery_data(run: Run) -> GalleryData:
    """Load texts and images of the test split that a run's config names; log a warning if they cannot be read."""
    try:
        node = run.config["data"]
        # No loader is built, so that tokenizer and image transform are not needed.
        unneeded = {key: None for key in ("tokenizer", "image_transform") if key in node}
        module = build(OmegaConf.create({"data": {**node, **unneeded}}).data)
        module.setup("test")
        subsets = {subset.name: subset for subset in module.evaluation_subsets("test")}
        return GalleryData(subsets, module.layout.image_source(), "")
    except UserError as error:
        reason = " ".join(error.message.split())
        log.warning("the gallery has no texts and images: %s", reason)
        return GalleryData({}, None, reason)


def find_disagreements(
    variants: Sequence[Variant], scores: Mapping[str, VariantScores | str], data: GalleryData, limit: int
) -> list[Disagreement]:
    """Find the queries with the largest spread of the metric between variants.

    The subsets take turns, each from its largest spread to its smallest; ties are ordered by query id. Queries that not all
    variants have, and variants without scores, are left out.

    Args:
        variants: two or more.
        scores: fingerprint of a variant to its scores, from `score_variants`.
        data: texts and images of the queries and passages.
        limit: largest number of queries.
    """
    scored = [
        (variant, found) for variant in variants if isinstance(found := scores[variant.fingerprint], VariantScores)
    ]
    if len(scored) < 2:
        return []
    ranked: list[tuple[int, str, str]] = []  # rank within the subset, subset, query
    for subset in scored[0][1].means:
        values = _by_query(scored, subset)
        spread = {q: max(own.values()) - min(own.values()) for q, own in values.items() if len(own) == len(scored)}
        order = sorted((q for q, difference in spread.items() if difference > 0), key=lambda q: (-spread[q], q))
        ranked += [(rank, subset, query) for rank, query in enumerate(order[:limit])]
    items = _GalleryItems(data)
    ranked.sort(key=lambda entry: entry[0])  # stable, so that the subsets take turns
    return [_disagreement(scored, subset, query, items) for _, subset, query in ranked[:limit]]


def _by_query(scored: Sequence[tuple[Variant, VariantScores]], subset: str) -> dict[str, dict[str, float]]:
    values: dict[str, dict[str, float]] = {}
    for variant, found in scored:
        if subset in found.means:
            for query, value in zip(found.by_run[subset][0].queries, found.means[subset].tolist(), strict=True):
                if not np.isnan(value):
                    values.setdefault(query, {})[variant.fingerprint] = value
    return values


def _disagreement(
    scored: Sequence[tuple[Variant, VariantScores]], subset: str, query: str, items: _GalleryItems
) -> Disagreement:
    results = []
    for variant, found in scored:
        runs = found.by_run[subset]
        by_seed = [float(run.values[run.queries.index(query)]) for run in runs]
        at = runs[0].queries.index(query)
        best, correct = runs[0].best[at], runs[0].best[at] in runs[0].positives[at]
        mean = float(found.means[subset][at])
        results.append(VariantResult(variant, mean, by_seed, items.passage(subset, best), correct))
    first = scored[0][1].by_run[subset][0]
    positives = first.positives[first.queries.index(query)]
    gold = items.passage(subset, items.first_in_pool(subset, positives))
    return Disagreement(subset, items.query(subset, query), gold, results)


class _GalleryItems:
    """Builds gallery items from ids, with cached rows and thumbnails."""

    def __init__(self, data: GalleryData) -> None:
        self.data = data
        self._rows: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {}
        self._images: dict[str, tuple[str | None, str]] = {}

    def query(self, subset: str, query: str) -> GalleryItem:
        return self._item(query, self._rows_of(subset)[0].get(query))

    def passage(self, subset: str, passage: str) -> GalleryItem:
        if not passage:
            return GalleryItem("", "nothing found", None, "")
        return self._item(passage, self._rows_of(subset)[1].get(passage))

    def first_in_pool(self, subset: str, passages: Sequence[str]) -> str:
        """Return the first passage that is in the candidate pool, else the first one; "" if there is none."""
        pool = self._rows_of(subset)[1]
        return next((passage for passage in passages if passage in pool), passages[0] if passages else "")

    def _rows_of(self, subset: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return queries and candidate pool of a subset, by id."""
        if subset not in self._rows:
            rows = self.data.subsets.get(subset)
            queries = dict(zip(distinct_ids(rows.queries), rows.queries, strict=True)) if rows else {}
            pool = {passage.passage_id: passage for passage in rows.pool} if rows else {}
            self._rows[subset] = queries, pool
        return self._rows[subset]

    def _item(self, name: str, row: Query | Passage | None) -> GalleryItem:
        if row is None:
            return GalleryItem(name, "", None, "" if self.data.missing else "not in the dataset")
        text = row.text or ""
        text = text if len(text) <= _MAX_TEXT_LENGTH else text[:_MAX_TEXT_LENGTH].rsplit(" ", 1)[0] + " …"
        image, note = self._image(row.image_path) if row.image_path else (None, "")
        return GalleryItem(name, text, image, note)

    def _image(self, path: str) -> tuple[str | None, str]:
        assert self.data.images is not None  # rows that name an image come from a dataset that was read
        if path not in self._images:
            try:
                self._images[path] = thumbnail(decode_image(self.data.images.read(path), path)), ""
            except DataError as error:
                self._images[path] = None, error.kind.replace("_", " ")
        return self._images[path]


def thumbnail(image: Image.Image) -> str:
    """Encode an image as a data URI, at most `THUMBNAIL_SIZE` pixels per side.

    Args:
        image: RGB. It is not changed.

    Returns:
        A JPEG of a larger image, reduced; a lossless PNG of an image that is small enough.
    """
    small = max(image.size) <= THUMBNAIL_SIZE
    if not small:
        image = image.copy()
        image.thumbnail((THUMBNAIL_SIZE, THUMBNAIL_SIZE), Image.Resampling.LANCZOS)
    content = BytesIO()
    if small:
        image.save(content, "PNG", optimize=True)
    else:
        image.save(content, "JPEG", quality=80)
    return f"data:image/{'png' if small else 'jpeg'};base64,{base64.b64encode(content.getvalue()).decode()}"
