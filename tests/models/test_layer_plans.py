"""Layer plans against the table of the published models, and their errors."""

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


def test_published_plans() -> None:
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


def test_rules() -> None:
    assert Last().plan(12, 24) == LayerPlan((11,), (23,))
    assert FirstMiddleLast().plan(12, 25) == LayerPlan((0, 5, 11), (0, 12, 24))
    assert Evenly(3).plan(12, 24) == LayerPlan((3, 7, 11), (7, 15, 23))
    assert Evenly(12).plan(12, 24) == LayerPlan(tuple(range(12)), tuple(range(1, 24, 2)))
    assert Published().plan(4, 6) == LayerPlan((0, 1, 2, 3), (0, 2, 3, 5))
    assert Explicit([0, 2], [1, 1]).plan(3, 2) == LayerPlan((0, 2), (1, 1))


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (Evenly(5), r"recurrence\.steps=5 does not fit this backbone: choose 1 to 4"),
        (Evenly(0), r"recurrence\.steps=0 does not fit"),
        (Explicit([0, 4], [0, 1]), r"text blocks \[4\] do not exist; the text backbone has blocks 0 to 3"),
        (Explicit([0], [-1]), r"vision blocks \[-1\] do not exist"),
        (Explicit([0, 1], [0]), r"as many text blocks as vision blocks"),
        (Explicit([], []), r"at least one"),
    ],
)
def test_a_plan_that_does_not_fit(rule, message) -> None:
    with pytest.raises(ConfigError, match=message):
        rule.plan(4, 6)


def test_an_unknown_published_plan() -> None:
    with pytest.raises(ConfigError, match="unknown plan 'clip_vit_x'; choices: clip_vit_b, clip_vit_l"):
        Published().plan(4, 6, "clip_vit_x")


class PlanOfTheUser(Recurrence):
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
def test_plan_of_the_user_is_checked(make_retriever, plan: object, code: str) -> None:
    with pytest.raises(ConfigError) as raised:
        make_retriever(recurrence=PlanOfTheUser(plan))
    assert raised.value.code == code
