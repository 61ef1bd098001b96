"""Identity of a run: configs of the same run and of different runs."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from ret_lightning.runs.identity import ABSENT, config_fingerprint, differences, flatten, is_within, run_identity


@pytest.mark.slow  # needs a run of ret-train
def test_config_of_an_earlier_version_is_equal(config: DictConfig) -> None:
    former = OmegaConf.create({key: value for key, value in config.items() if key != "init_partial"})
    assert flatten(former) == flatten(config)
    config.init_partial = True
    assert flatten(former) != flatten(config)


CONFIG: dict[str, Any] = {
    "seed": 1,
    "output_dir": "/runs/a",
    "data": {"root": "/data", "num_workers": 4, "subsets": ["wit", "okvqa"], "shared_passage_ids": False},
    "trainer": {"max_epochs": 3, "strategy": {"config_file": "/runs/a/config.yaml"}, "enable_progress_bar": True},
    "logger": {"csv": {"save_dir": "/runs/a/csv"}},
    "callbacks": {},
}


def changed(key: str, value: Any) -> dict[str, Any]:
    config = copy.deepcopy(CONFIG)
    *nodes, last = key.split(".")
    node = config
    for name in nodes:
        node = node[name]
    node[last] = value
    return config


def test_flatten_has_a_dotted_key_per_leaf() -> None:
    found = flatten(CONFIG)
    assert found["data.subsets"] == ["wit", "okvqa"]
    assert found["trainer.strategy.config_file"] == "${output_dir}/config.yaml"
    assert found["callbacks"] == {}
    assert "data.shared_passage_ids" not in found  # the default of an optional key
    assert flatten(changed("data.shared_passage_ids", True))["data.shared_passage_ids"] is True
    assert flatten(OmegaConf.create(CONFIG)) == found


def test_folder_with_the_same_prefix_is_unchanged() -> None:
    assert flatten(changed("data.root", "/runs/abc"))["data.root"] == "/runs/abc"


@pytest.mark.parametrize(
    ("key", "value", "same"),
    [
        ("data.num_workers", 0, True),
        ("trainer.enable_progress_bar", False, True),
        ("logger.csv", None, True),
        ("seed", 2, False),
        ("data.subsets", ["okvqa", "wit"], False),
        ("trainer.max_epochs", 4, False),
    ],
)
def test_settings_of_another_run(key: str, value: Any, same: bool) -> None:
    one, other = run_identity(CONFIG), run_identity(changed(key, value))
    assert (one == other) is same
    assert (config_fingerprint(one) == config_fingerprint(other)) is same


def test_moved_run_has_the_same_identity() -> None:
    moved = changed("output_dir", "/elsewhere/b")
    moved["trainer"]["strategy"]["config_file"] = "/elsewhere/b/config.yaml"
    moved["logger"]["csv"]["save_dir"] = "/elsewhere/b/csv"
    assert run_identity(moved) == run_identity(CONFIG)


def test_fingerprint_does_not_depend_on_the_order_of_keys() -> None:
    config = run_identity(CONFIG)
    assert config_fingerprint(dict(reversed(config.items()))) == config_fingerprint(config)
    assert len(config_fingerprint(config)) == 12


def test_differences_have_both_values() -> None:
    assert differences({"a": 1, "b": 2}, {"b": 3, "c": None}) == {"a": (1, ABSENT), "b": (2, 3), "c": (ABSENT, None)}


@pytest.mark.parametrize(
    ("key", "inside"), [("data", True), ("data.root", True), ("database", False), ("a.data", False)]
)
def test_is_within_a_node(key: str, inside: bool) -> None:
    assert is_within(key, ["logger", "data"]) is inside
