"""Shipped YAML files: each shows a valid command, composes without a problem, and can be built."""

from __future__ import annotations

import re
import runpy
import shlex
from collections.abc import Callable
from pathlib import Path

import lightning
import pytest
import torch
import yaml
from hydra import compose, initialize_config_module
from omegaconf import DictConfig, OmegaConf

from ret_lightning.config.build import build
from ret_lightning.models import RetRetriever
from ret_lightning.models.backbones import Backbone
from ret_lightning.models.gates import gate_named
from tests.support.paths import CONF, ROOT

FILES = sorted(file for file in CONF.rglob("*.yaml") if not file.name.startswith("_"))  # without base configs
# The primary configs of other commands than ret-train, with some of their keys.
COMMANDS = {
    "check": {"data", "images"},
    "evaluate": {"checkpoint", "output_dir", "split"},
    "export": {"checkpoint", "output"},
    "index": {"checkpoint", "passages", "index"},
    "report": {"runs", "output"},
    "search": {"index", "query", "image", "queries"},
}
TRAINING_FILES = [
    file
    for file in FILES
    if file.relative_to(CONF).with_suffix("").as_posix() not in COMMANDS and file.relative_to(CONF).parts[0] != "hydra"
]
# Required settings of some files.
NO_DATA, LAYERS = ["data.root=/nowhere"], ["recurrence.text=[0]", "recurrence.vision=[0]"]
NEEDS = {
    "data/m2kr": NO_DATA,
    "data/m2kr_recipe": NO_DATA,
    "recurrence/explicit": LAYERS,
    **{f"experiment/{name}": NO_DATA for name in ("ret_vit_l", "ret_vit_h", "ret_vit_g", "ret2_like")},
}


def overrides(file: Path) -> list[str]:
    """Return the command line that chooses a file."""
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


@pytest.mark.parametrize(
    "file", [f for f in FILES if f != CONF / "hydra/command.yaml"], ids=lambda f: f.relative_to(CONF).as_posix()
)
def test_header_has_a_valid_command(file: Path, call: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    """The first command of the header is checked with `--cfg job`, which does not run it."""
    name = file.relative_to(CONF).with_suffix("").as_posix()
    command = name if name in COMMANDS else "train"
    header = file.read_text().split("\n\n")[0]
    commands = re.findall(rf"^#   .*?(ret-{command}.*)$", header, re.MULTILINE)
    assert commands, "the header must show a command"
    words = shlex.split(commands[0].split("   ")[0])[1:]
    if "-m" not in words:
        code = call(command, "--cfg", "job", *words)
        printed = capsys.readouterr()
        assert code == 0, printed.err
        config = yaml.safe_load(printed.out)
        assert config["seed"] == 42 if command == "train" else set(config) > COMMANDS[command]


@pytest.mark.parametrize("file", TRAINING_FILES, ids=lambda f: f.relative_to(CONF).as_posix())
def test_targets_are_built(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
        config.trainer.accelerator = "cpu"  # this machine may have no GPU
        config.trainer.devices = 1
        config.trainer.num_nodes = 1
    assert isinstance(build(config.trainer, logger=loggers or False, callbacks=callbacks), lightning.Trainer)


def options_of(group: str) -> list[str]:
    return sorted(file.stem for file in (CONF / group).glob("*.yaml"))


@pytest.mark.parametrize("backbone", options_of("backbone"))
def test_backbone_supports_all_recurrences(backbone: str) -> None:
    made = None
    for recurrence in options_of("recurrence"):
        needs = NEEDS.get(f"recurrence/{recurrence}", [])
        made, retriever = build_on_meta(made, f"backbone={backbone}", f"recurrence={recurrence}", *needs)
        tower = retriever.query_tower
        assert len(tower.text_adapters) == tower.plan.steps
        expected = {
            "last": 1, "first_middle_last": 3, "evenly": 2, "explicit": 1,
            "published": {"tiny": 2, "openclip_vit_g": 16}.get(backbone, 12),
        }  # fmt: skip
        assert tower.plan.steps == expected[recurrence]


def test_all_gates_are_built() -> None:
    made = None
    for gate in options_of("gate"):
        for plan in ("recurrence=last", "recurrence=evenly"):
            made, retriever = build_on_meta(made, "backbone=tiny", f"gate={gate}", plan)
            assert {type(cell.gate) for cell in retriever.query_tower.cells} == {gate_named(gate)}


def build_on_meta(backbone: Backbone | None, *options: str) -> tuple[Backbone, RetRetriever]:
    """Build a retriever without memory, with a backbone that was built before: large ones take seconds."""
    config = composed([*options, "model=ret", "init_from=null"])
    config.backbone.pretrained = None
    with torch.device("meta"):
        backbone = backbone or build(config.backbone)
        node = OmegaConf.create(OmegaConf.to_container(config.model, resolve=True))
        del node.backbone
        return backbone, build(node, backbone=backbone)


def test_config_groups_exist() -> None:
    groups = {p.name for p in CONF.iterdir() if p.is_dir() and not p.name.startswith("_")}
    assert groups >= {
        "backbone", "recurrence", "gate", "loss", "data", "retrieval", "optimizer", "scheduler", "trainer", "logger",
        "callbacks", "experiment", "debug",
    }  # fmt: skip


def test_model_config_has_all_parameters() -> None:
    """`model.x=y` is refused for keys that are not in the file."""
    import inspect

    from ret_lightning.models import build_retriever

    keys = yaml.safe_load((CONF / "model/ret.yaml").read_text()).keys() - {"_target_"}
    assert keys == set(inspect.signature(build_retriever).parameters)


def test_packages_and_configs_are_shipped(monkeypatch: pytest.MonkeyPatch) -> None:
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    setuptools = pytest.importorskip("setuptools")
    found: dict[str, list[str]] = {}
    monkeypatch.setattr(setuptools, "setup", found.update)
    monkeypatch.chdir(ROOT)
    runpy.run_path("setup.py")
    package = ROOT / "ret_lightning"
    folders = [package, *(p for p in package.rglob("*") if p.is_dir() and any(p.glob("*.py")))]
    on_disk = {".".join(("ret_lightning", *p.relative_to(package).parts)) for p in folders}
    configs = {".".join(("ret_lightning.conf", *file.relative_to(CONF).parts[:-1])) for file in CONF.rglob("*.yaml")}
    assert set(found["packages"]) == on_disk | configs
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    assert "*.yaml" in data["*"]
    others = {p.name for p in package.rglob("*") if p.is_file() and p.suffix not in (".py", ".pyc")}
    assert others <= {*data["*"], *data["ret_lightning.report"]}
