"""The list of backbones, and the registry of stacks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra

from ret_lightning.config.targets.allowed_targets import OWN_PACKAGES
from ret_lightning.errors import ConfigError
from ret_lightning.models import PUBLISHED_PLANS, Evenly
from ret_lightning.models.backbones import __main__, list_backbones
from ret_lightning.models.backbones.base import STACKS, find_stack
from ret_lightning.models.backbones.clip_transformers import ClipTextStack
from tests.support.hashed_text import HashedText
from tests.support.lab_backbone import write_backbone
from tests.support.paths import CONF

CONFIGS = {file.stem: yaml.safe_load(file.read_text()) for file in (CONF / "backbone").glob("*.yaml")}


@pytest.fixture(scope="module")
def cards() -> dict[str, Any]:
    return {card.name: card for card in list_backbones()}


def test_every_config_is_listed(cards: dict[str, Any]) -> None:
    assert list(cards) == sorted(CONFIGS)
    assert {name: card.problem for name, card in cards.items()} == dict.fromkeys(cards, "")
    assert all(card.description for card in cards.values())


@pytest.mark.parametrize("name", CONFIGS)
def test_cards_match_configs(cards: dict[str, Any], name: str) -> None:
    card, config = cards[name], CONFIGS[name]
    if "text" in config:
        assert card.text == (config["text"]["hidden_size"], config["text"]["num_hidden_layers"])
        assert card.vision == (config["vision"]["hidden_size"], config["vision"]["num_hidden_layers"])
    assert card.family == ("clip_text_model", "clip_vision_model")
    fewer = min(card.text[1], card.vision[1])
    plan = PUBLISHED_PLANS.get(config["published_plan"]) or Evenly(fewer).plan(card.text[1], card.vision[1])
    assert card.plan == plan


def test_list_backbones_within_hydra_application() -> None:
    with initialize_config_module("ret_lightning.conf", version_base="1.3"):
        before = GlobalHydra.instance().hydra
        assert list_backbones()
        assert GlobalHydra.instance().hydra is before
        assert compose("train").backbone.text.hidden_size == 64


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(tmp_path)
    return write_backbone(tmp_path, "tests_registry_lab")


def test_command_prints_a_table(own: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv(OWN_PACKAGES, "tests_registry_lab")
    monkeypatch.setattr("sys.argv", ["backbones", "--config-dir", str(own)])
    assert __main__.main() == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["backbone", *sorted([*CONFIGS, "letters"])]
    (line,) = [line for line in lines if line.startswith("letters")]
    assert line.split("  ")[-1] == "Letters and patches"
    assert "2 x 16" in line
    assert "3 x 16" in line


def test_forbidden_config_is_listed_with_problem(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(OWN_PACKAGES, raising=False)
    (card,) = [card for card in list_backbones([own]) if card.name == "letters"]
    assert card.text is None
    assert "a config may not build tests_registry_lab.lab_backbone" in card.problem


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("text: [", "ParserError"),
        ("defaults: [nothing]", "MissingConfigException"),
        ("text: 1", "got dict; set _target_ to a function that returns a Backbone [backbone-of-wrong-type]"),
    ],
)
def test_broken_config_is_listed_with_problem(tmp_path: Path, content: str, problem: str) -> None:
    folder = tmp_path / "a folder, of 'mine'"
    (folder / "backbone").mkdir(parents=True)
    (folder / "backbone" / "broken.yaml").write_text(content)
    (card,) = [card for card in list_backbones([folder]) if card.name == "broken"]
    assert problem in card.problem
    assert "\n" not in card.problem


def test_missing_config_dir_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigError) as raised:
        list_backbones([tmp_path / "nowhere"])
    assert (raised.value.code, raised.value.path) == ("backbone-folder-missing", tmp_path / "nowhere")
    monkeypatch.setattr("sys.argv", ["backbones", "--config-dir", str(tmp_path / "nowhere")])
    assert __main__.main() == 1
    assert capsys.readouterr().err.strip().endswith("[backbone-folder-missing]")


def define(name: str, model_type: str, module: str = __name__) -> type[HashedText]:
    return type(name, (HashedText,), {"model_type": model_type, "__module__": module, "__qualname__": name})


def test_stack_is_registered_when_defined(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ret_lightning.models.backbones.base.STACKS", dict(STACKS))
    mine = define("Mine", "tests_mine")
    assert find_stack("tests_mine") == (mine, "")
    again = define("Mine", "tests_mine")  # as in a notebook
    assert find_stack("tests_mine") == (again, "")
    type("Derived", (mine,), {})  # inherits its model_type
    assert find_stack("tests_mine") == (again, "")
    with pytest.raises(ConfigError) as raised:
        define("Other", "tests_mine")
    assert (raised.value.code, raised.value.found) == ("backbone-model-type-taken", "tests_mine")
    main = define("Other", "tests_mine", "__main__")  # a file that is run as a script redefines its classes
    assert find_stack("tests_mine") == (main, "")


def test_unknown_stack_is_not_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(OWN_PACKAGES, raising=False)
    assert find_stack("clip_text_model")[0] is ClipTextStack
    assert find_stack("tests_nobody") == (None, "")
    stack, hint = find_stack("tests_nobody", ["tests_their_package.stacks"])
    assert stack is None
    assert f"{OWN_PACKAGES}=tests_their_package" in hint
