"""Bad rows in training: skipped rows are counted, logged and limited, and do not affect the other rows."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
from lightning import Callback, Trainer, seed_everything

from ret_lightning.errors import DataError
from ret_lightning.training.callbacks import bad_row_count
from ret_lightning.training.callbacks.bad_row_count import BadRowCount
from ret_lightning.training.schedule import WarmupCosine
from tests.support.m2kr_folder import TRAIN
from tests.support.tiny_training import OPTIONS, make_data, make_module

SKIP = {"on_bad_row": "skip", "max_bad_fraction": 0.5}


class StepRecorder(Callback):
    """Records the gradients, weights and bad rows of each step."""

    def __init__(self) -> None:
        self.gradients, self.weights, self.states, self.bad = [], [], [], []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.weights.append([p.detach().clone() for p in pl_module.parameters()])
        self.states.append([s["step"].item() for s in trainer.optimizers[0].state.values()])
        self.bad.append([row.kind for row in batch.bad_rows])

    def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
        self.gradients.append([p.grad.clone() for p in pl_module.parameters() if p.requires_grad])


def fit(root: Path, data: dict | None = None, **options) -> tuple[StepRecorder, Trainer]:
    seed_everything(1, verbose=False)
    steps = StepRecorder()
    trainer = Trainer(
        **{**OPTIONS, "logger": False, "limit_val_batches": 0, "max_epochs": 1, "callbacks": [steps], **options}
    )
    module = make_module()
    module.schedule = WarmupCosine(horizon_steps=100)
    trainer.fit(module, datamodule=make_data(root, **{**SKIP, **(data or {})}))
    return steps, trainer


def replace_lines(root: Path, rows: dict[int, str]) -> None:
    """Replace lines of the training file, by their 0-based numbers."""
    file = root / TRAIN
    lines = file.read_text().splitlines()
    for number, line in rows.items():
        lines[number] = line
    file.write_text("\n".join(lines) + "\n")


def without_image(root: Path, number: int) -> str:
    row = json.loads((root / TRAIN).read_text().splitlines()[number])
    return json.dumps(row | {"image_path": "sub/nowhere.png"})


@pytest.mark.parametrize("reading", ["indexed", "streaming"])
@pytest.mark.parametrize("workers", [0, 1])
def test_bad_rows_are_counted_and_logged_by_kind(
    root: Path, caplog: pytest.LogCaptureFixture, reading: str, workers: int
) -> None:
    replace_lines(root, {3: "{", 5: "[]", 7: '{"data_id": 1}', 9: without_image(root, 9), 11: "nonsense"})
    with caplog.at_level(logging.WARNING):
        steps, trainer = fit(root, {"reading": reading, "num_workers": workers}, max_epochs=2, log_every_n_steps=1)
    counts = {"bad_json": 4, "wrong_type": 2, "missing_field": 2, "missing_image": 2}  # two epochs
    assert {n.removeprefix("data/bad_rows/"): v for n, v in trainer.logged_metrics.items() if "bad_rows" in n} == counts
    assert sum(len(bad) for bad in steps.bad) == 10
    warnings = [r.getMessage() for r in caplog.records if "skipped training row" in r.getMessage()]
    assert len(warnings) == len(set(warnings)) == 5  # one warning per row
    assert any(f"{root / TRAIN}:10 (subset wit): image" in line and "[missing_image]" in line for line in warnings)
    assert any(f"{root / TRAIN}:4: not JSON" in line for line in warnings)


def test_warnings_are_limited_per_kind(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    replace_lines(root, dict.fromkeys(range(10), "{"))
    with caplog.at_level(logging.WARNING):
        fit(root)
    assert len([r for r in caplog.records if "skipped training row" in r.getMessage()]) == 5


def test_skipped_rows_do_not_affect_other_rows(root: Path) -> None:
    """The other batches are unchanged, and the batch gives the vectors of its good rows."""
    whole = make_data(root)
    whole.prepare_data()
    whole.setup()
    order = [sample.row for batch in whole.train_dataloader().batch_sampler for sample in batch]
    replace_lines(root, {order[1]: "{", order[6]: "nonsense"})  # two of the eight of the first batch
    data = make_data(root, **SKIP)
    data.prepare_data()
    data.setup()
    batches, expected = list(data.train_dataloader()), list(whole.train_dataloader())
    kept = [0, 2, 3, 4, 5, 7]
    assert batches[0].labels.tolist() == expected[0].labels[kept].tolist()
    assert all(torch.equal(a.labels, b.labels) for a, b in zip(batches[1:], expected[1:], strict=True))
    module = make_module()
    query, passage = module.retriever(batches[0].queries, batches[0].passages)
    expected_vectors = module.retriever(expected[0].queries, expected[0].passages)
    torch.testing.assert_close(query, expected_vectors[0][kept])
    torch.testing.assert_close(passage, expected_vectors[1][kept])


def test_step_of_bad_rows_only_keeps_weights(root: Path) -> None:
    data = make_data(root)
    data.prepare_data()
    data.setup()
    second = list(data.train_dataloader().batch_sampler)[1]
    replace_lines(root, {sample.row: "{" for sample in second})
    steps, trainer = fit(root, {"max_bad_fraction": 0.9})
    assert [len(bad) for bad in steps.bad] == [0, 8, 0]
    assert trainer.global_step == 3
    assert all(torch.equal(a, b) for a, b in zip(steps.weights[0], steps.weights[1], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(steps.weights[1], steps.weights[2], strict=True))
    assert [set(states) for states in steps.states] == [{1.0}, {1.0}, {2.0}]  # AdamW has seen two steps
    assert all(float(g.abs().max()) == 0 for g in steps.gradients[1])


def test_too_many_bad_rows_stop_the_run(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace_lines(root, {3: "{", 5: "[]"})
    with pytest.raises(DataError) as error:
        fit(root, {"max_bad_fraction": 0.08})
    assert (error.value.code, error.value.found, error.value.rows) == ("too-many-bad-rows", 2, 24)
    assert "1 bad_json, 1 wrong_type" in error.value.message
    fit(root, {"max_bad_fraction": 0.09})
    replace_lines(root, dict.fromkeys(range(12), "{"))
    monkeypatch.setattr(bad_row_count, "MIN_ROWS_FOR_FRACTION", 8)  # before the end of the epoch
    with pytest.raises(DataError) as error:
        fit(root, {"max_bad_fraction": 0.3})
    assert error.value.code == "too-many-bad-rows"
    assert error.value.rows in (8, 16)


def test_counts_continue_after_resume(root: Path, tmp_path: Path) -> None:
    replace_lines(root, {3: "{", 5: "[]"})
    _, trainer = fit(root, max_epochs=1)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    again = Trainer(**{**OPTIONS, "logger": False, "limit_val_batches": 0, "max_epochs": 2})
    again.fit(make_module(), datamodule=make_data(root, **SKIP), ckpt_path=str(tmp_path / "a.ckpt"), weights_only=True)
    count = next(c for c in again.callbacks if isinstance(c, BadRowCount))
    assert count.state_dict() == {"rows": 48, "kinds": {"bad_json": 2, "wrong_type": 2}}


def test_bad_row_is_raised_without_skipping(root: Path) -> None:
    replace_lines(root, {3: "{"})
    with pytest.raises(DataError) as error:
        fit(root, {"on_bad_row": "raise"})
    assert (error.value.code, error.value.path, error.value.line) == ("not-json", root / TRAIN, 4)
