"""Search for run folders, and the reasons why a run is unfinished."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from ret_lightning.errors import ConfigError
from ret_lightning.report.run_folders import find_runs
from ret_lightning.report.training_logs import read_log, validation_curve
from tests.support.report_runs import CLEAN, make_run


def test_runs_are_found_at_any_depth_in_natural_order(tmp_path: Path) -> None:
    for name in ("sweep/10", "sweep/2", "alone", "a/b/c/deep", "sweep2/0"):
        make_run(tmp_path / name)
    (tmp_path / "sweep/2/wandb/run-1/files").mkdir(parents=True)
    (tmp_path / "sweep/2/wandb/run-1/files/config.yaml").write_text("seed: {value: 1}\n")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/config.yaml").write_text("name: of another program\n")
    finished, unfinished = find_runs(tmp_path)
    assert [run.name for run in finished] == ["a/b/c/deep", "alone", "sweep/2", "sweep/10", "sweep2/0"]
    assert unfinished == []
    assert finished[0].seed == 1
    assert finished[0].choices["gate"] == "lstm"


def test_root_may_be_a_run_folder(tmp_path: Path) -> None:
    make_run(tmp_path / "alone")
    assert [run.name for run in find_runs(tmp_path / "alone")[0]] == ["alone"]


def test_metrics_under_earlier_names_have_the_current_ones(tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    (tmp_path / "run/metrics.json").write_text(json.dumps({"mean/headline_recall": 0.5, "mean/recall@5": 0.25}))
    log = tmp_path / "run/csv/metrics.csv"
    log.write_text("step,val/mean/headline_recall\n4,0.5\n")
    ((run,), _) = find_runs(tmp_path)
    assert run.metrics == {"mean/main_recall": 0.5, "mean/recall@5": 0.25}
    assert validation_curve(read_log(run), "mean/main_recall") == [(5, 0.5)]


def write_checkpoint(file: Path, step: int) -> None:
    file.parent.mkdir()
    torch.save({"state_dict": {}, "epoch": 0, "global_step": step}, file)


def test_unfinished_run_has_reason(tmp_path: Path) -> None:
    make_run(tmp_path / "good")
    make_run(tmp_path / "interrupted", finished=False)
    write_checkpoint(tmp_path / "interrupted/checkpoints/last.ckpt", 120)
    make_run(tmp_path / "early", finished=False)
    make_run(tmp_path / "failed", finished=False)
    (tmp_path / "failed/failure.json").write_text(json.dumps({"error": "rows.jsonl:3: no question [field-missing]"}))
    make_run(tmp_path / "stopped", finished=False)
    (tmp_path / "stopped/failure.json").write_text(
        json.dumps({"error": "stopped by SIGTERM at step 3", "stopped": True})
    )
    make_run(tmp_path / "half_written")
    (tmp_path / "half_written/metrics.json").write_text('{"mean/recall@5": 0.')
    make_run(tmp_path / "no_numbers")
    (tmp_path / "no_numbers/metrics.json").write_text('{"mean/recall@5": NaN}')
    make_run(tmp_path / "no_test", "test_with=none", finished=False)
    make_run(tmp_path / "corrupted", finished=False)
    write_checkpoint(tmp_path / "corrupted/checkpoints/last.ckpt", 7)
    content = (tmp_path / "corrupted/checkpoints/last.ckpt").read_bytes()
    (tmp_path / "corrupted/checkpoints/last.ckpt").write_bytes(content[: len(content) // 2])
    (tmp_path / "unreadable").mkdir()
    (tmp_path / "unreadable/config.yaml").write_text("seed: [1\n")
    finished, unfinished = find_runs(tmp_path)
    assert [run.name for run in finished] == ["good"]
    why = {run.name: run.reason for run in unfinished}
    assert why["interrupted"] == "interrupted or still running (no metrics.json); last.ckpt at step 120"
    assert why["early"] == "interrupted or still running (no metrics.json); no checkpoint"
    assert why["failed"] == "failed: rows.jsonl:3: no question; no checkpoint"
    assert why["stopped"] == "stopped by SIGTERM at step 3; no checkpoint"
    assert why["half_written"].startswith("metrics.json is not valid JSON (")
    assert why["no_numbers"] == "metrics.json: mean/recall@5 is nan, expected a finite number"
    assert why["no_test"] == "not tested (test_with=none); no checkpoint"
    assert why["corrupted"] == "interrupted or still running (no metrics.json); last.ckpt is corrupted"
    assert why["unreadable"].startswith("config.yaml cannot be read (")
    assert len(why) == 9


def test_code_version_includes_uncommitted_changes(tmp_path: Path) -> None:
    dirty = {"commit": "f" * 40, "dirty": True}
    make_run(tmp_path / "a")
    make_run(tmp_path / "b", code=[CLEAN, dirty])
    make_run(tmp_path / "c", code=[])
    a, b, c = find_runs(tmp_path)[0]
    assert (a.code, a.dirty) == ("0123456789", False)
    assert (b.code, b.dirty) == ("0123456789, then ffffffffff with uncommitted changes", True)
    assert (c.code, c.dirty) == ("ret_lightning 0.1.0, no commit", False)


def test_folder_without_finished_runs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        find_runs(tmp_path / "nowhere")
    assert (caught.value.code, caught.value.path) == ("runs-folder-missing", tmp_path / "nowhere")
    with pytest.raises(ConfigError) as caught:
        find_runs(tmp_path)
    assert (caught.value.code, caught.value.path) == ("runs-none-found", tmp_path)
    for i in range(5):
        make_run(tmp_path / str(i), finished=False)
    with pytest.raises(ConfigError) as caught:
        find_runs(tmp_path)
    assert caught.value.message.endswith("; and 2 more")
    assert (caught.value.code, caught.value.unfinished) == ("runs-none-finished", ("0", "1", "2", "3", "4"))
