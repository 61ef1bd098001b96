"""Which config a resumed run has, and what may be changed in it."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from ret_lightning.errors import ConfigError
from ret_lightning.training.resumption import resumed_config, same_run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder that was moved since: its config names the old place."""
    folder = tmp_path / "run"
    folder.mkdir()
    config = {
        "seed": 1,
        "output_dir": "/old/run",
        "resume": None,
        "data": {"root": "/data", "batch_size": 8, "num_workers": 0},
        "model": {"num_tokens": 4},
        "trainer": {"max_epochs": 3, "strategy": {"config_file": "/old/run/config.yaml"}},
        "callbacks": {"checkpoint": {"dirpath": "/old/run/checkpoints"}, "other": "/old/running"},
    }
    OmegaConf.save(OmegaConf.create(config), folder / "config.yaml")
    return folder


def test_it_is_the_runs_own_where_its_folder_is_now(run: Path) -> None:
    config = resumed_config(run, [f"resume={run}"])
    assert config.output_dir == str(run)
    assert config.callbacks.checkpoint.dirpath == f"{run}/checkpoints"
    assert config.trainer.strategy.config_file == f"{run}/config.yaml"
    assert config.callbacks.other == "/old/running"
    assert config.data.root == "/data"


def test_single_values_may_be_changed(run: Path) -> None:
    config = resumed_config(
        run, ["trainer.max_epochs=20", "data.num_workers=4", "data.root=/moved", "++trainer.precision=bf16-mixed"]
    )
    assert (config.trainer.max_epochs, config.data.num_workers, config.data.root) == (20, 4, "/moved")
    assert config.trainer.precision == "bf16-mixed"
    assert config.trainer.strategy.config_file


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed=2", "seed=2: what the run is made of stays as it is"),
        ("model.num_tokens=8", r"model\.num_tokens=8: what the run is made of"),
        ("data.batch_size=16", r"data\.batch_size=16: what the run is made of"),
        ("model=small", "model=small: a resumed run can change single values only, as in trainer.max_epochs=20"),
        ("~callbacks.checkpoint", "single values only"),
        ("trainer.max_epochs=3,4", "single values only"),
        ("trainer.max_epoch=3", r"no such key: trainer\.max_epoch; did you mean trainer\.max_epochs\?"),
    ],
)
def test_what_would_make_another_run_of_it_is_refused(run: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resumed_config(run, [override])


def test_a_finished_run_goes_on_only_where_something_is_changed(run: Path) -> None:
    (run / "metrics.json").write_text("{}")
    with pytest.raises(
        ConfigError, match=r"the run is finished \(metrics\.json is there\); to go on longer, say how long"
    ):
        resumed_config(run, [f"resume={run}"])
    assert resumed_config(run, ["trainer.max_epochs=20"]).trainer.max_epochs == 20


def test_a_folder_without_a_run_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no run folder \(it has no config\.yaml\)"):
        resumed_config(tmp_path, [])


def test_auto_goes_on_with_the_very_same_config_only(run: Path, tmp_path: Path) -> None:
    config = OmegaConf.load(run / "config.yaml")
    assert same_run(run, config)
    assert not same_run(tmp_path / "new", config)
    config.trainer.max_epochs = 5
    with pytest.raises(ConfigError, match=r"holds a run of another config \(trainer\.max_epochs: 3 there, 5 now\)"):
        same_run(run, config)
