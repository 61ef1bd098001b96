"""Parts of the user's own through the commands: exported models with them are usable, or ret-export refuses."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from ret_lightning.config.allowed_targets import OWN_PACKAGES
from ret_lightning.errors import split_code
from tests.support import processes
from tests.support.m2kr_folder import write_folder
from tests.support.small_runs import small_run

pytestmark = pytest.mark.slow

PARTS = """
from ret_lightning.inputs import ClipTokenizer
from ret_lightning.models import LSTMGate, Openings

class SharpGate(LSTMGate):
    name = "tests_commands_sharp"

    def __init__(self, hidden_size, sharpness=1.0):
        super().__init__(hidden_size)
        self.sharpness = sharpness

    def openings(self, *inputs):
        found = super().openings(*inputs)
        return Openings(found.forget**self.sharpness, found.text, found.image)

class OwnTokenizer(ClipTokenizer):
    pass
"""
GATE = [
    "gate._target_=tests_commands_parts.SharpGate", "+gate.sharpness=20", "~gate.input_bias", "~gate.forget_bias", "~gate.tanh",
]  # fmt: skip
TOKENIZER = ["backbone.tokenizer._target_=tests_commands_parts.OwnTokenizer"]


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a module with parts, which configs may build."""
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "tests_commands_parts.py").write_text(PARTS)
    monkeypatch.syspath_prepend(tmp_path / "own")
    monkeypatch.setenv(OWN_PACKAGES, "tests_commands_parts")
    return tmp_path / "own"


def test_every_command_takes_an_exported_model(call: Callable[..., int], package: Path, tmp_path: Path) -> None:
    root, run, model = write_folder(tmp_path / "m2kr"), tmp_path / "run", tmp_path / "model"
    assert call("train", *small_run(root, run, *GATE, "trainer.max_epochs=1")) == 0
    assert call("export", f"checkpoint={run}", f"output={model}") == 0
    assert "`RET_LIGHTNING_TARGETS=tests_commands_parts`" in (model / "README.md").read_text()
    passages = f"passages={root / 'jsonl/m2kr/passages/evqa_passages_test.jsonl'}"
    images = f"image_root={root / 'images/m2kr/images'}"
    data = ["data=m2kr", f"data.root={root}", "data.num_workers=0", "trainer.enable_progress_bar=false"]
    commands = (
        ("index", f"checkpoint={model}", passages, images, f"index={tmp_path / 'index'}"),
        ("search", f"index={tmp_path / 'index'}", "query=hello", f"checkpoint={run}"),  # of the same fingerprint
        ("evaluate", f"checkpoint={model}", f"output_dir={tmp_path / 'evaluation'}", *data),
    )
    for name, *options in commands:  # in other processes, which have imported nothing
        environment = {**os.environ, "PYTHONPATH": str(package)}
        done = processes.run(processes.module(f"ret_lightning.commands.{name}", *options), tmp_path, environment)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "evaluation" / "metrics.json").read_bytes() == (run / "metrics.json").read_bytes()


def test_an_own_tokenizer_is_trained_but_not_exported(
    call: Callable[..., int], package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, run, model = write_folder(tmp_path / "m2kr"), tmp_path / "run", tmp_path / "model"
    assert call("train", *small_run(root, run, *TOKENIZER, "trainer.max_epochs=1")) == 0
    assert (run / "checkpoints" / "best.ckpt").is_file()
    capsys.readouterr()
    assert call("export", f"checkpoint={run}", f"output={model}") == 1
    message, code = split_code(capsys.readouterr().err.strip())
    assert code == "part-not-storable"
    assert "backbone.tokenizer is a tests_commands_parts.OwnTokenizer" in message
    assert not model.exists()
