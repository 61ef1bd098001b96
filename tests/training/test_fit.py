"""Training from Python objects, and the script of the documentation."""

from __future__ import annotations

import json
import os
import re
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from ret_lightning import RetRetriever, RetrievalEvaluation, train
from ret_lightning.errors import ConfigError
from ret_lightning.evaluation import Evaluator
from ret_lightning.retrieval import ExactIndex
from ret_lightning.training import WarmupCosine
from tests.support import processes
from tests.support.paths import ROOT
from tests.support.tiny_training import OPTIONS, make_data, make_module

QUIET = {name: OPTIONS[name] for name in ("accelerator", "devices", "enable_progress_bar", "enable_model_summary")}


def test_saved_model_has_the_tested_metrics(root: Path, tmp_path: Path) -> None:
    retriever, data = make_module().retriever, make_data(root)
    before = {name: weight.clone() for name, weight in retriever.state_dict().items()}
    evaluation = RetrievalEvaluation(ExactIndex(), recall_at=[1, 5], ranked=10)
    options = {
        "optimizer": partial(torch.optim.AdamW, lr=3e-3), "scheduler": WarmupCosine(warmup_steps=1), "max_epochs": 2,
    }  # fmt: skip
    result = train(retriever, data, tmp_path / "run", evaluation=evaluation, **options, **QUIET)
    assert any(not torch.equal(before[name], weight) for name, weight in retriever.state_dict().items())
    stored = RetRetriever.from_pretrained(tmp_path / "run" / "model")
    again = Evaluator(ExactIndex(), recall_at=[1, 5], ranked=10).evaluate(
        stored, data.evaluation_subsets("test"), images=root / "images/m2kr/images", batch_size=256, progress=False
    )
    assert again.metrics == result.metrics
    with pytest.raises(ConfigError) as error:
        train(retriever, data, tmp_path / "run", max_epochs=1, **QUIET)
    assert error.value.code == "model-folder-taken"


@pytest.mark.slow
def test_documented_script_trains_and_searches(tmp_path: Path, glyphs_root: Path) -> None:
    """It has at most 30 lines."""
    page = (ROOT / "docs/pages/guides/python.md").read_text(encoding="utf-8")
    (script,) = (code for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "build_index(" in code)
    assert len([line for line in script.splitlines() if line.strip()]) <= 30
    (tmp_path / "script.py").write_text(script)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = processes.run([sys.executable, "script.py"], tmp_path, environment)
    assert done.returncode == 0, done.stderr
    trained, evaluated, *hits = [line for line in done.stdout.splitlines() if re.match(r"0\.\d|1\.0|Hit", line)]
    assert float(trained) == float(evaluated)
    assert len(hits) == 3
    assert json.loads((tmp_path / "my_index" / "manifest.json").read_text())["passages"] > 100
