"""Layer plans of the published models, rules for layer plans, and their errors."""

from __future__ import annotations

import pytest

from ret_lightning.errors import ConfigError
from ret_lightning.models.layer_plans import (
    PUBLISHED_PLANS,
    Evenly,
    Explicit,
    FirstMiddleLast,
    Last,
    LayerPlan,
    Published,
    Recurrence,
)


def test_published_plans_match_table() -> None:
    twelve = tuple(range(12))
    assert PUBLISHED_PLANS == {
        "clip_vit_b": LayerPlan(twelve, twelve),
        "clip_vit_l": LayerPlan(twelve, (0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22)),
        "openclip_vit_h": LayerPlan(
            (1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23), (0, 2, 5, 8, 11, 14, 17, 20, 23, 26, 29, 31)
        ),
        "openclip_vit_g": LayerPlan(
            (0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 31),
            (2, 5, 8, 11, 14, 17, 20, 23, 26, 29, 32, 35, 38, 41, 44, 47),
        ),
    }
    assert [plan.steps for plan in PUBLISHED_PLANS.values()] == [12, 12, 12, 16]
    sizes = {"clip_vit_b": (12, 12), "clip_vit_l": (12, 24), "openclip_vit_h": (24, 32), "openclip_vit_g": (32, 48)}
    for name, (text, vision) in sizes.items():
        assert Published().plan(text, vision, name) == PUBLISHED_PLANS[name]


def test_rules_return_plans() -> None:
    assert Last().plan(12, 24) == LayerPlan((11,), (23,))
    assert FirstMiddleLast().plan(12, 25) == LayerPlan((0, 5, 11), (0, 12, 24))
    assert Evenly(3).plan(12, 24) == LayerPlan((3, 7, 11), (7, 15, 23))
    assert Evenly(12).plan(12, 24) == LayerPlan(tuple(range(12)), tuple(range(1, 24, 2)))
    assert Published().plan(4, 6) == LayerPlan((0, 1, 2, 3), (0, 2, 3, 5))
    assert Explicit([0, 2], [1, 1]).plan(3, 2) == LayerPlan((0, 2), (1, 1))


@pytest.mark.parametrize(
    ("rule", "code", "values"),
    [
        (Evenly(5), "plan-steps-out-of-range", {"found": 5, "most": 4}),
        (Evenly(0), "plan-steps-out-of-range", {"found": 0, "most": 4}),
        (Explicit([0, 4], [0, 1]), "plan-blocks-missing", {"side": "text", "found": (4,), "most": 3}),
        (Explicit([0], [-1]), "plan-blocks-missing", {"side": "vision", "found": (-1,), "most": 5}),
        (Explicit([0, 1], [0]), "plan-sides-differ", {"text": (0, 1), "vision": (0,)}),
        (Explicit([], []), "plan-sides-differ", {"text": (), "vision": ()}),
    ],
)
def test_plan_for_another_backbone_is_refused(rule: Recurrence, code: str, values: dict) -> None:
    with pytest.raises(ConfigError) as error:
        rule.plan(4, 6)
    assert (error.value.code, error.value.values) == (code, values)


def test_unknown_published_plan_is_refused() -> None:
    with pytest.raises(ConfigError) as error:
        Published().plan(4, 6, "clip_vit_x")
    assert (error.value.code, error.value.found) == ("plan-name-unknown", "clip_vit_x")
    assert error.value.allowed == tuple(PUBLISHED_PLANS)


class UserRecurrence(Recurrence):
    def __init__(self, result: object) -> None:
        self.result = result

    def plan(self, text_blocks: int, vision_blocks: int, published_plan: str | None = None) -> object:
        return self.result


@pytest.mark.parametrize(
    ("plan", "code"),
    [
        (((0,), (0,)), "plan-of-wrong-type"),
        (None, "plan-of-wrong-type"),
        (LayerPlan((), ()), "plan-sides-differ"),
        (LayerPlan((0, 1), (0,)), "plan-sides-differ"),
        (LayerPlan((0,), (99,)), "plan-blocks-missing"),
        (LayerPlan((0,), (1.0,)), "plan-blocks-not-int"),
        (LayerPlan(("0",), (1,)), "plan-blocks-not-int"),
    ],
)
def test_user_plan_is_checked(make_retriever, plan: object, code: str) -> None:
    with pytest.raises(ConfigError) as raised:
        make_retriever(recurrence=UserRecurrence(plan))
    assert raised.value.code == code
