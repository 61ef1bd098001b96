"""Files of a report, refusals, and the ret-report command."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ret_lightning.errors import ConfigError, UserError
from ret_lightning.report.report import FILES, write_report
from tests.support.report_page import page_of
from tests.support.report_runs import make_run


def test_report_is_deterministic(runs: Path, report: Path, tmp_path: Path) -> None:
    write_report(runs, tmp_path / "again", baseline="gate=no_forget")
    assert {p.name for p in (tmp_path / "again").iterdir()} == set(FILES)
    for name in FILES:
        assert (tmp_path / "again" / name).read_bytes() == (report / name).read_bytes()


def test_one_seed_has_no_interval(tmp_path: Path) -> None:
    make_run(tmp_path / "runs/0", "gate=lstm")
    make_run(tmp_path / "runs/1", "gate=none", skill=0.8)
    rows = write_report(tmp_path / "runs", tmp_path / "out")
    assert [row.summary.interval for row in rows] == [None, None]
    text = " ".join(page_of(tmp_path / "out").text.split())
    assert "Each variant has one seed, so no std and no confidence interval are computed" in text
    assert "Student" not in text
    assert rows[1].p is not None


@pytest.mark.parametrize("output", ["out", "new/folder/out", "empty"])
def test_failed_report_writes_nothing(output: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_folder_name_is_not_utf8(tmp_path: Path) -> None:
    make_run(tmp_path / "runs/0")
    (tmp_path / "runs/0").rename(os.fsdecode(os.fsencode(tmp_path) + b"/runs/f\xfc"))
    write_report(tmp_path / "runs", tmp_path / "out")
    assert r"f\udcfc" in (tmp_path / "out/runs.csv").read_text()


def test_unknown_metric_or_baseline_is_refused(runs: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        write_report(runs, tmp_path / "out", metric="mean/recal@5")
    assert (caught.value.code, caught.value.found) == ("report-metric-unknown", "mean/recal@5")
    assert "mean/recall@5" in caught.value.allowed
    assert "did you mean mean/recall@5?" in caught.value.message
    with pytest.raises(ConfigError) as caught:
        write_report(runs, tmp_path / "out", baseline="gate=lsmt")
    assert (caught.value.code, caught.value.found) == ("baseline-setting-unknown", "gate=lsmt")
    assert caught.value.allowed == ("gate=lstm", "gate=no_forget", "gate=none")
    assert not (tmp_path / "out").exists()


def test_run_without_metric_is_left_out(tmp_path: Path) -> None:
    make_run(tmp_path / "runs/0", "gate=lstm")
    make_run(tmp_path / "runs/1", "gate=none")
    found = json.loads((tmp_path / "runs/1/metrics.json").read_text())
    del found["mean/mrr@10"]
    (tmp_path / "runs/1/metrics.json").write_text(json.dumps(found))
    assert len(write_report(tmp_path / "runs", tmp_path / "out", metric="mean/mrr@10")) == 1
    assert "1 is left out: its metrics.json has no mean/mrr@10" in page_of(tmp_path / "out").text


def test_files_in_output_folder_are_kept(tmp_path: Path) -> None:
    make_run(tmp_path / "runs/0")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine.txt").write_text("mine")
    with pytest.raises(ConfigError) as caught:
        write_report(tmp_path / "runs", tmp_path / "out")
    assert (caught.value.code, caught.value.path) == ("report-folder-not-empty", tmp_path / "out")
    with pytest.raises(ConfigError) as caught:
        write_report(tmp_path / "runs", tmp_path / "out/mine.txt")
    assert (caught.value.code, caught.value.path) == ("report-output-is-file", tmp_path / "out/mine.txt")
    with pytest.raises(ConfigError) as caught:
        write_report(tmp_path / "runs", "")
    assert (caught.value.code, caught.value.key) == ("report-output-empty", "output")
    write_report(tmp_path / "runs", tmp_path / "out", overwrite=True)
    assert (tmp_path / "out/mine.txt").read_text() == "mine"
    with pytest.raises(ConfigError) as caught:
        write_report(tmp_path / "runs", tmp_path / "out")
    assert (caught.value.code, caught.value.found) == ("report-exists", "results.csv")


def ret_report(*options: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ret_lightning.commands.report", *options]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd)


@pytest.mark.slow
def test_command_writes_report(runs: Path, report: Path, tmp_path: Path) -> None:
    done = ret_report(f"runs={runs}", "output=out", "baseline=gate=no_forget", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "unfinished: gone: interrupted" in done.stdout
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out/report.html").read_bytes() == (report / "report.html").read_bytes()


@pytest.mark.parametrize(
    ("options", "code", "line"),
    [
        (["runs=nowhere", "output=out"], 1, "ret-report: runs=nowhere: no such folder"),
        (["runs=.", "output=out", "gallery=-1"], 2, "  command line: gallery=-1: expected at least 0, got -1"),
        (["runs=.", "output=out", "metrik=a"], 2, "  command line: metrik=a: unknown key or group metrik"),
    ],
)
def test_error_is_one_line(options: list[str], code: int, line: str, tmp_path: Path) -> None:
    done = ret_report(*options, cwd=tmp_path)
    assert done.returncode == code
    assert done.stderr.splitlines()[-1].startswith(line)
    assert len(done.stderr.splitlines()) <= 2
    assert list(tmp_path.iterdir()) == []
