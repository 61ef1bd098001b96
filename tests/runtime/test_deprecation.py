"""Earlier public names are accepted with a warning, and are the objects of today's names."""

from __future__ import annotations

import importlib

import pytest
import torch

from ret_lightning.evaluation import RetrievalEvaluation, SubsetResult
from ret_lightning.inputs import EncoderInput
from ret_lightning.runtime.deprecation import RenamedAttribute, find_in, renamed_names

RENAMED = [
    ("inputs", "rgb_image", "to_rgb"),
    ("models", "OpeningMeans", "ActivationMeans"),
    ("models", "Openings", "GateActivations"),
    ("retrieval", "draw_sample", "sample_queries"),
    ("retrieval", "gather_at", "gather_by_position"),
    ("retrieval", "intervals", "bootstrap_intervals"),
    ("retrieval", "judge", "evaluate_ranking"),  # earlier name
    ("retrieval", "measure_agreement", "measure_ann_recall"),
    ("retrieval", "share_of", "rank_slice"),
]


@pytest.mark.parametrize(("package", "earlier", "current"), RENAMED)
def test_earlier_name_is_deprecated(package: str, earlier: str, current: str) -> None:
    module = importlib.import_module(f"ret_lightning.{package}")
    with pytest.warns(
        FutureWarning, match=rf"ret_lightning.{package}.{earlier} is deprecated.*0\.3; use {current}"
    ) as seen:
        found = getattr(module, earlier)
    assert found is getattr(module, current)
    assert [warning.filename for warning in seen] == [__file__]
    assert earlier not in dir(module)


@pytest.mark.parametrize("package", ["inputs", "models", "retrieval"])
def test_unknown_name_is_refused(package: str) -> None:
    module = importlib.import_module(f"ret_lightning.{package}")
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = module.no_such_name


def test_renamed_names_find_current_names() -> None:
    find = renamed_names("pack", {"old": "new"}, find_in({"__name__": "pack", "new": 3}))
    with pytest.warns(FutureWarning, match=r"pack\.old is deprecated"):
        assert find("old") == 3
    assert find("new") == 3


def test_renamed_attribute_of_class_and_instance() -> None:
    class Part:
        value = 1
        old = RenamedAttribute("value")

        def __init__(self) -> None:
            self.value = 2

    for owner, expected in ((Part, 1), (Part(), 2)):
        with pytest.warns(FutureWarning, match=r"Part\.old is deprecated.*use value"):
            assert owner.old == expected


def test_earlier_methods_are_deprecated() -> None:
    inputs = EncoderInput.dense(torch.ones(2, 3, dtype=torch.long), torch.ones(2, 3), torch.ones(2, 3, 4, 4))
    with pytest.warns(FutureWarning, match=r"EncoderInput\.stretch"):  # earlier name
        assert len(inputs.stretch(0, 1)) == 1  # earlier name
    with pytest.warns(FutureWarning, match=r"RetrievalEvaluation\.of"):
        assert RetrievalEvaluation.of is RetrievalEvaluation.from_trainer
    result = SubsetResult(None, [], [], None, {}, {"recall@5": 1.0}, {}, {"ann_recall@10": 0.9})
    with pytest.warns(FutureWarning, match=r"SubsetResult\.agreement"):
        assert result.agreement == {"ann_recall@10": 0.9}
