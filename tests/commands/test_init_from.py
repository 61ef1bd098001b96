"""init_from: files instead of folders, and weights of another architecture."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from ret_lightning import RetRetriever
from ret_lightning.errors import UserError
from tests.support.small_runs import Trained, small_run

pytestmark = pytest.mark.slow  # the tests share one run of ret-train


@pytest.mark.parametrize("name", ["checkpoints/best.ckpt", "checkpoints", ""])
def test_from_pretrained_names_ret_export(trained: Trained, name: str) -> None:
    with pytest.raises(UserError) as raised:
        RetRetriever.from_pretrained(trained.run / name)
    assert raised.value.code in ("checkpoint-not-a-folder", "checkpoint-config-missing")
    named = trained.run / name if name.endswith(".ckpt") else trained.run
    assert f"`ret-export checkpoint={named} output=DIR`" in raised.value.message


def test_matching_weights_are_loaded_and_others_listed(
    trained: Trained, call: Callable[..., int], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    options = small_run(
        trained.root, tmp_path / "run", "gate=coupled", "model.num_tokens=2", "trainer.max_steps=1", "test_with=none"
    )
    assert call("train", *options, f"init_from={trained.run}") == 1
    assert capsys.readouterr().err.strip().endswith("[checkpoint-other-architecture]")
    assert call("train", *options, f"init_from={trained.run}", "init_partial=true") == 0
    printed = capsys.readouterr()
    log = printed.out + printed.err
    assert "gate=lstm" in log
    assert "not loaded, kept as initialized: query_model.ret_cell.query_hidden_states (1, 2, 64)" in log
    assert "in the checkpoint, but not used: " in log
    assert "query_model.ret_cell.text_input_gate_w" in log


def test_partial_needs_init_from(call: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert call("train", "data=m2kr", "data.root=.", "init_partial=true") == 2
    assert "[init-partial-without-init-from]" in capsys.readouterr().err
