"""Config of a resumed run, and changes on the command line."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from ret_lightning.errors import ConfigError
from ret_lightning.runs.resume.resumed_config import folder_to_resume, refuse_finished, resumed_base, stored_config


def test_stored_config_follows_its_folder(run: Path) -> None:
    config = stored_config(run)
    assert config.output_dir == str(run)
    assert config.callbacks.checkpoint.dirpath == f"{run}/checkpoints"
    assert config.trainer.strategy.config_file == f"{run}/config.yaml"
    assert config.callbacks.other == "/old/running"
    assert config.data.root == "/data"


@pytest.mark.parametrize("is_recorded", [True, False])
def test_relative_root_of_earlier_versions(run: Path, tmp_path: Path, monkeypatch, is_recorded: bool) -> None:
    """It is relative to the working folder of the first start."""
    config = OmegaConf.load(run / "config.yaml")
    config.data.root = "corpus"
    OmegaConf.save(config, run / "config.yaml")
    if is_recorded:
        (run / ".hydra").mkdir()
        OmegaConf.save(OmegaConf.create({"hydra": {"runtime": {"cwd": "/first"}}}), run / ".hydra" / "hydra.yaml")
    monkeypatch.chdir(tmp_path)
    assert stored_config(run).data.root == ("/first/corpus" if is_recorded else f"{tmp_path}/corpus")


def test_stored_config_has_current_targets(run: Path) -> None:
    assert stored_config(run).callbacks.checkpoint._target_ == "ret_lightning.training.checkpointing.BestCheckpoint"


@pytest.mark.parametrize(
    ("data", "validation"),
    [
        ({"validation": "auto"}, "val_or_test"),  # a version without a holdout
        ({"validation": "auto", "holdout_rows": 1000}, "auto"),
        ({"validation": "val"}, "val"),
    ],
)
def test_auto_keeps_its_stored_meaning(run: Path, data: dict, validation: str) -> None:
    config = OmegaConf.load(run / "config.yaml")
    config.data = {**config.data, **data}
    OmegaConf.save(config, run / "config.yaml")
    assert stored_config(run).data.validation == validation


def test_evaluation_uses_the_changed_index(run: Path) -> None:
    config = stored_config(run)
    config.retrieval.nprobe = 32
    assert config.evaluation.index.nprobe == 32


@pytest.mark.parametrize(
    ("overrides", "folder"),
    [
        ([], None),
        (["resume=auto"], None),
        (["resume=null"], None),
        (["seed=1"], None),
        (["resume=/a/b"], "/a/b"),
        (["resume='/a/b=1'"], "/a/b=1"),
        (["resume=/x", "resume=/a/../b"], "/b"),
        (["resume=runs/a"], "CWD/runs/a"),
        (["resume=../a/"], "CWD/../a"),
        (["resume='~/a'"], "~/a"),
        (["resume=/a", "this is no override"], "/a"),
    ],
)
def test_folder_to_resume(overrides: list[str], folder: str | None) -> None:
    expected = folder and os.path.abspath(os.path.expanduser(folder.replace("CWD", os.getcwd())))
    found = folder_to_resume(overrides)
    assert (found and str(found)) == expected


def test_other_output_dir_is_refused(run: Path) -> None:
    assert resumed_base([f"resume={run}", f"output_dir={run}"]) is not None
    with pytest.raises(ConfigError) as caught:
        resumed_base([f"resume={run}", "output_dir=/elsewhere"])
    assert (caught.value.code, caught.value.found) == ("resume-other-output-dir", "/elsewhere")


@pytest.mark.parametrize(
    ("content", "code"),
    [(None, "resume-no-run"), ("a: [", "resume-config-unreadable"), ("seed: 1", "resume-config-unreadable")],
)
def test_folder_without_run_is_refused(tmp_path: Path, content: str | None, code: str) -> None:
    if content is not None:
        (tmp_path / "config.yaml").write_text(content)
    with pytest.raises(ConfigError) as caught:
        resumed_base([f"resume={tmp_path}"])
    assert caught.value.code == code


def test_finished_run_needs_a_change(run: Path) -> None:
    config = resumed_base([f"resume={run}"]).config
    refuse_finished(run, config)
    (run / "metrics.json").write_text("{}")
    with pytest.raises(ConfigError) as caught:
        refuse_finished(run, config)
    assert caught.value.code == "resume-finished"
    config.trainer.max_epochs = 20
    refuse_finished(run, config)
