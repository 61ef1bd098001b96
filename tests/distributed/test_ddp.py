"""The DDP strategy that starts its ranks with a config file."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch
from lightning import Trainer

from ret_lightning.distributed import ddp
from ret_lightning.distributed.ddp import RANK_VARIABLES, SameConfigDDP
from ret_lightning.distributed.rank_process import PARENT_VARIABLE, rank_command
from tests.support.tiny_models import make
from tests.support.tiny_training import OPTIONS


def evaluate(config: object, **options: bool) -> None:
    """A placeholder for the function of the ranks."""


@pytest.fixture
def strategy(monkeypatch: pytest.MonkeyPatch) -> Iterator[SameConfigDDP]:
    """Return the strategy of a trainer with three ranks, including its launcher."""
    for name in (*RANK_VARIABLES, "RANK", "SLURM_PROCID", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)
    own = SameConfigDDP("runs/a/config.yaml")
    trainer = Trainer(**{**OPTIONS, "devices": 3}, strategy=own, logger=False)
    trainer.strategy._configure_launcher()
    yield own
    own.stop_ranks(failed=True)
    for name in RANK_VARIABLES:
        os.environ.pop(name, None)


def test_rank_command_names_function_and_config(strategy: SameConfigDDP) -> None:
    with pytest.raises(RuntimeError, match="set_rank_function"):
        strategy.rank_command()
    assert strategy.prog == "ret-lightning"
    strategy.set_rank_function(evaluate, resume=True, quick=False)
    assert strategy.rank_command() == rank_command(evaluate, "runs/a/config.yaml", ["resume"])
    assert strategy.prog == "ret-evaluate"


def test_each_rank_is_started_once(strategy: SameConfigDDP, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[tuple[list[str], dict[str, str]]] = []

    def start(command: list[str], env: dict[str, str]) -> SimpleNamespace:
        started.append((command, env))
        return SimpleNamespace(kill=lambda: None, wait=lambda: 0, poll=lambda: None)

    monkeypatch.setattr(ddp.subprocess, "Popen", start)
    strategy.set_rank_function(evaluate)
    launcher = strategy._launcher
    launcher._call_children_scripts()
    assert [command for command, _ in started] == [strategy.rank_command()] * 2
    assert [env["LOCAL_RANK"] for _, env in started] == ["1", "2"]
    assert os.environ["LOCAL_RANK"] == "0"
    for _, env in started:
        assert {name: env[name] for name in RANK_VARIABLES if name != "LOCAL_RANK"} == {
            "NODE_RANK": "0",
            "WORLD_SIZE": "3",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": os.environ["MASTER_PORT"],
        }
        assert env[PARENT_VARIABLE] == str(os.getpid())
    strategy.stop_ranks(failed=False)
    assert not set(RANK_VARIABLES) & set(os.environ)  # the next job of a sweep starts its own ranks
    assert launcher.procs == []


@pytest.mark.parametrize(("code", "failed"), [("raise SystemExit(3)", True), ("pass", False)])
def test_failed_rank_is_detected(strategy: SameConfigDDP, code: str, failed: bool, monkeypatch) -> None:
    monkeypatch.setattr(ddp, "GRACE_SECONDS", 0.3 if not failed else 10.0)
    process = subprocess.Popen([sys.executable, "-S", "-c", code])
    strategy._launcher.procs = [process]
    assert strategy.other_rank_failed() == failed
    process.wait()


@pytest.mark.parametrize(("failed", "codes"), [(True, [-9]), (False, [0])])
def test_ranks_are_killed_or_waited_for(strategy: SameConfigDDP, failed: bool, codes: list[int]) -> None:
    process = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(0.3)"])
    strategy._launcher.procs = [process]
    strategy.stop_ranks(failed)
    assert [process.returncode] == codes
    assert not strategy.other_rank_failed()  # the processes are no longer tracked


def test_validation_step_bypasses_ddp(strategy: SameConfigDDP) -> None:
    def refused(*_: object) -> None:
        raise AssertionError("called through DDP")

    strategy.model = refused
    strategy._lightning_module = SimpleNamespace(validation_step=lambda batch, index: batch * index)
    assert torch.equal(strategy.validation_step(torch.ones(2), 3), torch.full((2,), 3.0))


@pytest.mark.parametrize(
    ("layer", "options", "broadcast", "view"),
    [
        (None, {}, False, True),
        (torch.nn.LayerNorm(4), {}, False, True),
        (torch.nn.BatchNorm1d(4), {}, True, True),
        (torch.nn.BatchNorm1d(4, track_running_stats=False), {}, False, True),
        (torch.nn.BatchNorm1d(4), {"broadcast_buffers": False, "gradient_as_bucket_view": False}, False, False),
        (None, {"broadcast_buffers": True}, True, True),
    ],
)
def test_buffers_are_broadcast_only_if_they_change(
    layer: torch.nn.Module | None, options: dict, broadcast: bool, view: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[dict] = []
    monkeypatch.setattr(
        "lightning.pytorch.strategies.ddp.DistributedDataParallel", lambda **given: made.append(given) or given
    )
    own = SameConfigDDP("", **options)
    monkeypatch.setattr(own, "determine_ddp_device_ids", lambda: None)
    retriever = make("lstm", {}, (True, 2))  # has buffers, which are constants
    assert list(retriever.buffers())
    own._setup_model(torch.nn.ModuleList([retriever, *([layer] if layer else [])]))
    assert (made[0]["broadcast_buffers"], made[0]["gradient_as_bucket_view"]) == (broadcast, view)
