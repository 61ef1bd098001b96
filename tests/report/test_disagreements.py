"""Queries that variants disagree on, with their texts and thumbnails."""

from __future__ import annotations

import base64
import shutil
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ret_lightning.report import disagreements as gallery
from ret_lightning.report.comparison import per_query
from ret_lightning.report.disagreements import SIDE, disagreements, thumbnail
from ret_lightning.report.report import write_report
from ret_lightning.report.run_folders import find_runs
from ret_lightning.report.variants import group
from tests.support.report_page import page_of
from tests.support.report_runs import SUBSETS, make_run


def test_images_are_those_of_the_rows(report: Path, corpus: Path) -> None:
    originals = {Image.open(file).tobytes() for file in corpus.glob("images/m2kr/images/sub/*.png")}
    for image in page_of(report).images:
        shown = Image.open(BytesIO(base64.b64decode(image.partition(",")[2])))
        assert shown.tobytes() in originals


def test_data_that_are_not_here_leave_the_gallery_without_images(tmp_path: Path) -> None:
    make_run(tmp_path / "runs/0", "gate=lstm", skill=0.1)
    make_run(tmp_path / "runs/1", "gate=none", skill=0.9)
    write_report(tmp_path / "runs", tmp_path / "out", gallery=3)
    page = page_of(tmp_path / "out")
    assert page.images == []
    assert "Texts and images are left out: data.root=/no/such/corpus: no such folder" in page.text
    assert page.text.count("right:") == 3


def test_a_missing_image_is_told_in_its_place(corpus: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(corpus, tmp_path / "m2kr")
    for i in range(12):
        (copy / f"images/m2kr/images/sub/{i}.png").unlink()
    make_run(tmp_path / "runs/0", "gate=lstm", root=copy, skill=0.1)
    make_run(tmp_path / "runs/1", "gate=none", root=copy, skill=0.9)
    write_report(tmp_path / "runs", tmp_path / "out")
    page = page_of(tmp_path / "out")
    assert page.images == []
    assert "missing image" in page.text


def decoded(uri: str) -> Image.Image:
    kind, _, content = uri.partition(";base64,")
    image = Image.open(BytesIO(base64.b64decode(content)))
    assert kind == f"data:image/{image.format.lower()}"
    return image


def test_small_pictures_are_kept_without_loss_and_large_ones_fit() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE - 10, 3), dtype=np.uint8)
    small, large = Image.fromarray(pixels), Image.fromarray(np.tile(pixels, (2, 4, 1)))
    assert decoded(thumbnail(small)).tobytes() == small.tobytes()
    shown = decoded(thumbnail(large))
    assert max(shown.size) == SIDE
    assert shown.width / shown.height == pytest.approx(large.width / large.height, rel=0.02)
    assert large.size == (4 * (SIDE - 10), 2 * SIDE)  # left as it was


def test_queries_come_by_how_far_variants_are_apart(tmp_path: Path) -> None:
    """Recall is 0 or 1, so that only MRR has an order; the subsets take turns."""
    ranks = {
        gate: make_run(tmp_path / gate, f"gate={gate}", skill=skill) for gate, skill in (("lstm", 0.2), ("none", 0.7))
    }
    variants, _, _ = group(find_runs(tmp_path)[0])
    queries = per_query(variants, "mean/mrr@10", dict)
    found = disagreements(variants, queries, gallery.TestedOn({}, None, "not here"), most=6)

    def reciprocal(rank: int) -> float:
        return 1 / rank if rank <= 10 else 0.0

    apart = {
        subset: sorted(
            (abs(reciprocal(a) - reciprocal(b)) for a, b in zip(*(of[subset] for of in ranks.values()), strict=True)),
            reverse=True,
        )
        for subset in SUBSETS
    }
    assert [each.subset for each in found] == [*SUBSETS] * 3
    for place, each in enumerate(found):
        one, other = (answer.mean for answer in each.answers)
        assert abs(one - other) == pytest.approx(apart[each.subset][place // 2])
        assert [answer.right for answer in each.answers] == [answer.mean == 1 for answer in each.answers]
    assert disagreements(variants[:1], queries, gallery.TestedOn({}, None, ""), most=6) == []
