"""Backend of linear layers: chosen at the start of a run, stored in its config, and kept on resume."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import yaml
from omegaconf import OmegaConf

from ret_lightning.ops import onednn_linear
from ret_lightning.runs.training_run import _backend_setting
from tests.support.small_runs import small_run

pytestmark = pytest.mark.slow
Call = Callable[..., int]


@pytest.fixture
def operators() -> Iterator[None]:
    """Clear the caches of the operator lookup after the test."""
    yield
    for cached in (onednn_linear._automatic, onednn_linear._has_operator):
        cached.cache_clear()


def stored(run: Path) -> str:
    return yaml.safe_load((run / "config.yaml").read_text())["linear_backend"]


def test_automatic_choice_is_stored(call: Call, root: Path, tmp_path: Path) -> None:
    assert call("train", *small_run(root, tmp_path / "run", "trainer.max_epochs=1")) == 0
    assert stored(tmp_path / "run") == onednn_linear.choose_backend()


@pytest.mark.skipif(not onednn_linear._has_operator(), reason="requires a private operator")
def test_resumed_run_keeps_its_backend(
    call: Call,
    root: Path,
    tmp_path: Path,
    operators: None,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    run = tmp_path / "run"
    used = []
    multiply = onednn_linear._onednn_matmul
    monkeypatch.setattr(onednn_linear, "SMALLEST_WEIGHT", 1)
    monkeypatch.setattr(onednn_linear, "_onednn_matmul", lambda *inputs: used.append(1) or multiply(*inputs))
    assert call("train", *small_run(root, run, "trainer.max_epochs=1", "linear_backend=onednn")) == 0
    assert used
    assert stored(run) == "onednn"
    config = OmegaConf.create({"linear_backend": "auto"})
    assert _backend_setting(run, config, resume=True) == "onednn"  # the same as with resume=auto
    assert _backend_setting(run, config, resume=False) == "auto"
    assert call("train", f"resume={run}") == 2
    assert "[resume-finished]" in capfd.readouterr().err

    monkeypatch.setattr(torch.ops, "mkldnn", object())
    onednn_linear._has_operator.cache_clear()
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file() and file.suffix != ".log"}
    assert call("train", f"resume={run}", "trainer.max_epochs=2") == 1
    (line,) = capfd.readouterr().err.splitlines()
    assert line.endswith("[linear-backend-unavailable]")
    assert before == {file: file.read_bytes() for file in run.rglob("*") if file.is_file() and file.suffix != ".log"}
    assert call("train", f"resume={run}", "trainer.max_epochs=2", "linear_backend=torch") == 0
    assert stored(run) == "torch"
