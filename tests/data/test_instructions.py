"""Instruction templates: any of them in training, the first in evaluation."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from ret_lightning.data.instructions import Instructions
from ret_lightning.errors import ConfigError


def test_a_list_for_all_and_a_list_by_subset() -> None:
    random = np.random.default_rng(0)
    everywhere = Instructions([" One: ", "Two:"])
    assert everywhere.first("wit") == "One:"
    drawn = Counter(everywhere.any("wit", random) for _ in range(400))
    assert set(drawn) == {"One:", "Two:"}
    assert 140 < drawn["One:"] < 260
    some = Instructions({"wit": ["Find:"]})
    assert (some.first("wit"), some.first("okvqa"), some.any("okvqa", random)) == ("Find:", None, None)
    assert some.subsets == ["wit"]
    assert Instructions().first("wit") is None


@pytest.mark.parametrize(
    ("templates", "message"),
    [
        ([], r"data\.instructions=\[\] must be a list of at least one text"),
        ("Find:", "must be a list"),
        ({"wit": []}, r"data\.instructions\.wit=\[\] must be a list"),
        ({"wit": "Find:"}, r"data\.instructions\.wit='Find:' must be a list"),
        (["Find:", 3], r"data\.instructions: 3 is no text"),
        ([" "], r"data\.instructions: ' ' is no text"),
    ],
)
def test_templates_are_lists_of_texts(templates, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Instructions(templates)
