"""User-defined gates, tokenizers and transforms in all commands; ret-export refuses those that cannot be stored."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from ret_lightning.config.targets.allowed_targets import OWN_PACKAGES
from ret_lightning.errors import split_code
from tests.support import processes
from tests.support.m2kr_folder import write_folder
from tests.support.small_runs import small_run

pytestmark = pytest.mark.slow

PARTS = """
from pathlib import Path

from ret_lightning.inputs import ClipTokenizer, ImageTransform
from ret_lightning.models import LSTMGate, GateActivations

class SharpGate(LSTMGate):
    name = "tests_commands_sharp"

    def __init__(self, hidden_size, sharpness=1.0):
        super().__init__(hidden_size)
        self.sharpness = sharpness

    def activations(self, *inputs):
        found = super().activations(*inputs)
        return GateActivations(found.forget**self.sharpness, found.text, found.image)

class OwnTokenizer(ClipTokenizer):
    # Removes the words of a file.

    def __init__(self, stop_words, max_length=77):
        self._read(Path(stop_words).read_text(), max_length)

    def _read(self, words, max_length):
        super().__init__(max_length)
        self.words = words

    def __call__(self, texts):
        return super().__call__([" ".join(w for w in text.split() if w not in self.words.split()) for text in texts])

    def to_config(self):
        return {"max_length": self.max_length}

    @classmethod
    def from_config(cls, config, files):
        tokenizer = cls.__new__(cls)
        tokenizer._read(files["stop_words.txt"].decode(), **config)
        return tokenizer

    def files(self):
        return {"stop_words.txt": self.words.encode()}

class OwnTransform(ImageTransform):
    def __init__(self, size=224, inverted=False):
        super().__init__(size)
        self.inverted = inverted

    def __call__(self, image):
        return -super().__call__(image) if self.inverted else super().__call__(image)

class PlainTokenizer:
    # Without the interface.

    max_length = 77

    def __call__(self, texts):
        return ClipTokenizer()(texts)
"""
GATE = [
    "gate._target_=tests_commands_parts.SharpGate", "+gate.sharpness=20", "~gate.input_bias", "~gate.forget_bias", "~gate.tanh",
]  # fmt: skip
IMAGES = [
    "backbone.image_transform._target_=tests_commands_parts.OwnTransform", "+backbone.image_transform.inverted=true",
    "~backbone.image_transform.reduce", "~backbone.image_transform.mean", "~backbone.image_transform.std",
]  # fmt: skip
TOKENIZER = "backbone.tokenizer._target_=tests_commands_parts.OwnTokenizer"


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write a module with parts that configs may build, and return its folder."""
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "tests_commands_parts.py").write_text(PARTS)
    monkeypatch.syspath_prepend(tmp_path / "own")
    monkeypatch.setenv(OWN_PACKAGES, "tests_commands_parts")
    return tmp_path / "own"


def test_commands_accept_an_exported_model(call: Callable[..., int], package: Path, tmp_path: Path) -> None:
    root, run, model = write_folder(tmp_path / "m2kr"), tmp_path / "run", tmp_path / "model"
    words = tmp_path / "stop_words.txt"
    words.write_text("of the a")
    tokenizer = [TOKENIZER, f"+backbone.tokenizer.stop_words={words}"]
    assert call("train", *small_run(root, run, *GATE, *IMAGES, *tokenizer, "trainer.max_epochs=1")) == 0
    words.unlink()  # stored in the checkpoint
    assert call("export", f"checkpoint={run}", f"output={model}") == 0
    assert "`RET_LIGHTNING_TARGETS=tests_commands_parts`" in (model / "README.md").read_text()
    passages = f"passages={root / 'jsonl/m2kr/passages/evqa_passages_test.jsonl'}"
    images = f"image_root={root / 'images/m2kr/images'}"
    data = ["data=m2kr", f"data.root={root}", "data.num_workers=0", "trainer.enable_progress_bar=false"]
    commands = (
        ("index", f"checkpoint={model}", passages, images, f"index={tmp_path / 'index'}"),
        ("search", f"index={tmp_path / 'index'}", "query=hello", f"checkpoint={run}"),  # same fingerprint
        ("evaluate", f"checkpoint={model}", f"output_dir={tmp_path / 'evaluation'}", *data),
    )
    for name, *options in commands:  # new processes, which have not imported the module
        environment = {**os.environ, "PYTHONPATH": str(package)}
        done = processes.run(processes.module(f"ret_lightning.commands.{name}", *options), tmp_path, environment)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "evaluation" / "metrics.json").read_bytes() == (run / "metrics.json").read_bytes()


@pytest.mark.parametrize("words", ["of the a", "of the"])
def test_resume_needs_the_same_tokenizer(
    call: Callable[..., int], package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: str
) -> None:
    root, run, file = write_folder(tmp_path / "m2kr"), tmp_path / "run", tmp_path / "stop_words.txt"
    file.write_text("of the a")
    tokenizer = [TOKENIZER, f"+backbone.tokenizer.stop_words={file}"]
    assert call("train", *small_run(root, run, *tokenizer, "trainer.max_epochs=1")) == 0
    file.write_text(words)
    capsys.readouterr()
    done = call("train", f"resume={run}", "trainer.max_epochs=2")
    message, code = split_code(capsys.readouterr().err.strip())
    if words == "of the a":
        assert done == 0
        return
    assert (done, code) == (1, "preprocessor-changed")
    assert "the file stop_words.txt differs" in message


def test_tokenizer_without_interface_is_not_exported(
    call: Callable[..., int], package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, run, model = write_folder(tmp_path / "m2kr"), tmp_path / "run", tmp_path / "model"
    plain = ["backbone.tokenizer._target_=tests_commands_parts.PlainTokenizer", "~backbone.tokenizer.max_length"]
    assert call("train", *small_run(root, run, *plain, "trainer.max_epochs=1")) == 0
    assert (run / "checkpoints" / "best.ckpt").is_file()
    capsys.readouterr()
    assert call("export", f"checkpoint={run}", f"output={model}") == 1
    message, code = split_code(capsys.readouterr().err.strip())
    assert code == "preprocessor-not-storable"
    assert "backbone.tokenizer: tests_commands_parts.PlainTokenizer cannot be stored" in message
    assert not model.exists()
