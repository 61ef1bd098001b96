"""Heat maps of the logged gate activations."""

from __future__ import annotations

from pathlib import Path

import pandas
import pytest
from lightning.pytorch.loggers import CSVLogger
from PIL import Image

from ret_lightning import RetrievalEvaluation
from ret_lightning.retrieval import ExactIndex
from ret_lightning.training.callbacks import gate_maps
from ret_lightning.training.callbacks.gate_maps import GateMaps
from tests.support.tiny_training import fit, make_module


def test_activations_are_grouped_by_side_kind_and_step() -> None:
    steps = {f"gate/query/text/step_{n:02d}": n / 20 for n in reversed(range(12))}
    found = gate_maps.group_activations(
        {**steps, "gate/passage/forget/step_00": 0.5, "train/loss": 1.0, "gate/odd": 2.0}
    )
    assert found == {"query": {"text": [n / 20 for n in range(12)]}, "passage": {"forget": [0.5]}}


def test_last_logged_activations_are_drawn(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    draw = gate_maps.draw_gate_maps
    monkeypatch.setattr(gate_maps, "draw_gate_maps", lambda maps, file: (drawn.append(maps), draw(maps, file)))
    logger = CSVLogger(tmp_path, name="csv", version="")
    callbacks = [RetrievalEvaluation(ExactIndex(), [1], ranked=10), GateMaps(str(tmp_path / "pictures" / "gates.png"))]
    fit(root, make_module(), callbacks=callbacks, logger=logger, log_every_n_steps=1, limit_val_batches=1.0)
    rows = pandas.read_csv(tmp_path / "csv" / "metrics.csv")
    assert len(drawn) == 2
    for side in ("query", "passage"):
        assert set(drawn[-1][side]) == {"forget", "text", "image"}
        for kind, values in drawn[-1][side].items():
            logged = [rows[f"gate/{side}/{kind}/step_{step:02d}"].dropna().iloc[-1] for step in range(len(values))]
            assert values == pytest.approx(logged)
    with Image.open(tmp_path / "pictures" / "gates.png") as picture:
        assert picture.width > 200
        assert picture.height > 300
