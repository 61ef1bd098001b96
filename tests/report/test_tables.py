"""Tables of a report as CSV, Markdown and LaTeX."""

from __future__ import annotations

import csv
import json
import statistics
from pathlib import Path

import pytest
import yaml

from ret_lightning.report import tables
from ret_lightning.report.report import write_report
from ret_lightning.runtime.markdown import escape
from tests.support.report_page import page_of
from tests.support.report_runs import SUBSETS, make_run, metrics


def test_tables_agree_with_metrics_files(report: Path, runs: Path) -> None:
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
    assert r"95\% CI" in latex
    runs_table = list(csv.DictReader((report / "runs.csv").open()))
    assert [row["run"] for row in runs_table] == ["lstm_1", "lstm_2", "no_forget_1", "no_forget_2", "none_1", "none_2"]
    assert runs_table[1]["training_seconds"] == "20.0"
    every = list(csv.DictReader((report / "metrics.csv").open()))
    assert len(every) == 3 * len(metrics({subset: [1] for subset in SUBSETS}))


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
def test_config_values_are_escaped(value: str, markdown: str, latex: str, tmp_path: Path) -> None:
    assert (escape(value), tables.escape_latex(value)) == (markdown, latex)
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


@pytest.mark.parametrize(
    ("value", "text"), [(0.25, "+0.250"), (-0.1234, "\u22120.123"), (0.0, "+0.000"), (None, tables.MISSING)]
)
def test_difference_has_sign(value: float | None, text: str) -> None:
    assert tables.format_difference(value) == text


def test_format_intervals_and_p() -> None:
    assert tables.format_interval((-0.5, 0.25)) == "\u22120.500 to 0.250"
    assert tables.format_difference_interval((-0.5, 0.25)) == "\u22120.500 to +0.250"
    for format_ in (tables.format_interval, tables.format_difference_interval, tables.format_p):
        assert format_(None) == tables.MISSING
    assert tables.format_p(0.00014) == "0.0001"
