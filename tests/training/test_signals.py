"""Asking SLURM to queue a job again; what signals do to a run is tried in test_resumption.py."""

from __future__ import annotations

from subprocess import CompletedProcess

import pytest

from ret_lightning.training.signals import requeue


@pytest.fixture(autouse=True)
def no_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"):
        monkeypatch.delenv(name, raising=False)


class Scontrol:
    def __init__(self, code: int = 0, error: OSError | None = None) -> None:
        self.code, self.error = code, error
        self.calls: list[list[str]] = []

    def __call__(self, command: list[str], **_: object) -> CompletedProcess[str]:
        self.calls.append(command)
        if self.error:
            raise self.error
        return CompletedProcess(command, self.code, "", "Invalid job id\n")


def test_a_job_and_a_task_of_an_array(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Scontrol()
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    requeue(run)
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "16")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    requeue(run)
    assert run.calls == [["scontrol", "requeue", "17"], ["scontrol", "requeue", "16_3"]]


def test_what_goes_wrong_is_told_and_no_error(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = Scontrol()
    requeue(run)
    assert run.calls == []
    assert "this is no SLURM job" in caplog.text
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    requeue(Scontrol(code=1))
    assert "scontrol requeue 17 failed: Invalid job id" in caplog.text
    requeue(Scontrol(error=FileNotFoundError(2, "No such file or directory")))
    assert "scontrol cannot be run (No such file or directory)" in caplog.text
