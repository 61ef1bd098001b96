"""The best checkpoint is determined by the files of a run folder and its config only."""

from __future__ import annotations

import shutil
import warnings
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from ret_lightning.runtime.run_layout import write_json
from ret_lightning.training.checkpointing.best_checkpoint import BestCheckpoint
from ret_lightning.training.checkpointing.load import read_selected_on
from ret_lightning.training.checkpointing.selection import find_best_checkpoint, select_checkpoint
from tests.support.scored_checkpoints import MRR, RECALL, write_checkpoint, write_config


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Three scored checkpoints, of which step 10 has the best recall and step 5 the best MRR; and the last one."""
    folder = tmp_path / "run"
    write_config(folder)
    for step, recall, mrr in ((5, 0.5, 0.9), (10, 0.8, 0.4), (15, 0.7, 0.6)):
        write_checkpoint(folder, f"best_step_{step:08d}.ckpt", step, {RECALL: recall, MRR: mrr})
    write_checkpoint(folder, "last.ckpt", 20)
    return folder


@pytest.mark.parametrize(
    ("monitor", "mode", "step"), [(RECALL, "max", 10), (RECALL, "min", 5), (MRR, "max", 5), (MRR, "min", 10)]
)
def test_best_follows_config(run: Path, monitor: str, mode: str, step: int) -> None:
    write_config(run, monitor, mode)
    candidate, by = find_best_checkpoint(run)
    assert (candidate.step, by) == (step, monitor)
    assert select_checkpoint(run).is_best


def test_equal_scores_select_earliest(run: Path) -> None:
    write_checkpoint(run, "best_step_00000003.ckpt", 3, {RECALL: 0.8})
    write_checkpoint(run, "best_step_00000030.ckpt", 30, {RECALL: 0.8})
    assert find_best_checkpoint(run)[0].step == 3


@pytest.mark.parametrize("monitor", ["val/mean/headline_recall", "val/mean/main_recall"])
def test_scores_under_the_earlier_metric_name_count(tmp_path: Path, monitor: str) -> None:
    write_config(tmp_path, monitor)
    write_checkpoint(tmp_path, "best_step_00000005.ckpt", 5, {"val/mean/headline_recall": 0.9})
    write_checkpoint(tmp_path, "best_step_00000010.ckpt", 10, {"val/mean/main_recall": 0.8})
    candidate, by = find_best_checkpoint(tmp_path)
    assert (candidate.step, by) == (5, "val/mean/main_recall")


def test_nan_score_is_no_candidate(run: Path) -> None:
    write_checkpoint(run, "best_step_00000030.ckpt", 30, {RECALL: float("nan")})
    assert find_best_checkpoint(run)[0].step == 10


def test_incomplete_file_is_skipped(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    best = run / "checkpoints" / "best_step_00000010.ckpt"
    best.write_bytes(best.read_bytes()[:100])
    assert find_best_checkpoint(run)[0].step == 15
    assert "[checkpoint-incomplete]" in caplog.text


def test_moved_folder_selects_its_own_file(run: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.move(run, moved)
    write_config(run)
    write_checkpoint(run, "best_step_00000010.ckpt", 99, {RECALL: 1.0})  # another run at the earlier path
    assert find_best_checkpoint(moved)[0].file == moved / "checkpoints" / "best_step_00000010.ckpt"


@pytest.mark.parametrize("monitor", [None, "val/mean/recall@1"])
def test_last_checkpoint_is_used_without_scores(run: Path, monitor: str | None) -> None:
    write_config(run, monitor)
    selected = select_checkpoint(run)
    assert (selected.file.name, selected.step, selected.is_best) == ("last.ckpt", 20, False)
    assert "no checkpoint was scored" in str(selected)


def test_no_checkpoint_selects_nothing(tmp_path: Path) -> None:
    write_config(tmp_path / "run")
    assert select_checkpoint(tmp_path / "run") is None


def lightning_state(path: str, score: float) -> dict[str, object]:
    """Return the state of Lightning's ModelCheckpoint as versions before 0.2 stored it."""
    state = {"monitor": RECALL, "best_model_path": path, "best_model_score": torch.tensor(score), "dirpath": "/old"}
    return {"callbacks": {"ModelCheckpoint{'monitor': 'val/mean/recall@5'}": state}}


