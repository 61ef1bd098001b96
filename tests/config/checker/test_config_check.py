"""The check on throw-away configs: each kind of mistake, where it is told, and that right configs have none."""

from __future__ import annotations

import subprocess
import sys

import pytest

from ret_lightning.config.allowed_targets import OWN_PACKAGES
from ret_lightning.config.checker.config_check import check
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
def test_a_right_config_has_no_mistakes(check_folder, overrides) -> None:
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
    (mistake,) = check_folder.verdict(override).mistakes
    assert mistake.code == code
    assert mistake.error.values.items() >= values.items()


@pytest.mark.parametrize(
    ("overrides", "remedies"),
    [
        (["trainer._target_=tests.support.config_targets.Stopper", "+trainer.monitor=x"], ["~trainer.max_epochs"]),
        (["model.gate._target_=tests.support.config_targets.Stopper", "+model.gate.monitor=x"], ["~model.gate.hidden"]),
        (["trainer._target_=tests.support.config_targets.Trainer", "+trainer.lr=3"], [""]),  # typed with the target
    ],
)
def test_replaced_target_names_keys_to_remove(check_folder, overrides: list[str], remedies: list[str]) -> None:
    mistakes = check_folder.verdict(*overrides).mistakes
    assert [mistake.code for mistake in mistakes] == ["unknown-parameter"] * len(remedies)
    for mistake, remedy in zip(mistakes, remedies, strict=True):
        assert (f"remove it with '{remedy}'" in str(mistake)) == bool(remedy)
    assert not check_folder.verdict(*overrides, *filter(None, remedies)).mistakes or not all(remedies)


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


def test_a_right_sweep_has_no_mistakes(check_folder) -> None:
    overrides = ("gate@model.gate=glob(*)", "seed=range(1,9)", "optimizer.lr=choice(1e-3,1e-4)", "+trainer.max_steps=3")
    assert check_folder(*overrides, "~model.width", multirun=True) == []


def test_the_config_itself_may_ask_for_a_sweep(check_folder) -> None:
    study = (
        EXPERIMENT
        + "hydra:\n  mode: MULTIRUN\n  sweeper:\n    params:\n      seed: 1,two\n      model.gate.hidden: 1\n"
    )
    verdict = check_folder.verdict("experiment=demo", files={"experiment/demo": study})
    assert list(map(line_of, verdict.mistakes)) == ["conf/experiment/demo.yaml:6: seed: wants int, got 'two'"]
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
    (told,) = map(str, verdict.mistakes)
    assert f"{tmp_path}/nowhere" in told


def test_nothing_heavy_is_imported(tmp_path) -> None:
    """Real targets of PyTorch and Lightning are checked in a process of its own, which imports neither."""
    folder = write(
        tmp_path / "conf",
        {
            "trainer/cpu": "_target_: lightning.Trainer\nmax_epoch: 3\nprecision: bf17",
            "optimizer/adam": "_target_: torch.optim.AdamW\n_partial_: true\nlr: fast",
        },
    )
    script = f"""
import sys
import hydra
from ret_lightning.config.checker.config_check import check
from tests.support.config_targets import Schema
hydra.version.setbase("1.3")
found = check(["file://{folder}"], "train", [], Schema).mistakes
print(*found, sep="\\n")
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
    assert imported == "[]"
    assert len(told) == 3
    assert (
        "trainer.max_epoch: lightning.Trainer has no parameter max_epoch; did you mean max_epochs" in told[0] + told[1]
    )
    assert "trainer.precision: wants one of the choices or null, got 'bf17'; did you mean bf16?" in told[0] + told[1]
    assert "optimizer.lr: wants float or Tensor, got 'fast'" in "".join(told)
