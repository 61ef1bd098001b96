"""Detection of the same run in a folder, and of its last complete checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest

from ret_lightning.errors import ConfigError
from ret_lightning.runs.resume.resumed_config import stored_config
from ret_lightning.runs.resume.same_run import holds_same_run, last_whole_checkpoint
from ret_lightning.training.checkpointing.checkpoint_io import RunCheckpointIO
from tests.support.tiny_training import checkpoint, make_module


def test_run_of_another_config_is_refused(run: Path, tmp_path: Path) -> None:
    config = stored_config(run)
    assert holds_same_run(run, config)
    assert not holds_same_run(tmp_path / "new", config)
    config.trainer.max_epochs = 5
    with pytest.raises(ConfigError) as caught:
        holds_same_run(run, config)
    assert (caught.value.code, caught.value.keys) == ("folder-holds-other-run", ("trainer.max_epochs",))


def test_truncated_checkpoint_is_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    module, folder = make_module(), tmp_path / "checkpoints"
    for step, name in ((1, "best"), (2, "last"), (2, "step_00000002")):
        RunCheckpointIO().save_checkpoint(checkpoint(module, step), folder / f"{name}.ckpt")
    assert last_whole_checkpoint(tmp_path) == folder / "last.ckpt"  # of two checkpoints of the same step
    whole = (folder / "last.ckpt").read_bytes()
    (folder / "step_00000002.ckpt").unlink()
    for length in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        (folder / "last.ckpt").write_bytes(whole[:length])
        assert last_whole_checkpoint(tmp_path) == folder / "best.ckpt"
    assert "skipped: " in caplog.text
    (folder / "best.ckpt").write_text("nonsense")
    assert last_whole_checkpoint(tmp_path) is None
