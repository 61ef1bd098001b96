"""Grouping of runs into variants, names of settings, and the choice of the baseline."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from ret_lightning.errors import ConfigError
from ret_lightning.report.run_folders import find_runs
from ret_lightning.report.variants import choose_baseline, group_runs
from tests.support.report_runs import make_run


def grouped(folder: Path):
    return group_runs(find_runs(folder)[0])


def test_copied_keys_are_one_setting(tmp_path: Path) -> None:
    for i, (gate, seed) in enumerate([("lstm", 2), ("lstm", 1), ("none", 1), ("none", 2)]):
        make_run(tmp_path / str(i), f"gate={gate}", seed=seed)
    variants, settings, remarks = grouped(tmp_path)
    assert [variant.label for variant in variants] == ["gate=lstm", "gate=none"]
    assert [[run.seed for run in variant.runs] for variant in variants] == [[1, 2], [1, 2]]
    assert [(setting.name, set(setting.keys)) for setting in settings] == [
        ("gate", {"gate._target_", "model.gate._target_"})
    ]
    assert remarks == []


def test_changed_value_within_group_is_own_setting(tmp_path: Path) -> None:
    make_run(tmp_path / "0", "gate=lstm")
    make_run(tmp_path / "1", "gate=lstm", "gate.forget_bias=1.5")
    make_run(tmp_path / "2", "gate=none", "model.num_tokens=4")
    variants, settings, _ = grouped(tmp_path)
    assert [setting.name for setting in settings] == ["num_tokens", "gate", "forget_bias"]
    assert variants[1].label == "num_tokens=8 gate=lstm forget_bias=1.5"
    assert variants[2].label == "num_tokens=4 gate=none forget_bias=0.0"


def test_keys_set_by_option_belong_to_group(tmp_path: Path) -> None:
    make_run(tmp_path / "0", "recurrence=last", "model=small")
    make_run(tmp_path / "1", "recurrence=evenly", "model=small")
    make_run(tmp_path / "2", "recurrence=evenly", "recurrence.steps=4", "model=small")
    make_run(tmp_path / "3", "recurrence=evenly", "recurrence.steps=4", "model=ret")
    variants, settings, _ = grouped(tmp_path)
    assert [setting.name for setting in settings] == ["model", "recurrence", "steps"]
    assert [variant.label for variant in variants] == [
        "model=small recurrence=last steps=absent",
        "model=small recurrence=evenly steps=2",
        "model=small recurrence=evenly steps=4",
        "model=ret recurrence=evenly steps=4",
    ]


def test_group_without_node_names_its_keys(tmp_path: Path) -> None:
    for i, (experiment, k) in enumerate([("one", 4), ("two", 8), ("two", 16)]):
        share = f"model.share_towers={str(experiment == 'one').lower()}"
        make_run(tmp_path / str(i), share, f"model.dropout={0.1 * (experiment == 'two')}", f"model.num_tokens={k}")
        file = tmp_path / str(i) / ".hydra/hydra.yaml"
        file.write_text(file.read_text().replace("choices:\n", f"choices:\n      sharing: {experiment}\n"))
    variants, settings, _ = grouped(tmp_path)
    assert [variant.label for variant in variants] == [
        "num_tokens=4 sharing=one", "num_tokens=8 sharing=two", "num_tokens=16 sharing=two"
    ]  # fmt: skip
    assert {s.name: set(s.keys) for s in settings}["sharing"] == {"model.share_towers", "model.dropout"}


def test_class_name_is_value_without_hydra_record(tmp_path: Path) -> None:
    for i, gate in enumerate(["lstm", "none"]):
        make_run(tmp_path / str(i), f"gate={gate}")
        shutil.rmtree(tmp_path / str(i) / ".hydra")
    assert [variant.label for variant in grouped(tmp_path)[0]] == ["gate=LSTMGate", "gate=NoGate"]


def test_folder_logger_and_workers_do_not_vary(tmp_path: Path) -> None:
    make_run(tmp_path / "a", "data.num_workers=0")
    make_run(tmp_path / "b/c", "data.num_workers=2", "logger=tensorboard", seed=3)
    variants, settings, _ = grouped(tmp_path)
    assert (len(variants), settings, variants[0].label) == (1, [], "all runs")
    assert [run.seed for run in variants[0].runs] == [1, 3]


def test_separate_data_seed_is_a_setting(tmp_path: Path) -> None:
    make_run(tmp_path / "0", "data.seed=7")
    make_run(tmp_path / "1", "data.seed=8")
    assert [variant.label for variant in grouped(tmp_path)[0]] == ["data.seed=7", "data.seed=8"]


def test_duplicate_run_is_left_out(tmp_path: Path) -> None:
    make_run(tmp_path / "first")
    make_run(tmp_path / "second")
    variants, _, remarks = grouped(tmp_path)
    assert [run.name for run in variants[0].runs] == ["first"]
    assert remarks == ["second is left out: same config and seed as first"]


def test_fingerprint_depends_on_config_only(tmp_path: Path) -> None:
    make_run(tmp_path / "one/here", "gate=none", seed=4)
    make_run(tmp_path / "two/there", "gate=none", seed=5)
    make_run(tmp_path / "two/other", "gate=lstm", seed=5)
    here = grouped(tmp_path / "one")[0][0].fingerprint
    other, there = (variant.fingerprint for variant in grouped(tmp_path / "two")[0])
    assert here == there != other
    assert len(here) == 12


def test_baseline_is_chosen_by_settings(tmp_path: Path) -> None:
    for i, (gate, tokens) in enumerate([("lstm", 4), ("lstm", 8), ("none", 4)]):
        make_run(tmp_path / str(i), f"gate={gate}", f"model.num_tokens={tokens}")
    variants, settings, _ = grouped(tmp_path)
    assert choose_baseline(variants, settings, None) is variants[0]
    assert choose_baseline(variants, settings, "gate=none") is variants[2]
    assert choose_baseline(variants, settings, "num_tokens=8") is variants[1]
    for wanted in ("gate=lstm num_tokens=8", "model.num_tokens=8,gate=lstm", variants[1].label):
        assert choose_baseline(variants, settings, wanted) is variants[1]
    labels = tuple(variant.label for variant in variants)
    for wanted, code, found, allowed in (
        ("gate=lstm", "baseline-ambiguous", "gate=lstm", labels[:2]),
        ("gate=nnoe num_tokens=4", "baseline-setting-unknown", "gate=nnoe", None),
        ("gate=none num_tokens=8", "baseline-unknown", "gate=none num_tokens=8", labels),
    ):
        with pytest.raises(ConfigError) as caught:
            choose_baseline(variants, settings, wanted)
        assert (caught.value.code, caught.value.found) == (code, found)
        assert caught.value.allowed == (allowed or ("num_tokens=4", "gate=lstm", "num_tokens=8", "gate=none"))


@pytest.mark.parametrize(
    ("differing", "key", "listed"),
    [
        ({"root": "/another"}, "data.root", "data.root=/no/such/corpus: a; data.root=/another: b"),
        ({"subsets": ("okvqa",)}, "data.subsets", 'data.subsets=["infoseek","okvqa"]: a; data.subsets=["okvqa"]: b'),
    ],
)
def test_runs_of_different_datasets_are_refused(tmp_path: Path, differing, key: str, listed: str) -> None:
    make_run(tmp_path / "a")
    make_run(tmp_path / "b", **differing)
    with pytest.raises(ConfigError) as caught:
        grouped(tmp_path)
    assert (caught.value.code, caught.value.keys) == ("report-datasets-differ", (key,))
    assert listed in caught.value.message


def test_training_options_do_not_change_dataset(tmp_path: Path) -> None:
    make_run(tmp_path / "a")
    make_run(tmp_path / "b", "data.batch_size=8", "data.negatives=2")
    assert grouped(tmp_path)[0][1].label == "batch_size=8 negatives=2"
