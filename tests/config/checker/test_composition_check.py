"""Problems of keys in files: key, line, code and remedy."""

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
    problems = check_folder.result(*overrides).problems
    assert [problem.code for problem in problems] == ["unknown-parameter"] * len(remedies)
    for problem, remedy in zip(problems, remedies, strict=True):
        assert (f"remove the key with '{remedy}'" in str(problem)) == bool(remedy)
    assert not check_folder.result(*overrides, *filter(None, remedies)).problems or not all(remedies)


EXPERIMENT = "# @package _global_\n"


TRAINER = "_target_: tests.support.config_targets.Trainer\n"
GATE = "_target_: tests.support.config_targets.Gate\n"


@pytest.mark.parametrize(
    ("file", "content", "line", "key", "code", "values"),
    [
        ("trainer/cpu", f"{TRAINER}max_epoch: 3", 2, "trainer.max_epoch", "unknown-parameter", {"found": "max_epoch"}),
        ("trainer/cpu", f"{TRAINER}max_epochs: x", 2, "trainer.max_epochs", "value-of-wrong-type", {"found": "'x'"}),
        (
            "trainer/cpu",
            "_target_: tests.support.config_targets.Trainr",
            1,
            "trainer._target_",
            "target-not-in-module",
            {"found": "Trainr"},
        ),
        ("gate/lstm", f"{GATE}hiden: 3\nhidden: 4", 2, "model.gate.hiden", "unknown-parameter", {"found": "hiden"}),
        ("gate/lstm", GATE, 1, "model.gate.hidden", "required-key-unset", {"expected": "hidden"}),
        ("gate/lstm", f"{GATE}hidden: ???", 2, "model.gate.hidden", "value-missing", {}),
        (
            "optimizer/adam",
            "_target_: tests.support.config_targets.Optimizer",
            1,
            "optimizer.params",
            "required-key-unset",
            {"expected": "params"},
        ),
        ("train", "seed: [1", 2, "", "broken-yaml", {"reason": "expected ',' or ']', but got '<stream end>'"}),
    ],
)
def test_problem_in_a_file(
    check_folder, file: str, content: str, line: int, key: str, code: str, values: dict[str, str]
) -> None:
    (problem,) = check_folder.result(files={file: content}).problems
    assert (problem.source, problem.key, problem.code) == (f"conf/{file}.yaml:{line}", key, code)
    assert problem.error.values.items() >= values.items()


CALLBACK = "trainer:\n  callbacks:\n  - {_target_: tests.support.config_targets.Stopper}"


@pytest.mark.parametrize(
    ("content", "line", "key", "code", "hint"),
    [
        ("trainer:\n  max_epoch: 3", 3, "trainer.max_epoch", "unknown-parameter", "max_epochs?"),
        ("trainer:\n  max_epochs: x", 3, "trainer.max_epochs", "value-of-wrong-type", "'x'"),
        (CALLBACK, 4, "trainer.callbacks.0.monitor", "required-key-unset", ""),
        ("sede: 3", 2, "sede", "unknown-key", "seed?"),
        ("trainer: cpu", 2, "trainer", "option-outside-defaults", "- override /trainer: cpu"),
        ("trainer: [1]", None, "", "config-not-composed", "DictConfig with ListConfig"),
        ("model:\n  name: ${sed}", 3, "model.name", "interpolation-failed", "seed?"),
        ("model:\n  name: ${sed", 3, "", "interpolation-unreadable", "model.name: "),
        ("defaults:\n  - override /gaet: lstm", 3, "defaults", "unknown-group", "gate?"),
        ("defaults:\n  - override /trainer: gpu", 3, "defaults", "unknown-option", "cpu?"),
        ("defaults:\n  - override trainer: cpu", 3, "defaults", "unknown-group", "/trainer?"),
        ("defaults:\n  - override /gate: none", 3, "defaults", "overridden-group-missing", "gate@model.gate?"),
        ("defaults:\n  - basis", 3, "defaults", "unknown-config", "choices: demo"),
        ("defaults: trainer", None, "", "config-unreadable", "defaults"),
        ("defaults:\n  - override /trainer: cpu\n  - /trainer: cpu", None, "", "config-not-composed", "'trainer: cpu'"),
        ("seed: 1\nseed: 2", 3, "", "broken-yaml", "duplicate key seed"),
        ("trainer: {max_epochs: 3", 3, "", "broken-yaml", "expected ',' or '}'"),
        ("trainer:\n\tmax_epochs: 3", 3, "", "broken-yaml", "character '\\t'"),
        ("hydra:\n  run:\n    dri: x", 4, "hydra.run.dri", "config-not-composed", "'RunDir'"),
    ],
)
def test_problem_in_an_experiment(check_folder, content: str, line: int | None, key: str, code: str, hint: str) -> None:
    first, *others = check_folder.result("experiment=demo", files={"experiment/demo": EXPERIMENT + content}).problems
    source = f"conf/experiment/demo.yaml{f':{line}' if line else ''}"
    assert (first.source, first.key, first.code) == (source, key, code)
    assert hint in str(first)
    assert [(problem.source, problem.key, problem.code) for problem in others] == (
        [("conf/experiment/demo.yaml:2", "trainer", "value-of-wrong-type")] if "[1]" in content else []
    )


def test_replaced_value_is_checked(check_folder) -> None:
    result = check_folder.result(
        "experiment=demo", "trainer.max_epochs=1", files={"trainer/cpu": "max_epochs: two\nmax_steps: x"}
    )
    assert result.problems == []  # the keys of a node without a _target_ are not known
    result = check_folder.result(
        "experiment=demo",
        files={
            "trainer/cpu": "max_epochs: two",
            "experiment/demo": EXPERIMENT
            + "trainer:\n  _target_: tests.support.config_targets.Trainer\n  max_epochs: 1",
        },
    )
    assert [(problem.source, problem.key, problem.error.found) for problem in result.problems] == [
        ("conf/trainer/cpu.yaml:1", "trainer.max_epochs", "'two'")
    ]
