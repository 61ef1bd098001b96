"""When two configs are of one run."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from ret_lightning.runs.identity import ABSENT, config_fingerprint, differences, flat, of_the_run, within


@pytest.mark.slow  # needs a run of ret-train
def test_runs_of_earlier_versions_are_the_same(config: DictConfig) -> None:
    former = OmegaConf.create({key: value for key, value in config.items() if key != "init_partial"})
    assert flat(former) == flat(config)
    config.init_partial = True
    assert flat(former) != flat(config)


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


def test_flat_has_a_dotted_key_per_leaf_and_no_path_of_the_run() -> None:
    found = flat(CONFIG)
    assert found["data.subsets"] == ["wit", "okvqa"]
    assert found["trainer.strategy.config_file"] == "${output_dir}/config.yaml"
    assert found["callbacks"] == {}
    assert "data.shared_passage_ids" not in found  # the value that a config without the key means
    assert flat(changed("data.shared_passage_ids", True))["data.shared_passage_ids"] is True
    assert flat(OmegaConf.create(CONFIG)) == found


def test_a_folder_whose_name_begins_alike_is_another() -> None:
    assert flat(changed("data.root", "/runs/abc"))["data.root"] == "/runs/abc"


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
def test_settings_that_make_another_run(key: str, value: Any, same: bool) -> None:
    one, other = of_the_run(CONFIG), of_the_run(changed(key, value))
    assert (one == other) is same
    assert (config_fingerprint(one) == config_fingerprint(other)) is same


def test_moved_run_is_the_same() -> None:
    moved = changed("output_dir", "/elsewhere/b")
    moved["trainer"]["strategy"]["config_file"] = "/elsewhere/b/config.yaml"
    moved["logger"]["csv"]["save_dir"] = "/elsewhere/b/csv"
    assert of_the_run(moved) == of_the_run(CONFIG)


def test_fingerprint_does_not_depend_on_the_order_of_keys() -> None:
    config = of_the_run(CONFIG)
    assert config_fingerprint(dict(reversed(config.items()))) == config_fingerprint(config)
    assert len(config_fingerprint(config)) == 12


def test_differences_have_both_values() -> None:
    assert differences({"a": 1, "b": 2}, {"b": 3, "c": None}) == {"a": (1, ABSENT), "b": (2, 3), "c": (ABSENT, None)}


@pytest.mark.parametrize(
    ("key", "inside"), [("data", True), ("data.root", True), ("database", False), ("a.data", False)]
)
def test_within_a_node(key: str, inside: bool) -> None:
    assert within(key, ["logger", "data"]) is inside
