"""Metrics printed after a test or validation."""

from __future__ import annotations

import pytest
import torch
from lightning import Trainer
from lightning.pytorch.demos.boring_classes import BoringModel, RandomDataset
from torch.utils.data import DataLoader

from ret_lightning.evaluation.metric_list import print_metrics
from tests.support.tiny_training import OPTIONS

LONG = "val/" + "a_long_name/" * 12 + "recall@5"


class LoggingModel(BoringModel):
    """Logs two metrics over two loaders, as a retrieval evaluation does."""

    def validation_step(self, batch: torch.Tensor, batch_idx: int, dataloader_idx: int = 0) -> None:
        return

    def on_validation_epoch_end(self) -> None:
        self.log_dict({"val/mean/recall@5": torch.tensor(1 / 3), LONG: torch.tensor(2.0)})

    def on_validation_end(self) -> None:
        print_metrics(self.trainer)

    test_step, on_test_epoch_end, on_test_end = validation_step, on_validation_epoch_end, on_validation_end


def loaders() -> list[DataLoader]:
    return [DataLoader(RandomDataset(32, 2)) for _ in range(2)]


@pytest.mark.parametrize("name", ["validate", "test"])
def test_each_metric_is_printed_once(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    trainer = Trainer(**OPTIONS, logger=False)
    getattr(trainer, name)(LoggingModel(), loaders())
    out = capsys.readouterr().out
    lines = [[cell.strip() for cell in line.split("│")] for line in out.splitlines()]
    assert [line[1:3] for line in lines if len(line) > 2] == [["val/mean/recall@5", "0.333333"], [LONG, "2"]]
    assert "DataLoader" not in out


def test_nothing_is_printed_without_verbose(capsys: pytest.CaptureFixture[str]) -> None:
    trainer = Trainer(**OPTIONS, logger=False)
    trainer.validate(LoggingModel(), loaders(), verbose=False)
    assert capsys.readouterr().out == ""


def test_fit_prints_no_metrics(capsys: pytest.CaptureFixture[str]) -> None:
    trainer = Trainer(**OPTIONS, logger=False, max_steps=1)
    trainer.fit(LoggingModel(), DataLoader(RandomDataset(32, 1)), loaders())
    assert "recall@5" not in capsys.readouterr().out
