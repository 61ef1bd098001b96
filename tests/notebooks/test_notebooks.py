"""Notebooks run without errors, and their results agree with direct computations."""

from __future__ import annotations

import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.support.paths import NOTEBOOKS


pytestmark = pytest.mark.slow

# Appended to the notebook: compares its variables with the formulas of the papers, computed by torch.
QUICK_START = """
import torch

scores = torch.einsum("qid,pjd->qpij", query_vectors, passage_vectors).amax(-1).sum(-1)
assert torch.allclose(ranking.scores, scores.topk(4).values, atol=1e-2)  # float16 store
assert torch.allclose(direct_scores, scores[0], atol=1e-5)
assert ranking.rows[:, 0].tolist() == scores.argmax(1).tolist()
assert passage_vectors.shape == (183, tower.start.shape[1], tower.output_size)
assert torch.allclose(passage_vectors.norm(dim=2), torch.ones(183, tower.start.shape[1]), atol=1e-5)
"""
GATES = """
import torch

assert set(activations) == {"forget", "text", "image"}
assert all(bool(((o >= 0) & (o <= 1)).all()) for o in activations.values())
assert bool((activations["image"][1] == 0).all()) and bool((activations["text"][2] == 0).all())

# The equation of the published gate, on outputs of its linear layers recorded by hooks.
recorded = {}
gate = tower.cells[0].gate
for name in ("text_input", "image_input", "text_forget", "image_forget"):
    getattr(gate, name).register_forward_hook(lambda m, i, o, name=name: recorded.setdefault(name, []).append(o.detach()))
again = retriever.gate_activations("query", [views["text and image"]])
for step in range(tower.plan.steps):
    text = torch.sigmoid(recorded["text_input"][step] + gate.input_bias)
    forget = torch.sigmoid(recorded["text_forget"][step] + recorded["image_forget"][step] + gate.forget_bias)
    assert torch.allclose(text.mean(-1), again["text"][:, step], atol=1e-5)
    assert torch.allclose(forget.mean(-1), again["forget"][:, step], atol=1e-5)
for name in activations:
    assert torch.allclose(again[name][0], activations[name][0], atol=1e-4)
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("notebook") / "run"


@pytest.mark.parametrize(("name", "check"), [("quick_start", QUICK_START), ("reading_the_gates", GATES)])
def test_notebook_runs(name: str, check: str, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RET_NOTEBOOK_RUN", str(run))
    monkeypatch.setenv("RET_NOTEBOOK_OPTIONS", "trainer.max_epochs=1 trainer.limit_train_batches=4 data.subsets=[base]")
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    notebook.cells.append(nbformat.v4.new_code_cell(check))
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": NOTEBOOKS}}).execute()


@pytest.mark.parametrize("file", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda file: file.stem)
def test_stored_outputs_are_complete(file: Path) -> None:
    assert os.path.getsize(file) < 1_000_000
    code = [cell for cell in nbformat.read(file, as_version=4).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert not any(output.output_type == "error" for output in outputs)
