"""The command shell, driven as its users drive it: a process, its output and its exit code."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from ret_lightning.config.targets.allowed_targets import OWN_PACKAGES
from tests.support.config_folder import write
from tests.support.paths import ROOT


@pytest.fixture
def command(tmp_path):
    """Run the light command in an empty folder with throw-away configs; `files` replaces some of them."""

    def run(*arguments: str, files: dict[str, str | bytes] | None = None, **environment: str):
        folder = write(tmp_path / "conf", files)
        return subprocess.run(
            [sys.executable, "-m", "tests.support.small_command", *arguments],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={
                "PATH": os.environ["PATH"],
                "PYTHONPATH": str(ROOT),
                "CONF": str(folder),
                OWN_PACKAGES: "tests",
                **environment,
            },
        )

    return run


def test_a_right_config_runs_the_task(command, tmp_path) -> None:
    done = command("seed=1", "gate@model.gate=none")
    assert (done.returncode, done.stderr) == (0, "")
    assert "task seed=1 gate=NoGate" in done.stdout
    assert (tmp_path / "runs" / "run" / ".hydra" / "config.yaml").exists()
    assert (tmp_path / "runs" / "run" / "small_command.log").exists()


def test_mistakes_stop_everything_and_are_all_printed(command, tmp_path) -> None:
    done = command(
        "seed=one",
        "gate@model.gate=lsmt",
        "experiment=demo",
        files={"experiment/demo": "# @package _global_\ntrainer:\n  max_epoch: 3\n"},
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.splitlines() == [
        "ret-lab: 3 problems in the config:",
        "  command line: gate@model.gate=lsmt: gate has no option lsmt; did you mean lstm? choices: lstm, none"
        " [unknown-option]",
        "  conf/experiment/demo.yaml:3: trainer.max_epoch: tests.support.config_targets.Trainer has no parameter max_epoch;"
        " did you mean max_epochs? choices: max_epochs, max_steps, callbacks [unknown-parameter]",
        "  command line: seed=one: wants int, got 'one' [value-of-wrong-type]",
    ]
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("seed", "code", "line"),
    [
        (2, 1, "ret-lab: rows.jsonl:3: no question"),
        (4, 130, "ret-lab: interrupted"),
        (5, 1, "ret-lab: rows.jsonl:4: no question"),
        (6, 130, "ret-lab: interrupted"),
    ],
)
def test_a_users_error_ends_in_one_line(command, seed: int, code: int, line: str) -> None:
    done = command(f"seed={seed}")
    assert (done.returncode, done.stderr) == (code, f"{line}\n")


@pytest.mark.parametrize(("seed", "error"), [(3, "ZeroDivisionError: a bug"), (7, "FileNotFoundError: ")])
def test_a_bug_keeps_its_traceback(command, seed: int, error: str) -> None:
    done = command(f"seed={seed}")
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert error in done.stderr.splitlines()[-1]


def test_the_traceback_of_a_users_error_is_shown_when_asked_for(command) -> None:
    done = command("seed=2", HYDRA_FULL_ERROR="1")
    assert done.returncode == 1
    assert "in task" in done.stderr
    assert done.stderr.splitlines()[-1] == "ret_lightning.errors.DataError: rows.jsonl:3: no question"


def test_a_failing_job_of_a_sweep_does_not_stop_the_others(command, tmp_path) -> None:
    done = command("-m", "seed=1,2,3,8", "gate@model.gate=none")
    assert done.returncode == 1
    assert [f"task seed={seed}" in done.stdout for seed in (1, 2, 3, 8)] == [True] * 4
    assert (tmp_path / "runs" / "seed-8").exists()
    told = done.stderr.splitlines()
    assert "ret-lab: seed=2: rows.jsonl:3: no question" in told
    assert told[-3:] == [
        "ret-lab: 2 of 4 jobs failed:",
        "  seed=2: rows.jsonl:3: no question",
        "  seed=3: ZeroDivisionError: a bug",
    ]


def test_a_sweep_without_failures(command) -> None:
    done = command("-m", "seed=1,8", "hydra.sweeper.max_batch_size=1")
    assert (done.returncode, done.stderr) == (0, "")


def test_jobs_of_later_batches_run_after_a_failure(command) -> None:
    done = command("-m", "seed=2,1", "hydra.sweeper.max_batch_size=1")
    assert done.returncode == 1
    assert "task seed=1" in done.stdout


def test_who_stops_a_job_stops_the_sweep(command) -> None:
    done = command("-m", "seed=9,1")
    assert (done.returncode, "task seed=1" in done.stdout) == (143, False)
    assert done.stderr.splitlines()[-1] == (
        "ret-lab: stopped by SIGTERM at step 3; the same command goes on with the sweep"
    )


def test_each_job_of_a_sweep_is_checked_before_the_first_runs(command) -> None:
    done = command("-m", "seed=1,two")
    assert (done.returncode, done.stdout) == (2, "")
    assert "command line: seed=two: wants int, got 'two'" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        (["--config-dir", "nowhere"], 2, "ret-lab: --config-dir nowhere: no such folder"),
        (
            ["--config-name", "trian"],
            2,
            "  command line: --config-name trian: no config has this name; did you mean train?",
        ),
        (["--bogus"], 2, "ret-lab: unrecognized arguments: --bogus;"),
        (["seed=1", "-m", "seed=2"], 2, "ret-lab: unrecognized arguments: seed=2; flags come before or after"),
        (["--run", "-m"], 2, "ret-lab: only one of --run, --multirun, "),
        (["--resolve"], 2, "ret-lab: --resolve goes with --cfg only"),
        (["--experimental-rerun", "job.pickle"], 2, "ret-lab: --experimental-rerun would read a pickle"),
        (["output_dir=conf/train.yaml"], 1, "ret-lab: conf/train.yaml/"),
        (["-m", "seed=1,8", "output_dir=conf/train.yaml"], 1, "ret-lab: conf/train.yaml/"),
        (["--help", "gate@model.gate=lsmt"], 2, "  command line: gate@model.gate=lsmt: gate has no option lsmt;"),
        (["--info", "config", "sede=1"], 2, "  command line: sede=1: no such key or group: sede; did you mean seed?"),
        (["--cfg", "job", "sede=1"], 2, "  command line: sede=1: no such key or group: sede; did you mean seed?"),
    ],
)
def test_what_is_wrong_with_a_command_line(command, arguments: list[str], code: int, line: str) -> None:
    done = command(*arguments)
    assert done.returncode == code
    assert done.stderr.splitlines()[-1].startswith(line)
    assert len(done.stderr.splitlines()) <= 2
    assert "task" not in done.stdout


def test_help_lists_the_groups_and_their_options(command) -> None:
    done = command("--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"gate@model.gate +\n +lstm, none\n", done.stdout)
    assert re.search(r"experiment +\n +\(no default\), demo\n", done.stdout)


def test_the_config_is_shown_with_its_missing_values(command) -> None:
    done = command("--cfg", "job", "output_dir=???")
    assert (done.returncode, done.stderr) == (0, "")
    assert "output_dir: ???" in done.stdout


def test_configs_of_the_users_own_folder_are_used_and_checked(command, tmp_path) -> None:
    own = tmp_path / "mine" / "experiment"
    own.mkdir(parents=True)
    (own / "wide.yaml").write_text("# @package _global_\nmodel:\n  width: 99\n")
    done = command("--config-dir", "mine", "experiment=wide", "--cfg", "job", "--package", "model")
    assert "width: 99" in done.stdout
    (own / "wide.yaml").write_text("# @package _global_\nmodel:\n  widht: 99\n")
    done = command("--config-dir", "mine", "experiment=wide")
    assert done.returncode == 2
    assert "mine/experiment/wide.yaml:3: model.widht: " in done.stderr


def test_configs_in_a_package_are_found_and_named_by_their_files(command, tmp_path) -> None:
    write(tmp_path / "lab_configs", {"trainer/cpu": "_target_: tests.support.config_targets.Trainer\nmax_epoch: 3"})
    (tmp_path / "lab_configs" / "__init__.py").touch()
    done = command(CONF="pkg://lab_configs", PYTHONPATH=f"{ROOT}:{tmp_path}")
    assert done.returncode == 2
    assert "  lab_configs/trainer/cpu.yaml:2: trainer.max_epoch: " in done.stderr


def test_the_shell_imports_nothing_heavy() -> None:
    script = "import sys, ret_lightning.commands.application, ret_lightning.config.build; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True)
    assert not {"torch", "lightning", "numpy", "pandas", "wandb", "transformers"}.intersection(done.stdout.split())


def test_the_config_is_shown_with_the_same_reading(command) -> None:
    done = command("--cfg", "job", "output_dir=runs/gate=lstm+seed=1")
    assert (done.returncode, done.stderr) == (0, "")
    assert "output_dir: runs/gate=lstm+seed=1" in done.stdout
