"""Exports that are refused: outputs that cannot be written, and sources that hold no model."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch

from ret_lightning.errors import ConfigError, UserError
from ret_lightning.runs.export import export
from tests.support.small_runs import Trained

pytestmark = pytest.mark.slow  # they share one run of ret-train


def test_outputs_that_cannot_be(trained: Trained, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="output is empty; name the folder to write"):
        export(trained.run, "")
    with pytest.raises(ConfigError) as error:
        export(trained.run, tmp_path / "model", max_shard_size="5XB")
    assert (error.value.code, error.value.found) == ("shard-size-invalid", "5XB")
    with pytest.raises(UserError, match=r"output=/proc/nowhere: cannot be written \("):
        export(trained.run, "/proc/nowhere")
    assert list(tmp_path.iterdir()) == []


class Payload:
    """What a hostile checkpoint would hold."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


def test_sources_that_hold_no_model_are_told(trained: Trained, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"checkpoint=nowhere: no training checkpoint and no run folder with one"):
        export("nowhere", tmp_path / "model")
    torn = tmp_path / "torn.ckpt"
    torn.write_bytes((trained.run / "checkpoints" / "best.ckpt").read_bytes()[:2000])
    with pytest.raises(UserError, match=r"torn\.ckpt: .*\[checkpoint-incomplete\]"):
        export(torn, tmp_path / "model")
    torch.save({"state_dict": {}, "epoch": 0, "global_step": 1}, tmp_path / "other.ckpt")
    with pytest.raises(UserError, match=r"other\.ckpt: .*\[checkpoint-without-record\]"):
        export(tmp_path / "other.ckpt", tmp_path / "model")
    hostile = tmp_path / "hostile.ckpt"
    hostile.write_bytes(pickle.dumps({"state_dict": Payload(tmp_path / "executed")}))
    with pytest.raises(UserError, match=r"hostile\.ckpt: .*\[checkpoint-incomplete\]"):
        export(hostile, tmp_path / "model")
    torch.save({"state_dict": Payload(tmp_path / "executed")}, hostile)
    with pytest.raises(UserError, match=r"hostile\.ckpt: .*\[checkpoint-unreadable\]"):
        export(hostile, tmp_path / "model")
    assert not (tmp_path / "executed").exists()
    assert not (tmp_path / "model").exists()
