"""HTML page of a report: well-formed, self-contained, and escaped."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ret_lightning.report.report import write_report
from tests.support.report_page import page_of
from tests.support.report_runs import make_run


def test_page_is_well_formed_and_self_contained(report: Path) -> None:
    page = page_of(report)
    assert page.open == []
    assert len(page.ids) == len(set(page.ids))
    assert set(page.targets) <= set(page.ids)
    assert page.addresses == ["data:,"]  # no icon
    assert page.images
    assert all(re.match(r"data:image/(png|jpeg);base64,", image) for image in page.images)
    text = (report / "report.html").read_text()
    assert not re.search(r"https?:|//[a-z]|@import|url\(|\bfetch\b|XMLHttpRequest", re.sub(r"data:[^\"]*", "", text))
    assert "default-src 'none'" in text


def test_page_contains_facts_methods_and_remarks(report: Path) -> None:
    page = page_of(report)
    for text in (
        "6 runs of 3 variants, compared by mean/recall@5; baseline: gate=no_forget; checkpoint of a run: selected on ",
        "1 unfinished run not included",
        "gone", "interrupted or still running (no metrics.json); no checkpoint",
        "2 runs with uncommitted code changes, which cannot be reproduced from a commit: none_1, none_2",
        "0123456789 with uncommitted changes", "It does not mean that training with other seeds shows the same difference",
        "Student's t with n − 1 degrees of freedom", "corrected for the 2 comparisons", "model.gate._target_",
        "0.50 M", "1.00 GiB", "recurrence step 2",
    ):  # fmt: skip
        assert text in " ".join(page.text.split()), text
    text = (report / "report.html").read_text()
    assert re.search(r'title="runs lstm_1 \(seed 1\), lstm_2 \(seed 2\); config [0-9a-f]{12}; code 0123456789"', text)


def test_report_of_one_run(tmp_path: Path) -> None:
    make_run(tmp_path / "runs/0")
    write_report(tmp_path / "runs", tmp_path / "out")
    page = page_of(tmp_path / "out")
    assert "1 run of 1 variant, compared by mean/recall@5" in page.text
    assert "gallery" not in page.ids
    assert "baseline" not in page.text
    assert "all runs" in (tmp_path / "out/results.md").read_text()


def test_curve_has_colour_of_its_bar(tmp_path: Path) -> None:
    make_run(tmp_path / "runs/0", "gate=lstm")
    make_run(tmp_path / "runs/1", "gate=none")
    (tmp_path / "runs/0/csv/metrics.csv").unlink()
    write_report(tmp_path / "runs", tmp_path / "out", gallery=0)
    text = (tmp_path / "out/report.html").read_text()
    assert re.findall(r'class="mean" style="--c:var\(--series-(\d)\)"', text) == ["1", "1"]
    assert re.findall(r'role="img" aria-label="(.*?(?:queries|loss))"', text) == [
        "mean/recall@5 on the validation queries", "training loss",
    ]  # fmt: skip


@pytest.mark.parametrize(("column", "left"), [("train/loss", "validation queries"), ("val/mean/recall@5", "loss")])
def test_either_curve_can_be_missing(tmp_path: Path, column: str, left: str) -> None:
    make_run(tmp_path / "runs/0")
    log = tmp_path / "runs/0/csv/metrics.csv"
    log.write_text(log.read_text().replace(column, "other"))
    write_report(tmp_path / "runs", tmp_path / "out", gallery=0)
    text = (tmp_path / "out/report.html").read_text()
    (name,) = re.findall(r'role="img" aria-label="(.*?(?:queries|loss))"', text)
    assert name.endswith(left)
    assert "curves" in page_of(tmp_path / "out").ids


def test_names_are_escaped(tmp_path: Path) -> None:
    make_run(tmp_path / "runs/<b>&amp;", "init_from='<script>alert(1)</script>'")
    make_run(tmp_path / "runs/x|y", "init_from='a|b_%$'")
    write_report(tmp_path / "runs", tmp_path / "out", gallery=0)
    page = page_of(tmp_path / "out")
    assert page.open == []
    assert "init_from=<script>alert(1)</script>" in page.text
    assert "<script>alert" not in (tmp_path / "out/report.html").read_text()
    assert r"a\|b\_%\$" in (tmp_path / "out/results.md").read_text()
    assert r"a\textbar{}b\_\%\$ & 1 &" in (tmp_path / "out/results.tex").read_text()
