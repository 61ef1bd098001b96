from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from ret_lightning.errors import ConfigError
from ret_lightning.report.run_folders import find_runs
from ret_lightning.report.variants import choose, group
from tests.support.report_runs import make_run


def grouped(folder: Path):
    return group(find_runs(folder)[0])


def test_a_choice_that_is_copied_into_several_nodes_counts_once(tmp_path: Path) -> None:
    for i, (gate, seed) in enumerate([("lstm", 2), ("lstm", 1), ("none", 1), ("none", 2)]):
        make_run(tmp_path / str(i), f"gate={gate}", seed=seed)
    variants, settings, remarks = grouped(tmp_path)
    assert [variant.label for variant in variants] == ["gate=lstm", "gate=none"]
    assert [[run.seed for run in variant.runs] for variant in variants] == [[1, 2], [1, 2]]
    assert [(setting.name, set(setting.keys)) for setting in settings] == [
        ("gate", {"gate._target_", "model.gate._target_"})
    ]
    assert remarks == []


def test_values_beside_a_choice_keep_their_own_name(tmp_path: Path) -> None:
    make_run(tmp_path / "0", "gate=lstm")
    make_run(tmp_path / "1", "gate=lstm", "gate.forget_bias=1.5")
    make_run(tmp_path / "2", "gate=none", "model.num_tokens=4")
    variants, settings, _ = grouped(tmp_path)
    assert [setting.name for setting in settings] == ["num_tokens", "gate", "forget_bias"]
    assert variants[1].label == "num_tokens=8 gate=lstm forget_bias=1.5"
    assert variants[2].label == "num_tokens=4 gate=none forget_bias=0.0"


def test_all_that_a_choice_brings_along_is_folded_into_it(tmp_path: Path) -> None:
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


def test_a_group_that_sets_keys_elsewhere_gives_its_name(tmp_path: Path) -> None:
    for i, (experiment, k) in enumerate([("one", 4), ("two", 8), ("two", 16)]):
        share = f"model.share_towers={str(experiment == 'one').lower()}"
        make_run(tmp_path / str(i), share, f"model.dropout={0.1 * (experiment == 'two')}", f"model.num_tokens={k}")
        notes = tmp_path / str(i) / ".hydra/hydra.yaml"
        notes.write_text(notes.read_text().replace("choices:\n", f"choices:\n      sharing: {experiment}\n"))
    variants, settings, _ = grouped(tmp_path)
    assert [variant.label for variant in variants] == [
        "num_tokens=4 sharing=one", "num_tokens=8 sharing=two", "num_tokens=16 sharing=two"
    ]  # fmt: skip
    assert {s.name: set(s.keys) for s in settings}["sharing"] == {"model.share_towers", "model.dropout"}


def test_without_hydras_notes_a_class_stands_for_its_choice(tmp_path: Path) -> None:
    for i, gate in enumerate(["lstm", "none"]):
        make_run(tmp_path / str(i), f"gate={gate}")
        shutil.rmtree(tmp_path / str(i) / ".hydra")
    assert [variant.label for variant in grouped(tmp_path)[0]] == ["gate=LSTMGate", "gate=NoGate"]


def test_where_a_run_lies_and_what_it_tells_makes_no_variant(tmp_path: Path) -> None:
    make_run(tmp_path / "a", "data.num_workers=0")
    make_run(tmp_path / "b/c", "data.num_workers=2", "logger=tensorboard", seed=3)
    variants, settings, _ = grouped(tmp_path)
    assert (len(variants), settings, variants[0].label) == (1, [], "all runs")
    assert [run.seed for run in variants[0].runs] == [1, 3]


def test_a_seed_of_the_data_that_is_not_the_runs_own_counts(tmp_path: Path) -> None:
    make_run(tmp_path / "0", "data.seed=7")
    make_run(tmp_path / "1", "data.seed=8")
    assert [variant.label for variant in grouped(tmp_path)[0]] == ["data.seed=7", "data.seed=8"]


def test_the_same_config_and_seed_is_no_repetition(tmp_path: Path) -> None:
    make_run(tmp_path / "first")
    make_run(tmp_path / "second")
    variants, _, remarks = grouped(tmp_path)
    assert [run.name for run in variants[0].runs] == ["first"]
    assert remarks == ["second is left out: it has the config and the seed of first, and is no repetition"]


def test_a_fingerprint_depends_on_the_config_alone(tmp_path: Path) -> None:
    make_run(tmp_path / "one/here", "gate=none", seed=4)
    make_run(tmp_path / "two/there", "gate=none", seed=5)
    make_run(tmp_path / "two/other", "gate=lstm", seed=5)
    here = grouped(tmp_path / "one")[0][0].fingerprint
    other, there = (variant.fingerprint for variant in grouped(tmp_path / "two")[0])
    assert here == there != other
    assert len(here) == 12


def test_a_baseline_is_named_by_some_of_its_settings(tmp_path: Path) -> None:
    for i, (gate, tokens) in enumerate([("lstm", 4), ("lstm", 8), ("none", 4)]):
        make_run(tmp_path / str(i), f"gate={gate}", f"model.num_tokens={tokens}")
    variants, settings, _ = grouped(tmp_path)
    assert choose(variants, settings, None) is variants[0]
    assert choose(variants, settings, "gate=none") is variants[2]
    assert choose(variants, settings, "num_tokens=8") is variants[1]
    for wanted in ("gate=lstm num_tokens=8", "model.num_tokens=8,gate=lstm", variants[1].label):
        assert choose(variants, settings, wanted) is variants[1]
    with pytest.raises(ConfigError, match=r"^baseline=gate=lstm: 2 variants are that, name more of their settings: "):
        choose(variants, settings, "gate=lstm")
    with pytest.raises(ConfigError, match=r"no variant has gate=nnoe; did you mean gate=none\? choices: num_tokens=4"):
        choose(variants, settings, "gate=nnoe num_tokens=4")
    with pytest.raises(
        ConfigError, match="no variant is that; choices: num_tokens=4 gate=lstm, num_tokens=8 gate=lstm"
    ):
        choose(variants, settings, "gate=none num_tokens=8")


@pytest.mark.parametrize(
    ("differing", "told"),
    [
        ({"root": "/another"}, "data.root=/no/such/corpus: a; data.root=/another: b"),
        ({"subsets": ("okvqa",)}, 'data.subsets=["infoseek","okvqa"]: a; data.subsets=["okvqa"]: b'),
    ],
)
def test_runs_of_different_datasets_are_refused(tmp_path: Path, differing, told: str) -> None:
    make_run(tmp_path / "a")
    make_run(tmp_path / "b", **differing)
    with pytest.raises(ConfigError) as raised:
        grouped(tmp_path)
    assert str(raised.value).startswith("the runs are of 2 different datasets, whose metrics cannot be compared (")
    assert told in str(raised.value)


def test_what_is_trained_on_the_same_data_in_another_way_is_one_dataset(tmp_path: Path) -> None:
    make_run(tmp_path / "a")
    make_run(tmp_path / "b", "data.batch_size=8", "data.negatives=2")
    assert grouped(tmp_path)[0][1].label == "batch_size=8 negatives=2"
