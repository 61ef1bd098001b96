"""The check on throw-away configs: each kind of problem, where it is told, and that right configs have none."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ret_lightning.config.checker.config_check import check
from ret_lightning.config.targets.allowed_targets import OWN_PACKAGES
from tests.support.config_folder import line_of, write
from tests.support.config_targets import Schema
from tests.support.paths import ROOT


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("experiment=demo",),
        ("gate@model.gate=none", "logger=none"),
        ("seed=3", "trainer.max_epochs=null", "optimizer.lr=1", "optimizer.betas=[0.5,0.6]"),
        ("+trainer.max_steps=5", "++trainer.max_steps=6", "~model.width"),
        ("resume='2024'", "output_dir='with space'"),
        ("+logger.csv.anything=3",),  # Log takes other keywords
        ("+logger.second={_target_: tests.support.config_targets.Log, save_dir: here}",),
        ("trainer.max_epochs=${seed}",),
        ("model.gate._target_=tests.support.config_targets.NoGate",),
        ("+trainer.callbacks=[{_target_: tests.support.config_targets.Stopper, monitor: loss}]",),
        ("+record={count: 3}",),
        ("hydra.run.dir=elsewhere", "hydra/job_logging=none"),
        ("output_dir=${hydra:runtime.cwd}/${hydra:job.name}/${now:%Y}",),
    ],
)
def test_a_right_config_has_no_problems(check_folder, overrides) -> None:
    assert check_folder(*overrides) == []


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (
            "trainer.max_epoch=3",
            "tests.support.config_targets.Trainer has no parameter max_epoch; did you mean max_epochs?"
            " choices: max_epochs, max_steps, callbacks",
        ),
        ("+model.gate.hiden=3", "tests.support.config_targets.Gate has no parameter hiden; did you mean hidden?"),
        ("seed=three", "wants int, got 'three'"),
        ("trainer.max_epochs=2.5", "wants int or null, got 2.5"),
        ("output_dir=2024", "wants str, got 2024; quotes make it a string"),
        ("optimizer.betas=[0.9]", "wants a list of (float, float), got [0.9]"),
        ("+model.gate.kind=scaler", "got 'scaler'; did you mean scalar? choices: elementwise, scalar"),
        ("sede=3", "no such key or group: sede; did you mean seed? choices: model, trainer,"),
        ("+extra=3", "no such key or group: extra; choices: model, trainer,"),
        ("gatee=lstm", "no such key or group: gatee; did you mean gate?"),
        ("gate@model.gate=lsmt", "gate has no option lsmt; did you mean lstm? choices: lstm, none"),
        ("trainer=null", "trainer has no option null; choices: cpu; to leave the group out write ~trainer"),
        ("experiment=[demo,demmo]", "experiment has no option demmo; did you mean demo? choices: demo"),
        ("gates/sub=lstm", "no such group: gates/sub"),
        ("gate@other=lstm", "to add it write +gate@other=lstm; did you mean gate@model.gate?"),
        ("~gate@other", "the defaults list has no gate@other to leave out; did you mean gate@model.gate?"),
        ("+trainer=cpu", "the defaults list has trainer already; to choose another option leave out the +"),
        ("+gate@model.gate=none", "the defaults list has gate@model.gate already"),
        ("trainer.max_steps=3", "this config does not set it; to add it write +trainer.max_steps=3"),
        ("+trainer.max_epochs=3", "Could not append to config. An item is already at 'trainer.max_epochs'."),
        ("logger.cvs.save_dir=x", "no cvs in logger; did you mean csv? choices: csv (to add it write +logger.cvs"),
        ("~trainer.max_epoch", "no max_epoch in trainer; did you mean max_epochs? choices: max_epochs"),
        ("~resume", "there is nothing to delete"),
        ("model.gate=lstm", "wants Gate or NoGate, got 'lstm'; it takes a mapping with a _target_"),
        (
            "model={widht: 3}",
            "model.widht: tests.support.config_targets.Model has no parameter widht; did you mean width?",
        ),
        ("+trainer._partail_=true", "no special key is called _partail_; did you mean _partial_?"),
        ("trainer._target_=3", "wants the dotted name of a class, got 3"),
        (
            "trainer._target_=tests.support.config_targets.Trainr",
            "no class Trainr in tests.support.config_targets; did you mean Trainer",
        ),
        (
            "trainer._target_=torch.optm.AdamW",
            "a config may not build torch.optm.AdamW; did you mean torch.optim.AdamW?",
        ),
        ("trainer._target_=os.system", "a config may not build os.system; choices: ret_lightning, lightning.Trainer,"),
        ("trainer._target_=torch.nn.utils.clip_grad_norm_", "of a library it may build classes, not call functions"),
        (
            "+trainer.callbacks=[{_target_: tests.support.config_targets.Stopper, monitr: x, monitor: y}]",
            "callbacks.0.monitr: ",
        ),
        ("+record={cuont: 3, count: 3}", "record.cuont: Record has no parameter cuont; did you mean count?"),
        ("optimizer.lr=${rate}", "${rate}: Interpolation key 'rate' not found"),
        ("optimizer.lr=${sed}", "did you mean seed?"),
        ("optimizer.lr=${output_dir}", "${output_dir}: wants float, got 'runs'"),
        ("optimizer.lr=${oc.env:NO_SUCH_VARIABLE}", "Environment variable 'NO_SUCH_VARIABLE' not found"),
        ("output_dir=???", "has no value yet; give it one: output_dir=<value>"),
        ("trainer.max_epochs=13", "13 epochs bring bad luck; take 14"),
        ("seed=1,2", "several values need --multirun (-m); for a list type 'seed=[1,2]', for one text 'seed=\"1,2\"'"),
        ("seed=range(1,3)", "several values need --multirun (-m)"),
        ("seed", "cannot be read as key=value"),
        ("output_dir=a:{", "type 'output_dir=\"a:{\"'"),
        ("hydra.run.dri=x", "no dri in hydra.run; did you mean dir? choices: dir"),
        ("hydra.job.chdir=perhaps", "Value 'perhaps' is not a valid bool"),
        ("hydra/launcher=sumbitit", "hydra/launcher has no option sumbitit;"),
    ],
)
def test_a_mistake_on_the_command_line(check_folder, overrides: str, line: str) -> None:
    (told,) = check_folder(overrides)
    assert told.startswith(f"command line: {overrides}: ")
    assert line in told


@pytest.mark.parametrize(
    ("override", "code", "values"),
    [
        ("seed=three", "value-of-wrong-type", {"found": "'three'", "expected": "int"}),
        ("sede=3", "unknown-key", {"found": "sede"}),
        ("+model.gate.hiden=3", "unknown-parameter", {"found": "hiden", "owner": "tests.support.config_targets.Gate"}),
        ("gate@model.gate=lsmt", "unknown-option", {"found": "lsmt", "allowed": ("lstm", "none")}),
        ("gates/sub=lstm", "unknown-group", {"found": "gates/sub"}),
        ("trainer._target_=tests.support.config_targets.Trainr", "target-not-in-module", {"found": "Trainr"}),
        ("trainer._target_=os.system", "target-not-allowed", {"found": "os.system"}),
        ("optimizer.lr=${output_dir}", "value-of-wrong-type", {"found": "'runs'", "expected": "float"}),
        ("output_dir=???", "value-missing", {}),
        ("seed=1,2", "sweep-without-multirun", {"found": "1,2"}),
        ("trainer.max_epochs=13", "unlucky-epochs", {"found": 13}),  # of the schema
    ],
)
def test_mistake_has_code_and_values(check_folder, override: str, code: str, values: dict) -> None:
    (problem,) = check_folder.verdict(override).problems
    assert problem.code == code
    assert problem.error.values.items() >= values.items()


EXPERIMENT = "# @package _global_\n"


def test_all_mistakes_come_at_once_each_with_its_place(check_folder) -> None:
    told = check_folder(
        "experiment=dmeo",
        "gate@model.gate=nune",
        "trainer.max_epoch=3",
        "sede=1",
        "=",
        files={
            "experiment/demo": EXPERIMENT
            + "defaults:\n  - override /gaet: lstm\ntrainer:\n  max_stpes: 1\nhydra:\n  run: {dri: x}\n",
            "logger/csv": "csv: {_target_: tests.support.config_targets.Log, save_dir: 3}",
            "optimizer/adam": "lr: 1\nlr: 2",
        },
    )
    places = [line.split(": ")[0] + ": " + line.split(": ")[1] for line in told]
    assert sorted(places) == sorted(
        [
            "command line: =",
            "command line: experiment=dmeo",
            "command line: gate@model.gate=nune",
            "conf/experiment/demo.yaml:3: defaults",
            "conf/experiment/demo.yaml:7: hydra.run.dri",
            "conf/optimizer/adam.yaml:2: broken YAML",
            "conf/logger/csv.yaml:1: logger.csv.save_dir",
            "conf/experiment/demo.yaml:5: trainer.max_stpes",
            "command line: trainer.max_epoch=3",
            "command line: sede=1",
        ]
    )


def test_what_a_mistake_leaves_out_causes_no_others(check_folder) -> None:
    """With no option chosen for the gate, nothing can be said about its keys, nor about what refers to them."""
    (told,) = check_folder("gate@model.gate=zzz", "model.gate.depth=3", "model.name=${model.gate.depth}")
    assert "gate has no option zzz" in told
    (told,) = check_folder("trainer.max_epochs=3", files={"trainer/cpu": "max_epochs: {"})
    assert "conf/trainer/cpu.yaml:2: broken YAML" in told
    (told,) = check_folder("output_dir=3")  # logger.csv.save_dir refers to it
    assert told.startswith("command line: output_dir=3: ")


def test_every_value_of_a_sweep_is_checked(check_folder) -> None:
    told = check_folder(
        "gate@model.gate=lstm,none,nun", "seed=1,two,3", "optimizer.lr=1,2", "sede=range(1,3)", multirun=True
    )
    assert len(told) == 3
    assert told[0].startswith("command line: sede=1: no such key or group: sede")
    assert "command line: gate@model.gate=nun: gate has no option nun" in told[1] + told[2]
    assert "command line: seed=two: wants int, got 'two'" in told[1] + told[2]


def test_an_override_that_only_one_choice_of_a_sweep_takes(check_folder) -> None:
    (told,) = check_folder("gate@model.gate=lstm,none", "+model.gate.prior=1.0", multirun=True)
    assert told.startswith(
        "command line: +model.gate.prior=1.0: tests.support.config_targets.NoGate has no parameter prior"
    )


def test_a_right_sweep_has_no_problems(check_folder) -> None:
    overrides = ("gate@model.gate=glob(*)", "seed=range(1,9)", "optimizer.lr=choice(1e-3,1e-4)", "+trainer.max_steps=3")
    assert check_folder(*overrides, "~model.width", multirun=True) == []


def test_the_config_itself_may_ask_for_a_sweep(check_folder) -> None:
    study = (
        EXPERIMENT
        + "hydra:\n  mode: MULTIRUN\n  sweeper:\n    params:\n      seed: 1,two\n      model.gate.hidden: 1\n"
    )
    verdict = check_folder.verdict("experiment=demo", files={"experiment/demo": study})
    assert list(map(line_of, verdict.problems)) == ["conf/experiment/demo.yaml:6: seed: wants int, got 'two'"]
    assert verdict.multirun
    assert not check_folder.verdict(files={"experiment/demo": study}).multirun
    assert check_folder("experiment=demo", "seed=3", files={"experiment/demo": study}) == []


def test_sweeping_hydra_itself_is_refused(check_folder) -> None:
    told = check_folder("hydra.verbose=true,false", multirun=True)
    assert told == ["command line: hydra.verbose=true,false: Hydra's own settings cannot be swept"]


def test_missing_values_are_told_only_of_a_config_that_is_to_run(check_folder) -> None:
    files = {
        "logger/csv": "csv: {_target_: tests.support.config_targets.Log}",
        "model/small": "_target_: tests.support.config_targets.Model",
    }
    overrides = ("trainer.max_epochs=???", "resume=${trainer.max_epochs}", "optimizer.lr=???")
    assert [line.split(": ")[1] for line in check_folder(*overrides, files=files)] == [
        "trainer.max_epochs=???",
        "logger.csv.save_dir",
    ]
    assert check_folder(*overrides, files=files, complete=False) == []


def test_the_schema_says_which_keys_there_must_be(check_folder) -> None:
    (told,) = check_folder("~logger")
    assert told == "conf/train.yaml: logger: the command needs logger, and nothing sets it"


def test_a_folder_that_is_not_there(tmp_path) -> None:
    verdict = check([f"file://{tmp_path}/nowhere"], "train", [], Schema)
    (told,) = map(str, verdict.problems)
    assert f"{tmp_path}/nowhere" in told


REAL = {
    "trainer/cpu": "_target_: lightning.Trainer\nmax_epochs: 3",
    "optimizer/adam": "_target_: torch.optim.AdamW\n_partial_: true\nlr: 1e-3",
}


def in_a_process(folder: Path, *overrides: str) -> tuple[list[str], bool]:
    """The codes of the problems in a process of its own, and whether it imported PyTorch."""
    script = f"""
