"""Tests of the mixture: factors, weights and names of subsets."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from ret_lightning.data.sampling.mixture import Mixture, check_factors, check_names
from ret_lightning.data.sampling.training_set import TrainingChoice, TrainingSet
from ret_lightning.errors import ConfigError, DataError
from tests.support.row_files import jsonl_files


def test_copies_follow_the_factor() -> None:
    mixture = Mixture({"a": 2.25, "b": 0.5, "c": 0}, others=1)
    assert [mixture.copies("a", chance) for chance in (0.0, 0.24, 0.25, 0.99)] == [3, 3, 2, 2]
    assert [mixture.copies("b", chance) for chance in (0.0, 0.49, 0.5)] == [1, 1, 0]
    assert (mixture.copies("c", 0.0), mixture.copies("d", 0.0)) == (0, 1)
    assert not mixture.is_plain
    assert Mixture({"a": 1}).is_plain


def test_weights_divide_the_epoch(caplog: pytest.LogCaptureFixture) -> None:
    rows = {"wit": 600, "okvqa": 20, "evqa": 100, "unknown": 7}
    mixture = Mixture.from_settings(None, {"wit": 1, "okvqa": 2, "evqa": 0}, None, rows)
    sizes = {name: mixture.factor(name) * count for name, count in rows.items()}
    assert sizes == pytest.approx({"wit": 620 / 3, "okvqa": 2 * 620 / 3, "evqa": 0, "unknown": 0})
    assert "data.weights has no weight for unknown" in caplog.text
    with pytest.raises(DataError) as error:
        Mixture.from_settings(None, {"kvqa": 1}, None, rows)
    assert (error.value.code, error.value.subset) == ("weight-without-rows", "kvqa")


def test_chosen_subsets_include_unknown_rows() -> None:
    mixture = Mixture.from_settings({"wit": 3}, None, ["wit", "evqa"])
    assert [mixture.factor(name) for name in ("wit", "evqa", "unknown", "okvqa")] == [3, 1, 1, 0]
    assert Mixture.from_settings(None, None, None).is_plain


@pytest.mark.parametrize("factor", [-1, float("nan"), float("inf"), "2", True, None])
def test_invalid_factor_is_an_error(factor) -> None:
    with pytest.raises(ConfigError) as error:
        check_factors("data.repeat", {"wit": factor})
    assert (error.value.code, error.value.key) == ("mixture-factor-out-of-range", "data.repeat.wit")


def test_unknown_subset_is_an_error() -> None:
    with pytest.raises(ConfigError) as error:
        check_names("data.repeat", ["wit", "okvq"], ["wit", "okvqa"])
    assert (error.value.code, error.value.found, error.value.allowed) == ("unknown-subset", "okvq", ("wit", "okvqa"))
    assert "did you mean okvqa?" in error.value.message
    for options, code in (
        ({"weights": {"wit": 0}}, "all-weights-zero"),
        ({"repeat": {}, "weights": {"wit": 1}}, "repeat-and-weights"),
    ):
        with pytest.raises(ConfigError) as error:
            TrainingChoice(**options)
        assert error.value.code == code


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"reading": "random"}, "unknown-reading"),
        ({"shuffle_buffer": 0}, "shuffle-buffer-out-of-range"),
        ({"limit": 0}, "data-limit-out-of-range"),
    ],
)
def test_setting_out_of_range_is_an_error(options: dict, code: str) -> None:
    with pytest.raises(ConfigError) as error:
        TrainingChoice(**options)
    assert error.value.code == code
    assert error.value.found in options.values()


@pytest.mark.parametrize("reading", ["indexed", "streaming"])
def test_subset_names_from_training_rows_are_accepted(
    tmp_path: Path, reading: str, caplog: pytest.LogCaptureFixture
) -> None:
    files = jsonl_files(
        tmp_path / "a.jsonl", [{"data_id": "1", "subset": "birds"}, {"data_id": "2", "subset": "wit"}] * 4
    )

    def training(**options) -> TrainingSet:
        return TrainingSet(files, TrainingChoice(reading=reading, **options), ["wit"], {})

    batches = training(repeat={"birds": 2}).batches(4)
    assert sum(map(len, batches)) == 12
    for setting, name, close in (("repeat", "bird", "birds"), ("weights", "wti", "wit")):
        with pytest.raises(ConfigError) as error:
            training(**{setting: {name: 2}})
        assert (error.value.code, error.value.key, error.value.found) == ("unknown-subset", f"data.{setting}", name)
        assert f"did you mean {close}?" in error.value.message
    assert sum(map(len, training(weights={"birds": 3, "wit": 1}).batches(4))) in (
        range(7, 10) if reading == "streaming" else [8]
    )
    with caplog.at_level(logging.WARNING):
        sum(map(len, training(repeat={"iglue": 2, "birds": 0}).batches(4)))
    assert ("data.repeat.iglue has no effect" in caplog.text) == (reading == "indexed")
    with pytest.raises(DataError) as error:
        list(training(repeat={"birds": 0, "wit": 0}).batches(4))
    assert error.value.code == {"streaming": "stream-too-short", "indexed": "mixture-without-rows"}[reading]
