"""A user-defined backbone, in one file of another package and one config, in all commands."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from ret_lightning.config.targets.allowed_targets import OWN_PACKAGES
from ret_lightning.models.backbones import list_backbones
from tests.support import processes
from tests.support.lab_backbone import write_backbone
from tests.support.small_runs import QUIET

pytestmark = pytest.mark.slow
PACKAGE = "tests_commands_lab"

# Run in a process that does not import the package itself.
READ = """
import sys
from ret_lightning import RetRetriever

retriever = RetRetriever.from_pretrained(sys.argv[1])
tower = retriever.query_tower
print(type(tower.text_backbone).__name__, type(tower.tokenizer).__name__, tower.tokenizer.max_length)
print(tuple(retriever.encode_queries([("a question", None)]).shape))
"""


def test_backbone_of_another_package(
    call: Callable[..., int],
    root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    configs = write_backbone(tmp_path / "lab", PACKAGE)
    monkeypatch.syspath_prepend(tmp_path / "lab")
    monkeypatch.setenv(OWN_PACKAGES, PACKAGE)
    run, model = tmp_path / "run", tmp_path / "model"
    data = ["data=m2kr", f"data.root={root}", "data.num_workers=0", "data.batch_size=8"]
    own = ["--config-dir", configs, "backbone=letters"]
    (card,) = [card for card in list_backbones([configs]) if card.name == "letters"]
    assert (card.text, card.vision) == ((16, 2), (16, 3)), card.problem
    assert card.family == (f"{PACKAGE}_letters", f"{PACKAGE}_patches")
    assert (card.description, card.plan.steps, card.problem) == ("Letters and patches", 2, "")

    assert call("check", *own, *data[:2], "images=none", "workers=1", f"report={tmp_path / 'check.json'}") == 0
    assert json.loads((tmp_path / "check.json").read_text())
    capsys.readouterr()
    sizes = ["model.num_tokens=4", "model.hidden_size=32", "model.num_heads=2", "model.output_size=16"]
    train = [*own, *data, *sizes, *QUIET, "logger=csv", "debug=fast", f"output_dir={run}"]
    assert call("train", *train, "dry_run=true") == 0
    assert "parameters" in capsys.readouterr().out
    assert call("train", *train) == 0
    assert call("export", f"checkpoint={run}", f"output={model}") == 0
    assert f"`{OWN_PACKAGES}={PACKAGE}`" in (model / "README.md").read_text()
    (tmp_path / "read.py").write_text(READ)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "lab")}
    done = processes.run([processes.sys.executable, tmp_path / "read.py", model], tmp_path, environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["LetterStack Letters 20", "(1, 4, 16)"]
    again = call("evaluate", f"checkpoint={model}", f"output_dir={tmp_path / 'evaluation'}", *data[:3])
    assert again == 0
    assert (tmp_path / "evaluation/metrics.json").read_bytes() == (run / "metrics.json").read_bytes()
