"""Check of small configs: code, values and source of each kind of problem, and valid configs without problems."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ret_lightning.config.checker.config_check import check
from ret_lightning.config.targets.allowed_targets import OWN_PACKAGES
from tests.support.config_folder import write
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
def test_valid_config_has_no_problems(check_folder, overrides) -> None:
    assert check_folder(*overrides) == []


TARGETS = "tests.support.config_targets"
GATES = ("lstm", "none")


@pytest.mark.parametrize(
    ("override", "code", "values", "hint"),
    [
        (
            "trainer.max_epoch=3",
            "unknown-parameter",
            {"owner": f"{TARGETS}.Trainer", "found": "max_epoch", "allowed": ("max_epochs", "max_steps", "callbacks")},
            "max_epochs?",
        ),
        ("+model.gate.hiden=3", "unknown-parameter", {"owner": f"{TARGETS}.Gate", "found": "hiden"}, "hidden?"),
        ("model={widht: 3}", "unknown-parameter", {"owner": f"{TARGETS}.Model", "found": "widht"}, "model.widht: "),
        ("+record={cuont: 3, count: 3}", "unknown-parameter", {"owner": "Record", "found": "cuont"}, "record.cuont: "),
        (
            f"+trainer.callbacks=[{{_target_: {TARGETS}.Stopper, monitr: x, monitor: y}}]",
            "unknown-parameter",
            {"owner": f"{TARGETS}.Stopper", "found": "monitr"},
            "callbacks.0.monitr: ",
        ),
        ("seed=three", "value-of-wrong-type", {"expected": "int", "found": "'three'"}, ""),
        ("trainer.max_epochs=2.5", "value-of-wrong-type", {"expected": "int or null", "found": "2.5"}, ""),
        ("output_dir=2024", "value-of-wrong-type", {"expected": "str", "found": "2024"}, "quote"),
        (
            "optimizer.betas=[0.9]",
            "value-of-wrong-type",
            {"expected": "a list of (float, float)", "found": "[0.9]"},
            "",
        ),
        (
            "+model.gate.kind=scaler",
            "value-of-wrong-type",
            {"found": "'scaler'", "allowed": ("elementwise", "scalar")},
            "scalar?",
        ),
        ("model.gate=lstm", "value-of-wrong-type", {"expected": "Gate or NoGate", "found": "'lstm'"}, "_target_"),
        (
            "optimizer.lr=${output_dir}",
            "value-of-wrong-type",
            {"expected": "float", "found": "'runs'"},
            "${output_dir}",
        ),
        ("sede=3", "unknown-key", {"found": "sede"}, "seed?"),
        ("+extra=3", "unknown-key", {"found": "extra"}, "choices: model, trainer,"),
        ("gatee=lstm", "unknown-key", {"found": "gatee"}, "gate?"),
        ("gate@model.gate=lsmt", "unknown-option", {"group": "gate", "found": "lsmt", "allowed": GATES}, "lstm?"),
        ("trainer=null", "unknown-option", {"group": "trainer", "found": None, "allowed": ("cpu",)}, "~trainer"),
        ("experiment=[demo,demmo]", "unknown-option", {"found": "demmo", "allowed": ("demo",)}, "demo?"),
        ("hydra/launcher=sumbitit", "unknown-option", {"group": "hydra/launcher", "found": "sumbitit"}, ""),
        ("gates/sub=lstm", "unknown-group", {"found": "gates/sub"}, ""),
        ("gate@other=lstm", "overridden-group-missing", {"group": "gate@other"}, "+gate@other=lstm; "),
        ("gate@other=lstm", "overridden-group-missing", {"group": "gate@other"}, "gate@model.gate?"),
        ("~gate@other", "deleted-group-missing", {"group": "gate@other"}, "gate@model.gate?"),
        ("+trainer=cpu", "group-added-twice", {"group": "trainer"}, "remove the +"),
        ("+gate@model.gate=none", "group-added-twice", {"group": "gate@model.gate"}, "remove the +"),
        ("trainer.max_steps=3", "key-needs-plus", {"found": "max_steps"}, "+trainer.max_steps=3"),
        ("+trainer.max_epochs=3", "override-refused", {}, "'trainer.max_epochs'"),
        ("hydra.job.chdir=perhaps", "override-refused", {}, "'perhaps'"),
        ("logger.cvs.save_dir=x", "key-not-in-config", {"found": "cvs", "allowed": ("csv",)}, "csv?"),
        ("logger.cvs.save_dir=x", "key-not-in-config", {"found": "cvs"}, "+logger.cvs.save_dir=x"),
        ("~trainer.max_epoch", "key-not-in-config", {"found": "max_epoch", "allowed": ("max_epochs",)}, "max_epochs?"),
        ("hydra.run.dri=x", "key-not-in-config", {"found": "dri", "allowed": ("dir",)}, "dir?"),
        ("~resume", "nothing-to-delete", {}, ""),
        ("+trainer._partail_=true", "unknown-special-key", {"found": "_partail_"}, "_partial_?"),
        ("trainer._target_=3", "target-not-text", {"found": "3"}, ""),
        (
            f"trainer._target_={TARGETS}.Trainr",
            "target-not-in-module",
            {"found": "Trainr", "module": TARGETS},
            "Trainer?",
        ),
        (
            "trainer._target_=torch.optm.AdamW",
            "target-not-allowed",
            {"found": "torch.optm.AdamW"},
            "torch.optim.AdamW?",
        ),
        (
            "trainer._target_=os.system",
            "target-not-allowed",
            {"found": "os.system"},
            "ret_lightning, lightning.Trainer,",
        ),
        (
            "trainer._target_=torch.nn.utils.clip_grad_norm_",
            "target-library-function",
            {"found": "torch.nn.utils.clip_grad_norm_"},
            "",
        ),
        ("optimizer.lr=${rate}", "interpolation-failed", {"found": "${rate}"}, "'rate'"),
        ("optimizer.lr=${sed}", "interpolation-failed", {"found": "${sed}"}, "seed?"),
        (
            "optimizer.lr=${oc.env:NO_SUCH_VARIABLE}",
            "interpolation-failed",
            {"found": "${oc.env:NO_SUCH_VARIABLE}"},
            "'NO_SUCH_VARIABLE'",
        ),
        ("output_dir=???", "value-missing", {}, "output_dir=<value>"),
        ("trainer.max_epochs=13", "unlucky-epochs", {"found": 13}, ""),  # of the schema
        ("seed=1,2", "sweep-without-multirun", {"found": "1,2"}, "'seed=[1,2]'"),
        ("seed=1,2", "sweep-without-multirun", {"found": "1,2"}, "'seed=\"1,2\"'"),
        ("seed=range(1,3)", "sweep-without-multirun", {"found": "range(1,3)"}, "--multirun (-m)"),
        ("seed", "override-unreadable", {"found": "seed"}, "key=value"),
        ("output_dir=a:{", "override-needs-quotes", {"expected": "'output_dir=\"a:{\"'"}, ""),
    ],
)
def test_problem_of_an_override(check_folder, override: str, code: str, values: dict, hint: str) -> None:
    (problem,) = check_folder.result(override).problems
    assert (problem.source, problem.code) == (f"command line: {override}", code)
    assert problem.error.values.items() >= values.items()
    assert hint in str(problem)


EXPERIMENT = "# @package _global_\n"


def test_all_problems_have_their_source(check_folder) -> None:
    lines = check_folder(
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
    assert sorted(": ".join(line.split(": ")[:2]) for line in lines) == sorted(
        [
            "command line: =",
            "command line: experiment=dmeo",
            "command line: gate@model.gate=nune",
            "conf/experiment/demo.yaml:3: defaults",
            "conf/experiment/demo.yaml:7: hydra.run.dri",
            "conf/optimizer/adam.yaml:2: invalid YAML",
            "conf/logger/csv.yaml:1: logger.csv.save_dir",
            "conf/experiment/demo.yaml:5: trainer.max_stpes",
            "command line: trainer.max_epoch=3",
            "command line: sede=1",
        ]
    )


def test_missing_content_causes_no_further_problems(check_folder) -> None:
    """Without an option for the gate, its keys and interpolations to them cannot be checked."""
    overrides = ("gate@model.gate=zzz", "model.gate.depth=3", "model.name=${model.gate.depth}")
    assert [problem.code for problem in check_folder.result(*overrides).problems] == ["unknown-option"]
    result = check_folder.result("trainer.max_epochs=3", files={"trainer/cpu": "max_epochs: {"})
    assert [(problem.source, problem.code) for problem in result.problems] == [
        ("conf/trainer/cpu.yaml:2", "broken-yaml")
    ]
    result = check_folder.result("output_dir=3")  # logger.csv.save_dir is an interpolation of it
    assert [problem.source for problem in result.problems] == ["command line: output_dir=3"]


def test_every_value_of_a_sweep_is_checked(check_folder) -> None:
    overrides = ("gate@model.gate=lstm,none,nun", "seed=1,two,3", "optimizer.lr=1,2", "sede=range(1,3)")
    first, *others = check_folder.result(*overrides, multirun=True).problems
    assert (first.source, first.code) == ("command line: sede=1", "unknown-key")
    assert {(problem.source, problem.code, problem.error.found) for problem in others} == {
        ("command line: gate@model.gate=nun", "unknown-option", "nun"),
        ("command line: seed=two", "value-of-wrong-type", "'two'"),
    }
    assert len(others) == 2


def test_override_must_fit_every_choice_of_a_sweep(check_folder) -> None:
    result = check_folder.result("gate@model.gate=lstm,none", "+model.gate.prior=1.0", multirun=True)
    assert [(problem.source, problem.code, problem.error.owner) for problem in result.problems] == [
        ("command line: +model.gate.prior=1.0", "unknown-parameter", f"{TARGETS}.NoGate")
    ]


def test_valid_sweep_has_no_problems(check_folder) -> None:
    overrides = ("gate@model.gate=glob(*)", "seed=range(1,9)", "optimizer.lr=choice(1e-3,1e-4)", "+trainer.max_steps=3")
    assert check_folder(*overrides, "~model.width", multirun=True) == []


def test_config_can_request_a_sweep(check_folder) -> None:
    study = (
        EXPERIMENT
        + "hydra:\n  mode: MULTIRUN\n  sweeper:\n    params:\n      seed: 1,two\n      model.gate.hidden: 1\n"
    )
    result = check_folder.result("experiment=demo", files={"experiment/demo": study})
    assert [(problem.source, problem.key, problem.code) for problem in result.problems] == [
        ("conf/experiment/demo.yaml:6", "seed", "value-of-wrong-type")
    ]
    assert result.multirun
    assert not check_folder.result(files={"experiment/demo": study}).multirun
    assert check_folder("experiment=demo", "seed=3", files={"experiment/demo": study}) == []


def test_earlier_keys_of_sweeper_params_are_accepted(check_folder) -> None:
    content = "hydra:\n  mode: MULTIRUN\n  sweeper:\n    params:\n      model.cells: 2,four\n"
    files = {
        "experiment/demo": EXPERIMENT + content,
        "model/small": "_target_: ret_lightning.retrieval.FaissIndex\nnlist: 1",
    }
    result = check_folder.result("experiment=demo", "~gate@model.gate", files=files)
    (message,) = result.deprecations
    assert message.startswith("model.cells=2,four is deprecated")
    assert message.endswith("use model.nlist=2,four")
    assert [(problem.source, problem.key, problem.code) for problem in result.problems] == [
        ("conf/experiment/demo.yaml:6", "model.nlist", "value-of-wrong-type")
    ]
    result = check_folder.result("experiment=demo", "~gate@model.gate", "model.nlist=3", files=files)
    assert result.problems == []


def test_sweep_of_hydra_settings_is_refused(check_folder) -> None:
    (problem,) = check_folder.result("hydra.verbose=true,false", multirun=True).problems
    assert (problem.source, problem.code) == ("command line: hydra.verbose=true,false", "sweep-of-hydra-settings")


def test_missing_values_are_problems_of_complete_configs(check_folder) -> None:
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


def test_key_of_the_schema_is_required(check_folder) -> None:
    (problem,) = check_folder.result("~logger").problems
    assert (problem.source, problem.key, problem.code) == ("conf/train.yaml", "logger", "required-key-unset")


def test_missing_config_folder(tmp_path) -> None:
    (problem,) = check([f"file://{tmp_path}/nowhere"], "train", [], Schema).problems
    assert (problem.code, problem.error.found) == ("config-folder-missing", f"file://{tmp_path}/nowhere")


REAL = {
    "trainer/cpu": "_target_: lightning.Trainer\nmax_epochs: 3",
    "optimizer/adam": "_target_: torch.optim.AdamW\n_partial_: true\nlr: 1e-3",
}


def check_in_process(folder: Path, *overrides: str) -> tuple[list[str], bool]:
    """Run a check in a new process; return keys and codes of the problems, and whether PyTorch was imported."""
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
    *problems, imported = done.stdout.splitlines()
    return problems, imported != "[]"


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
def test_unknown_name_is_reported_without_pytorch(tmp_path: Path, override: str, problem: str) -> None:
    assert check_in_process(write(tmp_path / "conf", REAL), override) == ([problem], False)


@pytest.mark.slow
def test_arguments_of_library_classes_are_checked(tmp_path: Path) -> None:
    files = {
        "trainer/cpu": "_target_: lightning.Trainer\nmax_epoch: 3\nprecision: bf17",
        "optimizer/adam": "_target_: torch.optim.AdamW\n_partial_: true\nlr: fast",
    }
    problems, imported = check_in_process(write(tmp_path / "conf", files), "seed=x")
    assert imported
    assert sorted(problems) == [
        "optimizer.lr value-of-wrong-type",
        "seed value-of-wrong-type",
        "trainer.max_epoch unknown-parameter",
        "trainer.precision value-of-wrong-type",
    ]
