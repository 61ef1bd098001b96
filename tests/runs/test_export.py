"""Refused exports: invalid outputs, and sources without a model."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch

from ret_lightning.errors import UserError
from ret_lightning.runs.export import export
from tests.support.small_runs import Trained

pytestmark = pytest.mark.slow  # the tests share one run of ret-train


def refusal(*arguments: object, **options: object) -> UserError:
    with pytest.raises(UserError) as raised:
        export(*arguments, **options)
    return raised.value


def test_invalid_outputs_are_refused(trained: Trained, tmp_path: Path) -> None:
    assert refusal(trained.run, "").code == "export-output-empty"
    assert refusal(trained.run, tmp_path / "model", max_shard_size="5XB").code == "shard-size-invalid"
    error = refusal(trained.run, "/proc/nowhere")
    assert (error.code, error.path) == ("export-not-writable", "/proc/nowhere")
    assert list(tmp_path.iterdir()) == []


class Payload:
    """Pickled content of a malicious checkpoint."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


def test_sources_without_a_model_are_refused(trained: Trained, tmp_path: Path) -> None:
    error = refusal("nowhere", tmp_path / "model")
    assert (error.code, error.found) == ("export-no-checkpoint", "nowhere")
    torn = tmp_path / "torn.ckpt"
    torn.write_bytes((trained.run / "checkpoints" / "best.ckpt").read_bytes()[:2000])
    torch.save({"state_dict": {}, "epoch": 0, "global_step": 1}, tmp_path / "other.ckpt")
    hostile = tmp_path / "hostile.ckpt"
    hostile.write_bytes(pickle.dumps({"state_dict": Payload(tmp_path / "executed")}))
    for file, code in (
        (torn, "checkpoint-incomplete"),
        (tmp_path / "other.ckpt", "checkpoint-without-record"),
        (hostile, "checkpoint-incomplete"),
    ):
        error = refusal(file, tmp_path / "model")
        assert error.code == code
        assert file.name in error.message
    torch.save({"state_dict": Payload(tmp_path / "executed")}, hostile)
    error = refusal(hostile, tmp_path / "model")
    assert error.code == "checkpoint-unreadable"
    assert "hostile.ckpt" in error.message
    assert not (tmp_path / "executed").exists()
    assert not (tmp_path / "model").exists()
