"""The report's files, as a reader gets them."""

from __future__ import annotations

import base64
import csv
import errno
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import pytest
import yaml
from PIL import Image

from ret_lightning.errors import ConfigError, UserError
from ret_lightning.report import tables
from ret_lightning.report.report import FILES, write_report
from ret_lightning.runtime.markdown import escape
from tests.support.m2kr_folder import write_folder
from tests.support.report_runs import CLEAN, SUBSETS, make_run, metrics

VOID = {"meta", "link", "input", "img", "br"}
# Elements of SVG that are written without an end tag.
CLOSED = {"path", "rect", "circle"}


class Page(HTMLParser):
    """What a browser would have to fetch, and whether tags, ids and links fit together."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.targets: list[str] = []
        self.images: list[str] = []
        self.addresses: list[str] = []
        self.titles = 0
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        self._attributes(tag, dict(attrs))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._attributes(tag, dict(attrs))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.text += data

    def _attributes(self, tag: str, attributes: dict[str, str | None]) -> None:
        self.ids += [attributes["id"]] if "id" in attributes else []
        self.titles += "title" in attributes
        for name in ("src", "href", "srcset", "data", "action", "poster", "background", "xlink:href"):
            if (value := attributes.get(name)) is None:
                continue
            if value.startswith("#"):
                self.targets.append(value[1:])
            elif tag == "img":
                self.images.append(value)
            else:
                self.addresses.append(value)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("corpus") / "m2kr", subsets=SUBSETS)


@pytest.fixture(scope="module")
def runs(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sweep")
    for gate, skill in (("lstm", 0.3), ("no_forget", 0.8), ("none", 0.5)):
        for seed in (1, 2):
            code = [{**CLEAN, "dirty": gate == "none"}]
            make_run(folder / f"{gate}_{seed}", f"gate={gate}", seed=seed, root=corpus, skill=skill, code=code)
    make_run(folder / "gone", finished=False, root=corpus)
    return folder


@pytest.fixture(scope="module")
def report(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("out") / "report"
    write_report(runs, folder, baseline="gate=no_forget")
    return folder


def page_of(folder: Path) -> Page:
    return Page((folder / "report.html").read_text())


def test_the_page_is_well_formed_and_needs_nothing_else(report: Path) -> None:
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


def test_images_are_those_of_the_rows(report: Path, corpus: Path) -> None:
    originals = {Image.open(file).tobytes() for file in corpus.glob("images/m2kr/images/sub/*.png")}
    for image in page_of(report).images:
        shown = Image.open(BytesIO(base64.b64decode(image.partition(",")[2])))
        assert shown.tobytes() in originals


def test_the_page_tells_numbers_origins_and_cautions(report: Path) -> None:
    page = page_of(report)
    for told in (
        "6 runs of 3 variants, compared by mean/recall@5; baseline: gate=no_forget; checkpoint of a run: chosen on ",
        "1 unfinished run beside them",
        "gone", "cut off, or still running (no metrics.json); no checkpoint",
        "2 runs made by code with uncommitted changes, which no commit can bring back: none_1, none_2",
        "0123456789 with uncommitted changes", "It is over queries, not over seeds",
        "Student's t with n − 1 degrees of freedom", "corrected for the 2 comparisons", "model.gate._target_",
        "0.50 M", "1.00 GiB", "recurrence step 2",
    ):  # fmt: skip
        assert told in " ".join(page.text.split()), told
    text = (report / "report.html").read_text()
    assert re.search(r'title="runs lstm_1 \(seed 1\), lstm_2 \(seed 2\); config [0-9a-f]{12}; code 0123456789"', text)


def test_the_same_runs_give_the_same_bytes(runs: Path, report: Path, tmp_path: Path) -> None:
    write_report(runs, tmp_path / "again", baseline="gate=no_forget")
    assert {p.name for p in (tmp_path / "again").iterdir()} == set(FILES)
    for name in FILES:
        assert (tmp_path / "again" / name).read_bytes() == (report / name).read_bytes()


def test_the_tables_say_the_same(report: Path, runs: Path) -> None:
    rows = list(csv.DictReader((report / "results.csv").open()))
    assert [row["gate"] for row in rows] == ["lstm", "no_forget", "none"]
    reported = {
        name: [json.loads((runs / f"{name}_{seed}/metrics.json").read_text())["mean/recall@5"] for seed in (1, 2)]
        for name in ("lstm", "no_forget", "none")
    }
    for row in rows:
        assert float(row["mean"]) == pytest.approx(statistics.fmean(reported[row["gate"]]))
        assert float(row["deviation"]) == pytest.approx(statistics.stdev(reported[row["gate"]]))
        assert (row["seeds"], row["runs"]) == ("1 2", f"{row['gate']}_1; {row['gate']}_2")
    assert rows[1]["difference"] == rows[1]["p"] == ""
    markdown = (report / "results.md").read_text()
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    assert [line.count("|") for line in lines] == [10] * 5
    assert lines[2].startswith(f"| lstm | 2 | {float(rows[0]['mean']):.3f} | ")
    latex = (report / "results.tex").read_text()
    assert r"no\_forget & 2 & \textbf{" in latex
    body = [line for line in latex.splitlines() if line.endswith(r"\\")]
    assert [line.count(" & ") for line in body] == [7] * 4
    assert r"\begin{tabular}{lrrrrrrr}" in latex
    assert r"95 \% interval" in latex
    runs_table = list(csv.DictReader((report / "runs.csv").open()))
    assert [row["run"] for row in runs_table] == ["lstm_1", "lstm_2", "no_forget_1", "no_forget_2", "none_1", "none_2"]
    assert runs_table[1]["training_seconds"] == "20.0"
    every = list(csv.DictReader((report / "metrics.csv").open()))
    assert len(every) == 3 * len(metrics({subset: [1] for subset in SUBSETS}))


def test_one_seed_each_claims_no_interval(tmp_path: Path) -> None:
    make_run(tmp_path / "runs/0", "gate=lstm")
    make_run(tmp_path / "runs/1", "gate=none", skill=0.8)
    rows = write_report(tmp_path / "runs", tmp_path / "out")
    assert [row.summary.interval for row in rows] == [None, None]
    text = " ".join(page_of(tmp_path / "out").text.split())
    assert "Each variant has one seed: no deviation and no interval is claimed" in text
    assert "Student" not in text
    assert rows[1].p is not None


def test_one_run_alone(tmp_path: Path) -> None:
    make_run(tmp_path / "runs/0")
    write_report(tmp_path / "runs", tmp_path / "out")
    page = page_of(tmp_path / "out")
    assert "1 run of 1 variant, compared by mean/recall@5" in page.text
    assert "gallery" not in page.ids
    assert "baseline" not in page.text
    assert "all runs" in (tmp_path / "out/results.md").read_text()


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


def test_names_cannot_become_markup(tmp_path: Path) -> None:
    make_run(tmp_path / "runs/<b>&amp;", "init_from='<script>alert(1)</script>'")
    make_run(tmp_path / "runs/x|y", "init_from='a|b_%$'")
    write_report(tmp_path / "runs", tmp_path / "out", gallery=0)
    page = page_of(tmp_path / "out")
    assert page.open == []
    assert "init_from=<script>alert(1)</script>" in page.text
    assert "<script>alert" not in (tmp_path / "out/report.html").read_text()
    assert r"a\|b\_%\$" in (tmp_path / "out/results.md").read_text()
    assert r"a\textbar{}b\_\%\$ & 1 &" in (tmp_path / "out/results.tex").read_text()


@pytest.mark.parametrize(
    ("value", "markdown", "latex"),
    [
        ("$$", r"\$\$", r"\$\$"),
        ("x_1 and _y_", r"x_1 and \_y\_", r"x\_1 and \_y\_"),
        ("*a* `b`", r"\*a\* \`b\`", r"{*}a{*} \textasciigrave{}b\textasciigrave{}"),
        ("[a](b)", r"[a\](b)", "{[}a{]}(b)"),
        ("<img src=x>", r"\<img src=x\>", r"\textless{}img src=x\textgreater{}"),
        ("\\input{x}", r"\\input{x}", r"\textbackslash{}input\{x\}"),
        ("a--b", "a--b", "a-{}-b"),
        ("two\n\nlines\x1b", "two lines\ufffd", "two lines\ufffd"),
    ],
)
def test_text_is_never_markup(value: str, markdown: str, latex: str, tmp_path: Path) -> None:
    assert (escape(value), tables.tex(value)) == (markdown, latex)
    for number, text in enumerate((value, f"{value}2")):
        make_run(tmp_path / f"runs/{number}")
        file = tmp_path / f"runs/{number}/config.yaml"
        file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | {"init_from": text}))
    write_report(tmp_path / "runs", tmp_path / "out", gallery=0)
    assert f"\n| {markdown} |" in (tmp_path / "out/results.md").read_text()
    assert f"\n    {latex} & " in (tmp_path / "out/results.tex").read_text()
    page = page_of(tmp_path / "out")
    assert page.open == []
    assert f"init_from={value}" in page.text


@pytest.mark.parametrize("output", ["out", "new/folder/out", "empty"])
def test_failed_report_leaves_nothing(output: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_run(tmp_path / "runs/0")
    (tmp_path / "empty").mkdir()
    before = sorted(tmp_path.rglob("*"))

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    for name in ("fsync", "replace" if output == "empty" else "rename"):
        with monkeypatch.context() as patched:
            patched.setattr(os, name, fail)
            with pytest.raises(UserError) as caught:
                write_report(tmp_path / "runs", tmp_path / output)
        assert caught.value.code == "report-not-written"
        assert sorted(tmp_path.rglob("*")) == before
    write_report(tmp_path / "runs", tmp_path / output)
    assert {file.name for file in (tmp_path / output).iterdir()} == set(FILES)


def test_folder_name_that_is_not_utf8(tmp_path: Path) -> None:
    make_run(tmp_path / "runs/0")
    (tmp_path / "runs/0").rename(os.fsdecode(os.fsencode(tmp_path) + b"/runs/f\xfc"))
    write_report(tmp_path / "runs", tmp_path / "out")
    assert r"f\udcfc" in (tmp_path / "out/runs.csv").read_text()


def test_a_name_that_no_run_has(runs: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"metric=mean/recal@5: none of the 6 finished .*; did you mean mean/recall@5\?"
    ):
        write_report(runs, tmp_path / "out", metric="mean/recal@5")
    with pytest.raises(ConfigError, match=r"no variant has gate=lsmt; did you mean gate=lstm\?"):
        write_report(runs, tmp_path / "out", baseline="gate=lsmt")
    assert not (tmp_path / "out").exists()


def test_a_run_without_the_metric_is_left_out_and_told_of(tmp_path: Path) -> None:
    make_run(tmp_path / "runs/0", "gate=lstm")
    make_run(tmp_path / "runs/1", "gate=none")
    found = json.loads((tmp_path / "runs/1/metrics.json").read_text())
    del found["mean/mrr@10"]
    (tmp_path / "runs/1/metrics.json").write_text(json.dumps(found))
    assert len(write_report(tmp_path / "runs", tmp_path / "out", metric="mean/mrr@10")) == 1
    assert "1 is left out: it has no mean/mrr@10" in page_of(tmp_path / "out").text


def test_what_stands_in_the_output_folder_is_not_lost(tmp_path: Path) -> None:
    make_run(tmp_path / "runs/0")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match="is there already and holds other files; choose a new folder"):
        write_report(tmp_path / "runs", tmp_path / "out")
    with pytest.raises(ConfigError, match="a file of that name is in the way"):
        write_report(tmp_path / "runs", tmp_path / "out/mine.txt")
    write_report(tmp_path / "runs", tmp_path / "out", overwrite=True)
    assert (tmp_path / "out/mine.txt").read_text() == "mine"
    with pytest.raises(ConfigError, match=r"holds a report\.html already|holds a results\.csv already"):
        write_report(tmp_path / "runs", tmp_path / "out")


def ret_report(*options: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ret_lightning.commands.report", *options]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd)


@pytest.mark.slow
def test_the_command(runs: Path, report: Path, tmp_path: Path) -> None:
    done = ret_report(f"runs={runs}", "output=out", "baseline=gate=no_forget", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "unfinished: gone: cut off" in done.stdout
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out/report.html").read_bytes() == (report / "report.html").read_bytes()


@pytest.mark.parametrize(
    ("options", "code", "line"),
    [
        (["runs=nowhere", "output=out"], 1, "ret-report: runs=nowhere: no such folder"),
        (["runs=.", "output=out", "gallery=-1"], 2, "  command line: gallery=-1: -1 is too small; 0 is the least"),
        (["runs=.", "output=out", "metrik=a"], 2, "  command line: metrik=a: no such key or group: metrik"),
    ],
)
def test_a_mistake_is_one_line(options: list[str], code: int, line: str, tmp_path: Path) -> None:
    done = ret_report(*options, cwd=tmp_path)
    assert done.returncode == code
    assert done.stderr.splitlines()[-1].startswith(line)
    assert len(done.stderr.splitlines()) <= 2
    assert list(tmp_path.iterdir()) == []
