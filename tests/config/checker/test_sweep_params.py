"""Earlier option names in `hydra.sweeper.params`: current names, deprecations, and the config that decides them."""

from __future__ import annotations

import pytest
from omegaconf import DictConfig, OmegaConf

from ret_lightning.config.checker.sweep_params import find_renamed_params, rename_params

FAISS, OTHER = "ret_lightning.retrieval.FaissIndex", "own.Index"


def renamed(params: dict, *overrides: str, target: str = FAISS) -> tuple[dict[str, str], list[list[str]]]:
    """Return the renamed parameters, and the overrides of each composed job."""
    composed: list[list[str]] = []

    def compose(job: list) -> DictConfig:
        composed.append([override.input_line for override in job])
        return OmegaConf.create({"retrieval": {"_target_": target, "nlist": None}, "seed": 1})

    return find_renamed_params(params, overrides, None, compose), composed


@pytest.mark.parametrize(
    ("key", "current"),
    [
        ("retrieval.cells", "retrieval.nlist"),
        ("+retrieval.cells", "retrieval.nlist"),
        ("retrieval.probes", "++retrieval.nprobe"),
    ],
)
def test_earlier_key_is_found(key: str, current: str) -> None:
    assert renamed({key: "1,2"})[0] == {key: current}


def test_first_job_is_composed_without_earlier_keys() -> None:
    found, composed = renamed({"retrieval": "a,b", "retrieval.cells": "1,2", "seed": "3,4"}, "model.width=5,6")
    assert found == {"retrieval.cells": "retrieval.nlist"}
    assert composed == [["retrieval=a", "seed=3", "model.width=5"]]


def test_other_keys_are_not_composed() -> None:
    assert renamed({"retrieval.nlist": "1,2", "seed": "3,4"}) == ({}, [])


def test_other_targets_keep_their_keys() -> None:
    assert renamed({"retrieval.cells": "1,2"}, target=OTHER)[0] == {}


def test_params_keep_their_order() -> None:
    params = {"seed": "1,2", "retrieval.cells": "4,8", "optimizer.lr": 0.1}
    current = rename_params(params, {"retrieval.cells": "retrieval.nlist"})
    assert list(current.items()) == [("seed", "1,2"), ("retrieval.nlist", "4,8"), ("optimizer.lr", 0.1)]


def test_current_name_takes_precedence() -> None:
    params = {"retrieval.cells": "4,8", "retrieval.nlist": 2}
    assert rename_params(params, {"retrieval.cells": "retrieval.nlist"}) == {"retrieval.nlist": 2}
