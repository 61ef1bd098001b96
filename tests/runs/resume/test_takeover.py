"""Takeover of a run folder: at once, or at the first new checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from ret_lightning.errors import ConfigError
from ret_lightning.runs.resume import takeover as module
from ret_lightning.runs.resume.takeover import Takeover, refuse_evaluated, refuse_taken

CONFIG = OmegaConf.create({"seed": 1, "copy": "${seed}"})


def content(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.fixture(autouse=True)
def _code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "code_version", lambda: {"commit": "now", "dirty": False})


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """The folder of a finished run."""
    for name in ("config.yaml", "intervals.json", "failure.json", "rankings/wit.trec", "checkpoints/last.ckpt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("before")
    (tmp_path / "metrics.json").write_text("{}")
    (tmp_path / "origin.json").write_text(json.dumps({"version": "0.1.0", "code": [{"commit": "then"}]}))
    return tmp_path


@pytest.mark.parametrize(
    ("files", "training", "evaluation"),
    [
        ([], None, None),
        (["config.yaml", "ret-train.log"], None, None),
        (["metrics.json"], "folder-holds-finished-run", "folder-holds-metrics"),
        (["checkpoints/last.ckpt"], "folder-holds-unfinished-run", "folder-holds-training-run"),
        (["checkpoints/notes.txt"], None, "folder-holds-training-run"),
        (["metrics.json", "checkpoints/last.ckpt"], "folder-holds-finished-run", "folder-holds-training-run"),
    ],
)
def test_folders_in_use_are_refused(
    tmp_path: Path, files: list[str], training: str | None, evaluation: str | None
) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    for refuse, code in ((refuse_taken, training), (refuse_evaluated, evaluation)):
        if code is None:
            refuse(tmp_path)
            continue
        with pytest.raises(ConfigError) as caught:
            refuse(tmp_path)
        assert (caught.value.code, caught.value.folder) == (code, str(tmp_path))


def test_new_run_takes_over_at_once(tmp_path: Path) -> None:
    (tmp_path / "failure.json").write_text("{}")
    takeover = Takeover(tmp_path, CONFIG, resume=False)
    assert takeover.config_file == tmp_path / "config.yaml"
    assert OmegaConf.load(tmp_path / "config.yaml") == {"seed": 1, "copy": 1}
    assert json.loads((tmp_path / "origin.json").read_text())["code"] == [{"commit": "now", "dirty": False}]
    assert not (tmp_path / "failure.json").exists()
    takeover.abandon()
    assert (tmp_path / "config.yaml").exists()


def test_abandoned_resume_does_not_change_the_folder(finished: Path) -> None:
    before, called = content(finished), []
    takeover = Takeover(finished, CONFIG, resume=True)
    takeover.on_abandon.append(lambda: called.append("abandoned"))
    takeover.on_commit.append(lambda: called.append("committed"))
    assert content(finished).items() > before.items()
    takeover.abandon()
    assert content(finished) == before
    assert called == ["abandoned"]


def test_commit_replaces_config_and_results(finished: Path) -> None:
    (finished / "rankings.previous").mkdir()  # of an earlier extension
    (finished / "rankings.previous/old.trec").touch()
    called: list[str] = []
    takeover = Takeover(finished, CONFIG, resume=True)
    takeover.on_commit.append(lambda: called.append("committed"))
    takeover.on_abandon.append(lambda: called.append("abandoned"))
    takeover.commit()
    takeover.commit()
    takeover.abandon()
    assert called == ["committed"]
    assert OmegaConf.load(finished / "config.yaml") == {"seed": 1, "copy": 1}
    origin = json.loads((finished / "origin.json").read_text())
    assert origin["code"] == [{"commit": "then"}, {"commit": "now", "dirty": False}]
    assert set(content(finished)) == {
        "config.yaml", "origin.json", "checkpoints/last.ckpt", "metrics.previous.json", "intervals.previous.json",
        "rankings.previous/wit.trec",
    }  # fmt: skip


def test_other_ranks_write_nothing(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = content(finished)
    monkeypatch.setattr(module, "is_first_rank", lambda: False)
    for resume in (True, False):
        takeover = Takeover(finished, CONFIG, resume)
        takeover.commit()
        takeover.abandon()
    assert content(finished) == before
