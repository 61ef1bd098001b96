"""Tests of the subset of a training row."""

from __future__ import annotations

import pytest

from ret_lightning.data.layouts.subset_names import UNKNOWN, SubsetNames

NAMES = SubsetNames(["wit", "WITH", "okvqa", "e-vqa", "wit"])


@pytest.mark.parametrize(
    ("subset", "data_id", "name"),
    [
        (None, "WIT_train_1", "wit"),
        (None, "wit-7", "wit"),
        (None, "wit", "wit"),
        (None, "with_1", "WITH"),  # the longest name
        (None, "withal_1", UNKNOWN),  # not a whole word
        (None, "wit2_1", UNKNOWN),
        (None, "E-VQA.3", "e-vqa"),
        (None, "my_okvqa_1", UNKNOWN),  # only at the beginning
        (None, "", UNKNOWN),
        ("OKVQA", "wit_1", "okvqa"),  # the field has priority; the spelling is that of the known name
        ("birds", "wit_1", "birds"),
    ],
)
def test_subset_of_row(subset: str | None, data_id: str, name: str) -> None:
    assert NAMES(subset, data_id) == name


def test_known_names_are_listed_once() -> None:
    assert NAMES.known == ("wit", "WITH", "okvqa", "e-vqa")
