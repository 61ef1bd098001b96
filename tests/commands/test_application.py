"""The application of the console scripts in a new process: output and exit code."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from ret_lightning.config.targets.allowed_targets import OWN_PACKAGES
from ret_lightning.errors import split_code
from tests.support.config_folder import write
from tests.support.paths import ROOT


@pytest.fixture
def command(tmp_path):
    """Run a small command in an empty folder with the configs of `config_folder`; `files` replaces some of them."""

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


def test_valid_config_runs_the_task(command, tmp_path) -> None:
    done = command("seed=1", "gate@model.gate=none")
    assert (done.returncode, done.stderr) == (0, "")
    assert "task seed=1 gate=NoGate" in done.stdout
    assert (tmp_path / "runs" / "run" / ".hydra" / "config.yaml").exists()
    assert (tmp_path / "runs" / "run" / "small_command.log").exists()


def test_problems_are_printed_and_nothing_runs(command, tmp_path) -> None:
    done = command(
        "seed=one",
        "gate@model.gate=lsmt",
        "experiment=demo",
        files={"experiment/demo": "# @package _global_\ntrainer:\n  max_epoch: 3\n"},
    )
    assert done.returncode == 2
    assert done.stdout == ""
    heading, *lines = done.stderr.splitlines()
    assert heading == "ret-lab: 3 problems in the config:"
    expected = [
        ("  command line: gate@model.gate=lsmt: ", "unknown-option"),
        ("  conf/experiment/demo.yaml:3: trainer.max_epoch: ", "unknown-parameter"),
        ("  command line: seed=one: ", "value-of-wrong-type"),
    ]
    assert [split_code(line)[1] for line in lines] == [code for _, code in expected]
    assert all(line.startswith(start) for line, (start, _) in zip(lines, expected, strict=True))
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
def test_user_error_is_one_line(command, seed: int, code: int, line: str) -> None:
    done = command(f"seed={seed}")
    assert (done.returncode, done.stderr) == (code, f"{line}\n")


@pytest.mark.parametrize(("seed", "error"), [(3, "ZeroDivisionError: a bug"), (7, "FileNotFoundError: ")])
def test_bug_prints_its_traceback(command, seed: int, error: str) -> None:
    done = command(f"seed={seed}")
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert error in done.stderr.splitlines()[-1]


def test_hydra_full_error_prints_the_traceback(command) -> None:
    done = command("seed=2", HYDRA_FULL_ERROR="1")
    assert done.returncode == 1
    assert "in task" in done.stderr
    assert done.stderr.splitlines()[-1] == "ret_lightning.errors.DataError: rows.jsonl:3: no question"


def test_failed_job_does_not_stop_a_sweep(command, tmp_path) -> None:
    done = command("-m", "seed=1,2,3,8", "gate@model.gate=none")
    assert done.returncode == 1
    assert [f"task seed={seed}" in done.stdout for seed in (1, 2, 3, 8)] == [True] * 4
    assert (tmp_path / "runs" / "seed-8").exists()
    lines = done.stderr.splitlines()
    assert "ret-lab: seed=2: rows.jsonl:3: no question" in lines
    assert lines[-3:] == [
        "ret-lab: 2 of 4 jobs failed:",
        "  seed=2: rows.jsonl:3: no question",
        "  seed=3: ZeroDivisionError: a bug",
    ]


def test_sweep_without_failures(command) -> None:
    done = command("-m", "seed=1,8", "hydra.sweeper.max_batch_size=1")
    assert (done.returncode, done.stderr) == (0, "")


def test_later_batches_run_after_a_failure(command) -> None:
    done = command("-m", "seed=2,1", "hydra.sweeper.max_batch_size=1")
    assert done.returncode == 1
    assert "task seed=1" in done.stdout


def test_stopped_job_stops_the_sweep(command) -> None:
    done = command("-m", "seed=9,1")
    assert (done.returncode, "task seed=1" in done.stdout) == (143, False)
    assert done.stderr.splitlines()[-1].startswith("ret-lab: stopped by SIGTERM at step 3; ")


def test_all_jobs_of_a_sweep_are_checked_first(command) -> None:
    done = command("-m", "seed=1,two")
    assert (done.returncode, done.stdout) == (2, "")
    line = done.stderr.splitlines()[-1]
    assert line.startswith("  command line: seed=two: ")
    assert split_code(line)[1] == "value-of-wrong-type"


@pytest.mark.parametrize(
    ("arguments", "exit_code", "start", "code"),
    [
        (["--config-dir", "nowhere"], 2, "ret-lab: --config-dir nowhere: ", "config-dir-missing"),
        (["--config-name", "trian"], 2, "  command line: --config-name trian: ", "unknown-config-name"),
        (["--bogus"], 2, "ret-lab: unrecognized arguments: --bogus;", "command-line-flags"),
        (["seed=1", "-m", "seed=2"], 2, "ret-lab: unrecognized arguments: seed=2;", "command-line-flags"),
        (["--run", "-m"], 2, "ret-lab: ", "command-line-flags"),
        (["--resolve"], 2, "ret-lab: --resolve ", "command-line-flags"),
        (["--experimental-rerun", "job.pickle"], 2, "ret-lab: --experimental-rerun ", "rerun-unsupported"),
        (["output_dir=conf/train.yaml"], 1, "ret-lab: conf/train.yaml/", "output-not-writable"),
        (["-m", "seed=1,8", "output_dir=conf/train.yaml"], 1, "ret-lab: conf/train.yaml/", "output-not-writable"),
        (["--help", "gate@model.gate=lsmt"], 2, "  command line: gate@model.gate=lsmt: ", "unknown-option"),
        (["--info", "config", "sede=1"], 2, "  command line: sede=1: ", "unknown-key"),
        (["--cfg", "job", "sede=1"], 2, "  command line: sede=1: ", "unknown-key"),
    ],
)
def test_invalid_command_line(command, arguments: list[str], exit_code: int, start: str, code: str) -> None:
    done = command(*arguments)
    assert done.returncode == exit_code
    last = done.stderr.splitlines()[-1]
    assert last.startswith(start)
    assert split_code(last)[1] == code
    assert len(done.stderr.splitlines()) <= 2
    assert "task" not in done.stdout


def test_help_lists_groups_and_options(command) -> None:
    done = command("--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"gate@model.gate +\n +lstm, none\n", done.stdout)
    assert re.search(r"experiment +\n +\(no default\), demo\n", done.stdout)


def test_cfg_prints_missing_values(command) -> None:
    done = command("--cfg", "job", "output_dir=???")
    assert (done.returncode, done.stderr) == (0, "")
    assert "output_dir: ???" in done.stdout


def test_configs_of_config_dir_are_checked(command, tmp_path) -> None:
    own = tmp_path / "mine" / "experiment"
    own.mkdir(parents=True)
    (own / "wide.yaml").write_text("# @package _global_\nmodel:\n  width: 99\n")
    done = command("--config-dir", "mine", "experiment=wide", "--cfg", "job", "--package", "model")
    assert "width: 99" in done.stdout
    (own / "wide.yaml").write_text("# @package _global_\nmodel:\n  widht: 99\n")
    done = command("--config-dir", "mine", "experiment=wide")
    assert done.returncode == 2
    assert "mine/experiment/wide.yaml:3: model.widht: " in done.stderr


def test_configs_of_a_package_are_named_by_file(command, tmp_path) -> None:
    write(tmp_path / "lab_configs", {"trainer/cpu": "_target_: tests.support.config_targets.Trainer\nmax_epoch: 3"})
    (tmp_path / "lab_configs" / "__init__.py").touch()
    done = command(CONF="pkg://lab_configs", PYTHONPATH=f"{ROOT}:{tmp_path}")
    assert done.returncode == 2
    assert "  lab_configs/trainer/cpu.yaml:2: trainer.max_epoch: " in done.stderr


def test_application_imports_no_torch() -> None:
    script = "import sys, ret_lightning.commands.application, ret_lightning.config.build; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True)
    assert not {"torch", "lightning", "numpy", "pandas", "wandb", "transformers"}.intersection(done.stdout.split())


def test_cfg_reads_quoted_overrides(command) -> None:
    done = command("--cfg", "job", "output_dir=runs/gate=lstm+seed=1")
    assert (done.returncode, done.stderr) == (0, "")
    assert "output_dir: runs/gate=lstm+seed=1" in done.stdout
