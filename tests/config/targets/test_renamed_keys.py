"""Earlier names of options are accepted with a warning, and have the meaning of the current ones."""

from __future__ import annotations

import inspect
import warnings
from importlib import import_module

import pytest
from omegaconf import OmegaConf

from ret_lightning.config.build import build
from ret_lightning.config.targets.renamed_keys import (
    FAISS_KEYS,
    RENAMED_KEYS,
    current_keys,
    current_metric,
    current_override,
    is_earlier,
    update_keys,
)
from ret_lightning.retrieval import ExactIndex, FaissIndex, MuveraIndex

FAISS = "ret_lightning.retrieval.FaissIndex"
CASES = [(target, old, new) for target, keys in RENAMED_KEYS.items() for old, new in keys.items()]
CLASSES = {
    target: getattr(import_module(target.rpartition(".")[0]), target.rpartition(".")[2]) for target in RENAMED_KEYS
}
REQUIRED = {"ret_lightning.evaluation.RetrievalEvaluation": {"index": ExactIndex()}}


@pytest.mark.parametrize(("target", "old", "new"), CASES)
def test_earlier_name_sets_the_current_option(target: str, old: str, new: str) -> None:
    parameters = inspect.signature(CLASSES[target]).parameters
    assert new in parameters
    assert old not in parameters
    config = OmegaConf.create({"part": {"_target_": target, new: None, old: 3}})
    OmegaConf.set_struct(config, True)
    (warning,) = update_keys(config)
    assert f"part.{old} " in warning
    assert "0.3" in warning
    assert f"part.{new}" in warning
    assert config == {"part": {"_target_": target, new: 3}}
    if target not in REQUIRED:
        assert getattr(build(config.part), new) == 3


@pytest.mark.parametrize(("target", "old", "new"), CASES)
def test_constructor_accepts_the_earlier_name(target: str, old: str, new: str) -> None:
    with pytest.warns(FutureWarning, match=f"{old} is deprecated.*0.3.*{new}"):
        part = CLASSES[target](**REQUIRED.get(target, {}), **{old: 3})
    assert part is not None
    if target not in REQUIRED:
        assert getattr(part, new) == 3


def test_unknown_arguments_are_refused() -> None:
    for options in ({"cellz": 3}, {"cells": 3, "cellz": 3}):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with pytest.raises(TypeError, match="cellz"):
                FaissIndex(**options)
    with pytest.raises(TypeError, match="codes"):
        MuveraIndex(codes=3)


def test_placeholders_of_a_factory_are_renamed() -> None:
    old, new = "IVF{cells},PQ{codes}x{bits}", "IVF{nlist},PQ{m}x{nbits}"
    assert FaissIndex(old).factory == FaissIndex(factory=old).factory == new
    config = OmegaConf.create({"_target_": FAISS, "factory": old, "seed": "${cells}", "device": None})
    (warning,) = update_keys(config)
    assert new in warning
    assert OmegaConf.to_container(config) == {"_target_": FAISS, "factory": new, "seed": "${cells}", "device": None}
    assert update_keys(config) == []


def test_current_name_takes_precedence() -> None:
    config = OmegaConf.create({"_target_": "ret_lightning.retrieval.faiss_index.FaissIndex", "nlist": 8, "cells": 4})
    update_keys(config)
    assert config.nlist == 8
    assert "cells" not in config


def test_other_targets_keep_their_keys() -> None:
    content = {"a": {"_target_": "own.Index", "cells": 3, "text": "{cells}"}, "b": {"cells": 3}, "c": [{"probes": 1}]}
    config = OmegaConf.create(content)
    assert update_keys(config) == []
    assert config == content
    assert current_keys(content) == content


def test_stored_config_is_renamed() -> None:
    node = {"_target_": FAISS, "factory": "IVF{cells},SQ4", "cells": None, "probes": 4}
    current = {"_target_": FAISS, "factory": "IVF{nlist},SQ4", "nlist": None, "nprobe": 4}
    assert current_keys({"retrieval": node, "evaluation": {"index": node}, "list": [node]}) == {
        "retrieval": current, "evaluation": {"index": current}, "list": [current],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("line", "renamed"),
    [
        ("retrieval.cells=64", "retrieval.nlist=64"),
        ("retrieval.cells=1,2", "retrieval.nlist=1,2"),
        ("+retrieval.cells=64", "retrieval.nlist=64"),
        ("~retrieval.cells", "~retrieval.nlist"),
        ("retrieval.probes=4", "++retrieval.nprobe=4"),
        ("other.cells=64", "other.cells=64"),
        ("missing.cells=64", "missing.cells=64"),
        ("seed.cells=64", "seed.cells=64"),
    ],
)
def test_override_is_renamed(line: str, renamed: str) -> None:
    config = OmegaConf.create({"retrieval": {"_target_": FAISS, "nlist": None}, "other": {"cells": 3}, "seed": 1})
    assert is_earlier(line)
    assert current_override(line, config) == renamed
    assert current_override(line, None) == line


@pytest.mark.parametrize("line", ["retrieval.nlist=64", "cells=64", "query=a.cells=3 b", "retrieval=cells", ""])
def test_other_overrides_are_not_earlier(line: str) -> None:
    assert not is_earlier(line)


def test_current_names_are_those_of_faiss() -> None:
    assert set(FAISS_KEYS.values()) == {"nlist", "nprobe", "m", "nbits", "M", "training_points"}


def test_metric_names_are_renamed() -> None:
    earlier, current = "val/mean/headline_recall", "val/mean/main_recall"
    assert current_metric(earlier) == current
    assert current_metric("mean/headline_pseudo_recall/low") == "mean/main_pseudo_recall/low"
    assert current_metric("headline/recall@5") == "headline/recall@5"
    assert current_metric("val/index/agreement@10") == "val/index/ann_recall@10"
    assert (
        current_metric("val/index/wit/agreement_without_fallback@10") == "val/index/wit/ann_recall_without_fallback@10"
    )
    assert current_metric("val/index/recall_cost@5") == "val/index/recall_loss@5"
    assert current_metric("val/seconds/agreement") == "val/seconds/ann_recall"
    for name in ("val/agreement/recall@5", "val/recall_cost/mrr@10", "val/agreement@x/recall@5", "agreement"):
        assert current_metric(name) == name
    stored = {"callbacks": {"checkpoint": {"monitor": earlier}}, "metric": "mean/headline_recall", "name": earlier}
    config = OmegaConf.create(stored)
    warnings = update_keys(config)
    assert [current in line or "mean/main_recall" in line for line in warnings] == [True, True]
    renamed = {"callbacks": {"checkpoint": {"monitor": current}}, "metric": "mean/main_recall", "name": earlier}
    assert OmegaConf.to_container(config) == renamed
    assert current_keys(stored) == renamed
    assert update_keys(config) == []
