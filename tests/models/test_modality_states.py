"""States of one modality, of the rows that have it."""

from __future__ import annotations

import pytest
import torch

from ret_lightning.models.modality_states import ModalityStates


@pytest.mark.parametrize(("rows", "complete"), [([0, 1, 2], True), ([0, 2], False), ([], False)])
def test_complete_only_if_every_row_has_the_modality(rows: list[int], complete: bool) -> None:
    present = torch.zeros(3, 1, 1)
    present[rows] = 1
    states = ModalityStates(torch.randn(len(rows), 5, 4), torch.tensor(rows, dtype=torch.int64), present)
    assert states.is_complete is complete