@pytest.mark.parametrize("name", ["best.ckpt", "epoch_epoch=002.ckpt"])
def test_checkpoint_of_earlier_version_is_best(tmp_path: Path, name: str) -> None:
    run = tmp_path / "run"
    write_config(run)
    write_checkpoint(run, name, 10, **lightning_state(f"/old/run/checkpoints/{name}", 0.8))
    write_checkpoint(run, "last.ckpt", 20, **lightning_state(f"/old/run/checkpoints/{name}", 0.8))
    candidate, _ = find_best_checkpoint(run)
    assert (candidate.file.name, candidate.scores[RECALL]) == (name, pytest.approx(0.8))


def test_overwritten_earlier_checkpoint_uses_its_own_score(tmp_path: Path) -> None:
    """Before 0.2, save_top_k=3 wrote all checkpoints to one file, whose state has the score of overwritten weights."""
    run = tmp_path / "run"
    write_config(run)
    record = {"ret_lightning": {"validation": {RECALL: 0.7}}}
    write_checkpoint(run, "best.ckpt", 20, **lightning_state("/x/best.ckpt", 0.8), **record)
    assert find_best_checkpoint(run)[0].scores[RECALL] == 0.7


@pytest.mark.parametrize(
    ("name", "recorded", "expected"),
    [
        ("last.ckpt", "val", "last"),
        ("last.ckpt", "last", "last"),
        ("last.ckpt", None, "last"),
        ("best_step_00000010.ckpt", "holdout", "holdout"),
        ("best_step_00000010.ckpt", "last", "unknown"),  # the run tested its last weights
        ("best_step_00000005.ckpt", "val", "unknown"),
    ],
)
def test_selected_on_of_a_checkpoint(run: Path, name: str, recorded: str | None, expected: str) -> None:
    write_json(run / "origin.json", {} if recorded is None else {"selected_on": recorded})
    assert read_selected_on(run / "checkpoints" / name) == expected


def test_selected_on_without_scored_checkpoints(tmp_path: Path) -> None:
    write_config(tmp_path / "run", None)
    write_checkpoint(tmp_path / "run", "last.ckpt", 20)
    assert read_selected_on(select_checkpoint(tmp_path / "run").file) == "last"


@pytest.mark.parametrize(
    ("recorded", "expected"), [("last", "last"), ("val+holdout", "val+holdout"), (None, "unknown")]
)
def test_selected_on_of_an_exported_model(tmp_path: Path, recorded: str | None, expected: str) -> None:
    if recorded is not None:
        write_json(tmp_path / "origin.json", {"selected_on": recorded})
    assert read_selected_on(tmp_path) == expected


def test_selected_on_of_a_hub_id(monkeypatch: pytest.MonkeyPatch, run: Path) -> None:
    monkeypatch.chdir(run)
    assert read_selected_on(Path("owner/name")) == "unknown"


@pytest.mark.parametrize("validated", [False, True])
def test_missing_metric_before_the_first_validation(run: Path, validated: bool) -> None:
    callback = BestCheckpoint(str(run / "checkpoints"), monitor=RECALL)
    loop = SimpleNamespace(epoch_loop=SimpleNamespace(val_loop=SimpleNamespace(_has_run=validated)))
    raises = pytest.raises(MisconfigurationException) if validated else nullcontext()
    with warnings.catch_warnings(), raises:
        warnings.simplefilter("error")
        callback._save_topk_checkpoint(SimpleNamespace(fit_loop=loop), {"step": torch.tensor(1)})
