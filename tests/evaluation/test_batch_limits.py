"""Limits on batches, against the numbers that Lightning runs."""

from __future__ import annotations

import pytest
from lightning import Trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.demos.boring_classes import BoringModel, RandomDataset
from torch.utils.data import DataLoader

from ret_lightning.errors import ConfigError
from ret_lightning.evaluation.batch_limits import limited_batches
from tests.support.tiny_training import OPTIONS


class Counted(BoringModel):
    def __init__(self) -> None:
        super().__init__()
        self.batches = 0

    def validation_step(self, batch: object, batch_idx: int) -> None:
        self.batches += 1


def by_lightning(batches: int, limit: int | float | None) -> int:
    """How many batches a validation runs."""
    module = Counted()
    trainer = Trainer(**OPTIONS, logger=False, limit_val_batches=limit)
    trainer.validate(module, DataLoader(RandomDataset(32, batches)), verbose=False)
    return module.batches


@pytest.mark.parametrize(
    ("batches", "limit"), [(7, None), (7, 1.0), (7, 0.5), (7, 3), (7, 9), (7, 0), (7, 0.0), (100, 0.29)]
)
def test_number_of_batches_is_that_of_lightning(batches: int, limit: int | float | None) -> None:
    assert limited_batches(batches, limit, "trainer.limit_val_batches", "passages") == by_lightning(batches, limit)


def test_no_batches_leave_none() -> None:
    assert [limited_batches(0, limit, "x", "passages") for limit in (None, 0.5, 3)] == [0, 0, 0]


@pytest.mark.parametrize(("batches", "limit"), [(7, 0.1), (3, 0.3), (1000, 0.0005)])
def test_share_without_a_batch_names_one_that_has(batches: int, limit: float) -> None:
    with pytest.raises(MisconfigurationException):
        by_lightning(batches, limit)
    with pytest.raises(ConfigError) as error:
        limited_batches(batches, limit, "trainer.limit_val_batches", "passages")
    assert (error.value.code, error.value.key) == ("limit-leaves-no-batch", "trainer.limit_val_batches")
    least = error.value.least
    assert limited_batches(batches, least, "x", "passages") == by_lightning(batches, least) == 1
    assert int(batches * (least - 0.001)) == 0