import sys
from ret_lightning.config.checker.config_check import check
from tests.support.config_targets import Schema
found = check(["file://{folder}"], "train", {list(overrides)!r}, Schema).problems
print(*(f"{{problem.key}} {{problem.code}}" for problem in found), sep="\\n")
print([name for name in ("torch", "lightning", "numpy", "transformers", "wandb") if name in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={OWN_PACKAGES: "tests"},
        check=True,
    )
    *told, imported = done.stdout.splitlines()
    return told, imported != "[]"


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("trainer.max_epoch=3", "trainer.max_epoch key-not-in-config"),
        ("optimizer.lrr=3", "optimizer.lrr key-not-in-config"),
        ("gate@model.gate=lsmt", "gate@model.gate unknown-option"),
        ("gatee=lstm", "gatee unknown-key"),
        ("sede=3", "sede unknown-key"),
        ("seed=1,2", "seed sweep-without-multirun"),
        ("~optimizers", "optimizers key-not-in-config"),
        ("optimizer.lr=${sed", "optimizer.lr override-needs-quotes"),
    ],
)
def test_wrong_name_is_reported_without_pytorch(tmp_path: Path, override: str, problem: str) -> None:
    assert in_a_process(write(tmp_path / "conf", REAL), override) == ([problem], False)


@pytest.mark.slow
def test_arguments_of_library_classes_are_checked(tmp_path: Path) -> None:
    files = {
        "trainer/cpu": "_target_: lightning.Trainer\nmax_epoch: 3\nprecision: bf17",
        "optimizer/adam": "_target_: torch.optim.AdamW\n_partial_: true\nlr: fast",
    }
    told, imported = in_a_process(write(tmp_path / "conf", files), "seed=x")
    assert imported
    assert sorted(told) == [
        "optimizer.lr value-of-wrong-type",
        "seed value-of-wrong-type",
        "trainer.max_epoch unknown-parameter",
        "trainer.precision value-of-wrong-type",
    ]
