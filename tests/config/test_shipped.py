"""Every YAML file that is shipped: it says how to run it, composes without a mistake, and builds."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_module
from omegaconf import DictConfig, OmegaConf

CONF = Path(__file__).parents[2] / "conf"
FILES = sorted(CONF.rglob("*.yaml"))
# What a file needs before it can be used; the rest of them need nothing.
NEEDS = {"data/m2kr": ["data.root=/nowhere"], "recurrence/explicit": ["recurrence.text=[0]", "recurrence.vision=[0]"]}


def overrides(file: Path) -> list[str]:
    """The command line that chooses a file."""
    name = file.relative_to(CONF).with_suffix("").as_posix()
    return [] if name == "train" else [name.replace("/", "="), *NEEDS.get(name, [])]


def composed(extra: list[str]) -> DictConfig:
    with initialize_config_module("ret_lightning.conf", version_base="1.3"):
        config = compose("train", overrides=extra, return_hydra_config=True)
    config.hydra.runtime.output_dir = "/nowhere"
    OmegaConf.set_struct(config, False)
    del config["hydra"]
    config.output_dir = "/nowhere"
    return config


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.relative_to(CONF).as_posix())
def test_the_header_shows_a_command_that_is_right(file: Path, tmp_path: Path) -> None:
    """The first command of the header is checked by ret-train itself, through `--cfg job`, which runs nothing."""
    header = file.read_text().split("\n\n")[0]
    commands = re.findall(r"^#   .*?(ret-train.*)$", header, re.MULTILINE)
    assert commands, "the header must show a command"
    words = commands[0].split("   ")[0].replace("'", "").split()[1:]
    options = [w for w in words if w != "-m"]
    if "-m" not in words:
        options = ["--cfg", "job", *options]
        run = subprocess.run(
            [sys.executable, "-m", "ret_lightning.commands.train", *options],
            capture_output=True,
            text=True,
            cwd=tmp_path,
        )
        assert run.returncode == 0, run.stderr
        assert yaml.safe_load(run.stdout)["seed"] == 42


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.relative_to(CONF).as_posix())
def test_what_it_names_is_built(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import lightning
    import torch

    from ret_lightning.config.build import build
    from ret_lightning.models import RetRetriever

    config = composed(overrides(file))
    config.output_dir = str(tmp_path)
    config.backbone.pretrained = None
    with torch.device("meta"):  # full-size backbones take no memory there
        assert isinstance(build(config.model), RetRetriever)
    assert isinstance(build(config.data), lightning.LightningDataModule)
    assert isinstance(build(config.evaluation), lightning.Callback)
    callbacks = [build(node) for node in config.callbacks.values()]
    for name in ("loss", "scheduler"):
        assert build(config[name]) is not None
    parameter = torch.nn.Parameter(torch.zeros(2))
    assert isinstance(build(config.optimizer)([parameter]), torch.optim.Optimizer)
    loggers = [build(node) for node in config.logger.values()]
    if config.trainer.accelerator == "gpu":
        config.trainer.accelerator = "cpu"  # there may be no GPU here; the rest of the node is what is tried
        config.trainer.devices = 1
        config.trainer.num_nodes = 1
    assert isinstance(build(config.trainer, logger=loggers or False, callbacks=callbacks), lightning.Trainer)


def test_the_groups_are_those_of_the_design() -> None:
    groups = {p.name for p in CONF.iterdir() if p.is_dir() and not p.name.startswith("_")}
    assert groups >= {
        "backbone", "recurrence", "gate", "loss", "data", "retrieval", "optimizer", "scheduler", "trainer", "logger",
        "callbacks", "experiment", "debug",
    }  # fmt: skip


def test_every_package_and_config_is_shipped() -> None:
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    project = tomllib.loads((CONF.parent / "pyproject.toml").read_text())["tool"]["setuptools"]
    on_disk = {
        "ret_lightning" + "".join(f".{part}" for part in p.parent.relative_to(CONF.parent / "ret_lightning").parts)
        for p in (CONF.parent / "ret_lightning").rglob("__init__.py")
    }
    assert set(project["packages"]) == on_disk | {"ret_lightning.conf"}
    depth = max(len(f.relative_to(CONF).parts) for f in FILES)
    assert depth <= 2  # what the patterns of package-data reach without doubt
