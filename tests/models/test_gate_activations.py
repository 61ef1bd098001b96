"""Gate activations: means over the rows that have a modality, and those of each row."""

from __future__ import annotations

import pytest
import torch

from ret_lightning.models import OpeningMeans, Openings
from ret_lightning.models.gate_activations import RowOpenings
from ret_lightning.models.layer_plans import Last
from tests.support.tiny_models import batch


def test_means_of_openings_count_rows_that_have_the_modality(make_retriever) -> None:
    retriever = make_retriever(recurrence=Last()).eval()
    means = OpeningMeans()
    rows = batch([1, 0, 1], [0, 0, 1])
    retriever.query_tower(rows, means)
    cell = retriever.query_tower.cells[0]
    seen = []
    cell.register_forward_hook(lambda _, __, out: seen.append(out[1]))
    retriever.query_tower(rows)
    (openings,) = seen
    assert set(means.means()) == {(0, "forget"), (0, "text"), (0, "image")}
    assert means.means()[0, "text"].item() == pytest.approx(openings.text[[0, 2]].mean().item(), abs=1e-6)
    assert means.means()[0, "image"].item() == pytest.approx(openings.image[[2]].mean().item(), abs=1e-6)
    assert means.means()[0, "forget"].item() == pytest.approx(openings.forget.mean().item(), abs=1e-6)


def test_means_weigh_batches_by_their_rows() -> None:
    """Of openings (N, k, H), some of one value per vector or per row, in batches of several sizes."""
    means, every = OpeningMeans(), []
    for count, shape in ((2, (2, 4, 8)), (5, (5, 4, 1)), (1, (1, 1, 8))):
        openings = Openings(*(torch.rand(shape) for _ in range(3)))
        has_text, has_image = (torch.rand(2, count, 1, 1) < 0.6).float()
        means.add(1, openings, has_text, has_image)
        every.append((openings, has_text.flatten() > 0, has_image.flatten() > 0))
    found = means.means()
    assert set(found) == {(1, "forget"), (1, "text"), (1, "image")}
    rows = {
        "forget": [o.forget.mean(dim=(1, 2)) for o, _, _ in every],
        "text": [o.text.mean(dim=(1, 2))[text] for o, text, _ in every],
        "image": [o.image.mean(dim=(1, 2))[image] for o, _, image in every],
    }
    for name, values in rows.items():
        torch.testing.assert_close(found[1, name], torch.cat(values).mean(), equal_nan=True)


def test_mean_of_a_modality_that_no_row_has_is_nan() -> None:
    means = OpeningMeans()
    means.add(0, Openings(*torch.rand(3, 2, 4, 8).unbind()), torch.ones(2, 1, 1), torch.zeros(2, 1, 1))
    assert means.means()[0, "image"].isnan()
    assert means.means()[0, "text"].isfinite()


def test_openings_of_each_row_and_vector() -> None:
    collected = RowOpenings()
    steps = [Openings(torch.rand(3, 4, 8), torch.rand(3, 4, 1), torch.rand(1, 1, 8)) for _ in range(2)]
    for step, openings in enumerate(steps):
        collected.add(step, openings, torch.ones(3, 1, 1), torch.ones(3, 1, 1))
    stacked = collected.stacked(tokens=4)
    assert {name: tuple(own.shape) for name, own in stacked.items()} == dict.fromkeys(
        ("forget", "text", "image"), (3, 2, 4)
    )
    for step, openings in enumerate(steps):
        torch.testing.assert_close(stacked["forget"][:, step], openings.forget.mean(dim=2))
        torch.testing.assert_close(stacked["text"][:, step], openings.text[:, :, 0])
        torch.testing.assert_close(stacked["image"][2, step, 3], openings.image.mean())
