"""Keys against their owners: what a file sets wrongly, with its line, and what replaces it."""

from __future__ import annotations

import pytest


@pytest.mark.parametrize(
    ("overrides", "remedies"),
    [
        (["trainer._target_=tests.support.config_targets.Stopper", "+trainer.monitor=x"], ["~trainer.max_epochs"]),
        (["model.gate._target_=tests.support.config_targets.Stopper", "+model.gate.monitor=x"], ["~model.gate.hidden"]),
        (["trainer._target_=tests.support.config_targets.Trainer", "+trainer.lr=3"], [""]),  # typed with the target
    ],
)
def test_replaced_target_names_keys_to_remove(check_folder, overrides: list[str], remedies: list[str]) -> None:
    problems = check_folder.verdict(*overrides).problems
    assert [problem.code for problem in problems] == ["unknown-parameter"] * len(remedies)
    for problem, remedy in zip(problems, remedies, strict=True):
        assert (f"remove it with '{remedy}'" in str(problem)) == bool(remedy)
    assert not check_folder.verdict(*overrides, *filter(None, remedies)).problems or not all(remedies)


EXPERIMENT = "# @package _global_\n"


TRAINER = "_target_: tests.support.config_targets.Trainer\n"
GATE = "_target_: tests.support.config_targets.Gate\n"


@pytest.mark.parametrize(
    ("file", "content", "place", "text"),
    [
        ("trainer/cpu", f"{TRAINER}max_epoch: 3", ":2: trainer.max_epoch", "did you mean max_epochs?"),
        ("trainer/cpu", f"{TRAINER}max_epochs: x", ":2: trainer.max_epochs", "wants int or null, got 'x'"),
        (
            "trainer/cpu",
            "_target_: tests.support.config_targets.Trainr",
            ":1: trainer._target_",
            "no class Trainr in tests.support.config_targets",
        ),
        (
            "gate/lstm",
            f"{GATE}hiden: 3\nhidden: 4",
            ":2: model.gate.hiden",
            "Gate has no parameter hiden; did you mean",
        ),
        (
            "gate/lstm",
            GATE,
            ":1: model.gate.hidden",
            "tests.support.config_targets.Gate needs hidden, and nothing sets it",
        ),
        ("gate/lstm", f"{GATE}hidden: ???", ":2: model.gate.hidden", "give it one: model.gate.hidden=<value>"),
        (
            "optimizer/adam",
            "_target_: tests.support.config_targets.Optimizer",
            ":1: optimizer.params",
            "Optimizer needs params",
        ),
        ("train", "seed: [1", ":2", "broken YAML: expected ',' or ']'"),
    ],
)
def test_a_mistake_in_a_file(check_folder, file: str, content: str, place: str, text: str) -> None:
    (told,) = check_folder(files={file: content})
    assert told.startswith(f"conf/{file}.yaml{place}: ")
    assert text in told


@pytest.mark.parametrize(
    ("content", "place", "text"),
    [
        ("trainer:\n  max_epoch: 3", ":3: trainer.max_epoch", "did you mean max_epochs?"),
        ("trainer:\n  max_epochs: x", ":3: trainer.max_epochs", "wants int or null, got 'x'"),
        (
            "trainer:\n  callbacks:\n  - {_target_: tests.support.config_targets.Stopper}",
            ":4: trainer.callbacks.0.monitor",
            "needs",
        ),
        ("sede: 3", ":2: sede", "no such key: sede; did you mean seed? choices: model, trainer, "),
        ("trainer: cpu", ":2: trainer", "write it in the defaults list: - override /trainer: cpu"),
        ("trainer: [1]", "", "Cannot merge DictConfig with ListConfig"),
        ("model:\n  name: ${sed}", ":3: model.name", "Interpolation key 'sed' not found; did you mean seed?"),
        ("model:\n  name: ${sed", ":3", "model.name: cannot be read as an interpolation: ${sed"),
        ("defaults:\n  - override /gaet: lstm", ":3: defaults", "no such group: gaet; did you mean gate? choices: "),
        ("defaults:\n  - override /trainer: gpu", ":3: defaults", "trainer has no option gpu; did you mean cpu?"),
        (
            "defaults:\n  - override trainer: cpu",
            ":3: defaults",
            "no such group: experiment/trainer; did you mean /tra",
        ),
        ("defaults:\n  - override /gate: none", ":3: defaults", "no gate to override; did you mean gate@model.gate?"),
        ("defaults:\n  - basis", ":3: defaults", "no config experiment/basis; choices: demo"),
        ("defaults: trainer", "", "defaults must be a list"),
        ("defaults:\n  - override /trainer: cpu\n  - /trainer: cpu", "", "is defined before 'trainer: cpu'"),
        ("seed: 1\nseed: 2", ":3", "broken YAML: duplicate key seed, which the same mapping has above"),
        ("trainer: {max_epochs: 3", ":3", "broken YAML: expected ',' or '}'"),
        ("trainer:\n\tmax_epochs: 3", ":3", "broken YAML: found character '\\t'"),
        ("hydra:\n  run:\n    dri: x", ":4: hydra.run.dri", "Key 'dri' not in 'RunDir'"),
    ],
)
def test_a_mistake_in_an_experiment(check_folder, content: str, place: str, text: str) -> None:
    told = check_folder("experiment=demo", files={"experiment/demo": EXPERIMENT + content})
    assert told[0].startswith(f"conf/experiment/demo.yaml{place}: ")
    assert text in told[0]
    assert told[1:] == (["conf/experiment/demo.yaml:2: trainer: wants a mapping, got [1]"] if "[1]" in content else [])


def test_a_value_that_another_file_replaces_is_checked_all_the_same(check_folder) -> None:
    told = check_folder(
        "experiment=demo", "trainer.max_epochs=1", files={"trainer/cpu": "max_epochs: two\nmax_steps: x"}
    )
    assert told == []  # nothing says what the node builds, so nobody knows its keys
    told = check_folder(
        "experiment=demo",
        files={
            "trainer/cpu": "max_epochs: two",
            "experiment/demo": EXPERIMENT
            + "trainer:\n  _target_: tests.support.config_targets.Trainer\n  max_epochs: 1",
        },
    )
    assert told == ["conf/trainer/cpu.yaml:1: trainer.max_epochs: wants int or null, got 'two'"]
