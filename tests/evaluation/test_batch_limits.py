"""Batch limits, compared with the number of batches that Lightning runs."""

from __future__ import annotations

import pytest
from lightning import Trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.demos.boring_classes import BoringModel, RandomDataset
from torch.utils.data import DataLoader

from ret_lightning.errors import ConfigError
from ret_lightning.evaluation.batch_limits import limit_batches
from tests.support.tiny_training import OPTIONS


class BatchCounter(BoringModel):
    def __init__(self) -> None:
        super().__init__()
        self.batches = 0

    def validation_step(self, batch: object, batch_idx: int) -> None:
        self.batches += 1


def count_lightning_batches(batches: int, limit: int | float | None) -> int:
    """Return the number of batches that a validation runs."""
    module = BatchCounter()
    trainer = Trainer(**OPTIONS, logger=False, limit_val_batches=limit)
    trainer.validate(module, DataLoader(RandomDataset(32, batches)), verbose=False)
    return module.batches


@pytest.mark.parametrize(
    ("batches", "limit"), [(7, None), (7, 1.0), (7, 0.5), (7, 3), (7, 9), (7, 0), (7, 0.0), (100, 0.29)]
)
def test_limited_batches_match_lightning(batches: int, limit: int | float | None) -> None:
    assert limit_batches(batches, limit, "trainer.limit_val_batches", "passages") == count_lightning_batches(
        batches, limit
    )


def test_zero_batches_stay_zero() -> None:
    assert [limit_batches(0, limit, "x", "passages") for limit in (None, 0.5, 3)] == [0, 0, 0]


@pytest.mark.parametrize(("batches", "limit"), [(7, 0.1), (3, 0.3), (1000, 0.0005)])
def test_fraction_below_one_batch_reports_minimum(batches: int, limit: float) -> None:
    with pytest.raises(MisconfigurationException):
        count_lightning_batches(batches, limit)
    with pytest.raises(ConfigError) as error:
        limit_batches(batches, limit, "trainer.limit_val_batches", "passages")
    assert (error.value.code, error.value.key) == ("limit-leaves-no-batch", "trainer.limit_val_batches")
    least = error.value.least
    assert limit_batches(batches, least, "x", "passages") == count_lightning_batches(batches, least) == 1
    assert int(batches * (least - 0.001)) == 0
