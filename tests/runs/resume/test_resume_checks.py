"""Checks at the start of training: equal configs on all ranks, and the learning rate of a resumed run."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf

from ret_lightning.errors import UserError
from ret_lightning.runs.resume.resume_checks import ResumedLearningRate, SameConfig
from tests.support import processes
from tests.support.m2kr_folder import write_folder
from tests.support.small_runs import small_run

CONFIG = {"output_dir": "/run", "seed": 1, "optimizer": {"lr": 0.1}, "callbacks": {"dirpath": "/run/checkpoints"}}


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({}, None),
        ({"seed": 2}, "seed"),
        ({"optimizer": {"lr": 0.2}}, "optimizer.lr"),
        ({"output_dir": "/other", "callbacks": {"dirpath": "/other/checkpoints"}}, "output_dir"),
        ({"new": 1}, "new"),
    ],
)
def test_ranks_must_have_the_same_config(monkeypatch: pytest.MonkeyPatch, change: dict, key: str | None) -> None:
    theirs = SameConfig(OmegaConf.create(CONFIG | change))

    def gather(into: list, own: object) -> None:
        into[:] = [own, theirs._config]

    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.all_gather_object", gather)
    check = SameConfig(OmegaConf.create(CONFIG))
    trainer = SimpleNamespace(world_size=2)
    if key is None:
        check.setup(trainer, None, "fit")
        return
    with pytest.raises(UserError) as caught:
        check.setup(trainer, None, "fit")
    assert (caught.value.code, caught.value.key, caught.value.rank) == ("ranks-differ", key, 1)


@pytest.mark.slow
@pytest.mark.parametrize("same", [True, False])
def test_slurm_tasks_compare_their_configs(tmp_path: Path, same: bool) -> None:
    """Two tasks as started by SLURM, each of which composes its own config."""
    root, run = write_folder(tmp_path / "m2kr", training_rows=16), tmp_path / "run"
    rate = "0.001" if same else "'${oc.decode:${oc.env:SLURM_PROCID}}'"
    options = small_run(
        root, run, "trainer=slurm", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.max_epochs=1"
    )
    options += ["trainer.precision=32-true", f"scheduler.floor={rate}"]
    slurm = {
        "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_JOB_ID": str(40000 + os.getpid() % 10000),
        "SLURM_JOB_NAME": "test", "SLURM_NODELIST": "127.0.0.1", "MASTER_ADDR": "127.0.0.1", "SLURM_NODEID": "0",
        "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    command = processes.module("ret_lightning.commands.train", *options)
    ranks = [
        processes.start(
            command,
            tmp_path,
            {**os.environ, **slurm, "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)},
            stderr=processes.subprocess.PIPE,
            stdout=processes.subprocess.DEVNULL,
        )
        for rank in range(2)
    ]
    printed = [rank.communicate(timeout=processes.PATIENCE)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == ([0, 0] if same else [1, 1]), printed
    if not same:
        assert all("scheduler.floor: 0 on rank 0, 1 on rank 1" in text for text in printed), printed
        assert all(text.strip().endswith("[ranks-differ]") for text in printed), printed
        assert not (run / "checkpoints").exists()


def resumed(stored: float, step: int, horizon: int, caplog: pytest.LogCaptureFixture) -> str:
    """Return the log of a resumed run.

    Args:
        stored: learning rate in the checkpoint.
        step: step of the checkpoint.
        horizon: length of the schedule, which is linear from 1 to 0.
        caplog: captures the log.
    """
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda current: 1 - current / horizon)
    scheduler.last_epoch = step
    optimizer.param_groups[0]["lr"] = stored
    callback = ResumedLearningRate()
    callback.load_state_dict({"horizon": 10})
    trainer = SimpleNamespace(
        ckpt_path="last.ckpt",
        is_global_zero=True,
        lr_scheduler_configs=[SimpleNamespace(scheduler=scheduler)],
        global_step=step,
    )
    callback.on_train_start(trainer, SimpleNamespace(schedule_horizon=horizon))
    assert callback.state_dict() == {"horizon": horizon}
    return caplog.text


def test_changed_learning_rate_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    log = resumed(0.5, 5, 20, caplog)
    assert "learning rate at step 5: 0.5 before the resume, 0.75 now" in log
    assert "(10 steps before, 20 now)" in log
    assert "scheduler.horizon_steps=10" in log


def test_unchanged_learning_rate_is_not_reported(caplog: pytest.LogCaptureFixture) -> None:
    assert resumed(0.5, 5, 10, caplog) == ""
