"""Gallery of a report: selection of queries, texts and thumbnails."""

from __future__ import annotations

import base64
import shutil
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ret_lightning.report import disagreements as gallery
from ret_lightning.report.comparison import score_variants
from ret_lightning.report.disagreements import THUMBNAIL_SIZE, find_disagreements, thumbnail
from ret_lightning.report.report import write_report
from ret_lightning.report.run_folders import find_runs
from ret_lightning.report.variants import group_runs
from tests.support.report_page import page_of
from tests.support.report_runs import SUBSETS, make_run


def test_gallery_images_equal_dataset_images(report: Path, corpus: Path) -> None:
    originals = {Image.open(file).tobytes() for file in corpus.glob("images/m2kr/images/sub/*.png")}
    for image in page_of(report).images:
        embedded = Image.open(BytesIO(base64.b64decode(image.partition(",")[2])))
        assert embedded.tobytes() in originals


def test_gallery_without_dataset_has_no_images(tmp_path: Path) -> None:
    make_run(tmp_path / "runs/0", "gate=lstm", skill=0.1)
    make_run(tmp_path / "runs/1", "gate=none", skill=0.9)
    write_report(tmp_path / "runs", tmp_path / "out", gallery=3)
    page = page_of(tmp_path / "out")
    assert page.images == []
    assert "Texts and images are not available: data.root=/no/such/corpus: no such folder" in page.text
    assert page.text.count("relevant passage:") == 3


def test_missing_image_is_noted(corpus: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(corpus, tmp_path / "m2kr")
    for i in range(12):
        (copy / f"images/m2kr/images/sub/{i}.png").unlink()
    make_run(tmp_path / "runs/0", "gate=lstm", root=copy, skill=0.1)
    make_run(tmp_path / "runs/1", "gate=none", root=copy, skill=0.9)
    write_report(tmp_path / "runs", tmp_path / "out")
    page = page_of(tmp_path / "out")
    assert page.images == []
    assert "missing image" in page.text


def decode_uri(uri: str) -> Image.Image:
    kind, _, content = uri.partition(";base64,")
    image = Image.open(BytesIO(base64.b64decode(content)))
    assert kind == f"data:image/{image.format.lower()}"
    return image


def test_thumbnail_is_lossless_or_reduced() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (THUMBNAIL_SIZE, THUMBNAIL_SIZE - 10, 3), dtype=np.uint8)
    small, large = Image.fromarray(pixels), Image.fromarray(np.tile(pixels, (2, 4, 1)))
    assert decode_uri(thumbnail(small)).tobytes() == small.tobytes()
    reduced = decode_uri(thumbnail(large))
    assert max(reduced.size) == THUMBNAIL_SIZE
    assert reduced.width / reduced.height == pytest.approx(large.width / large.height, rel=0.02)
    assert large.size == (4 * (THUMBNAIL_SIZE - 10), 2 * THUMBNAIL_SIZE)  # not changed in place


def test_queries_are_sorted_by_spread(tmp_path: Path) -> None:
    """The subsets take turns; MRR is used because recall has only two values."""
    ranks = {
        gate: make_run(tmp_path / gate, f"gate={gate}", skill=skill) for gate, skill in (("lstm", 0.2), ("none", 0.7))
    }
    variants, _, _ = group_runs(find_runs(tmp_path)[0])
    queries = score_variants(variants, "mean/mrr@10", dict)
    found = find_disagreements(variants, queries, gallery.GalleryData({}, None, "not here"), limit=6)

    def reciprocal(rank: int) -> float:
        return 1 / rank if rank <= 10 else 0.0

    spread = {
        subset: sorted(
            (abs(reciprocal(a) - reciprocal(b)) for a, b in zip(*(of[subset] for of in ranks.values()), strict=True)),
            reverse=True,
        )
        for subset in SUBSETS
    }
    assert [each.subset for each in found] == [*SUBSETS] * 3
    for rank, each in enumerate(found):
        one, other = (result.mean for result in each.results)
        assert abs(one - other) == pytest.approx(spread[each.subset][rank // 2])
        assert [result.correct for result in each.results] == [result.mean == 1 for result in each.results]
    assert find_disagreements(variants[:1], queries, gallery.GalleryData({}, None, ""), limit=6) == []
