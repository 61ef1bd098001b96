"""Instruction templates: sampled in training, the first one in evaluation."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from ret_lightning.data.instructions import Instructions
from ret_lightning.errors import ConfigError


def test_templates_for_all_and_by_subset() -> None:
    random = np.random.default_rng(0)
    everywhere = Instructions([" One: ", "Two:"])
    assert everywhere.first("wit") == "One:"
    sampled = Counter(everywhere.sample("wit", random) for _ in range(400))
    assert set(sampled) == {"One:", "Two:"}
    assert 140 < sampled["One:"] < 260
    some = Instructions({"wit": ["Find:"]})
    assert (some.first("wit"), some.first("okvqa"), some.sample("okvqa", random)) == ("Find:", None, None)
    assert some.subsets == ["wit"]
    assert Instructions().first("wit") is None


@pytest.mark.parametrize(
    ("templates", "code", "key", "found"),
    [
        ([], "instructions-not-a-list", "data.instructions", "[]"),
        ("Find:", "instructions-not-a-list", "data.instructions", "'Find:'"),
        ({"wit": []}, "instructions-not-a-list", "data.instructions.wit", "[]"),
        ({"wit": "Find:"}, "instructions-not-a-list", "data.instructions.wit", "'Find:'"),
        (["Find:", 3], "instruction-not-text", "data.instructions", 3),
        ([" "], "instruction-not-text", "data.instructions", " "),
    ],
)
def test_invalid_templates_are_refused(templates: object, code: str, key: str, found: object) -> None:
    with pytest.raises(ConfigError) as error:
        Instructions(templates)
    assert (error.value.code, error.value.key, error.value.found) == (code, key, found)
