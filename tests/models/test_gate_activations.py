"""Mean gate activations over the rows that have a modality, and activations per row."""

from __future__ import annotations

import pytest
import torch

from ret_lightning.models import ActivationMeans, GateActivations
from ret_lightning.models.gate_activations import RowActivations
from ret_lightning.models.layer_plans import Last
from tests.support.tiny_models import batch


def test_means_skip_rows_without_modality(make_retriever) -> None:
    retriever = make_retriever(recurrence=Last()).eval()
    means = ActivationMeans()
    rows = batch([1, 0, 1], [0, 0, 1])
    retriever.query_tower(rows, means)
    cell = retriever.query_tower.cells[0]
    seen = []
    cell.register_forward_hook(lambda _, __, out: seen.append(out[1]))
    retriever.query_tower(rows)
    (activations,) = seen
    assert set(means.means()) == {(0, "forget"), (0, "text"), (0, "image")}
    assert means.means()[0, "text"].item() == pytest.approx(activations.text[[0, 2]].mean().item(), abs=1e-6)
    assert means.means()[0, "image"].item() == pytest.approx(activations.image[[2]].mean().item(), abs=1e-6)
    assert means.means()[0, "forget"].item() == pytest.approx(activations.forget.mean().item(), abs=1e-6)


def test_means_weight_batches_by_rows() -> None:
    """Batches have several sizes, and activations of shape (N, k, H), (N, k, 1) and (N, 1, H)."""
    means, every = ActivationMeans(), []
    for count, shape in ((2, (2, 4, 8)), (5, (5, 4, 1)), (1, (1, 1, 8))):
        activations = GateActivations(*(torch.rand(shape) for _ in range(3)))
        has_text, has_image = (torch.rand(2, count, 1, 1) < 0.6).float()
        means.add(1, activations, has_text, has_image)
        every.append((activations, has_text.flatten() > 0, has_image.flatten() > 0))
    found = means.means()
    assert set(found) == {(1, "forget"), (1, "text"), (1, "image")}
    rows = {
        "forget": [o.forget.mean(dim=(1, 2)) for o, _, _ in every],
        "text": [o.text.mean(dim=(1, 2))[text] for o, text, _ in every],
        "image": [o.image.mean(dim=(1, 2))[image] for o, _, image in every],
    }
    for name, values in rows.items():
        torch.testing.assert_close(found[1, name], torch.cat(values).mean(), equal_nan=True)


def test_mean_of_absent_modality_is_nan() -> None:
    means = ActivationMeans()
    means.add(0, GateActivations(*torch.rand(3, 2, 4, 8).unbind()), torch.ones(2, 1, 1), torch.zeros(2, 1, 1))
    assert means.means()[0, "image"].isnan()
    assert means.means()[0, "text"].isfinite()


def test_row_activations_average_channels() -> None:
    collected = RowActivations()
    steps = [GateActivations(torch.rand(3, 4, 8), torch.rand(3, 4, 1), torch.rand(1, 1, 8)) for _ in range(2)]
    for step, activations in enumerate(steps):
        collected.add(step, activations, torch.ones(3, 1, 1), torch.ones(3, 1, 1))
    stacked = collected.stacked(tokens=4)
    assert {name: tuple(own.shape) for name, own in stacked.items()} == dict.fromkeys(
        ("forget", "text", "image"), (3, 2, 4)
    )
    for step, activations in enumerate(steps):
        torch.testing.assert_close(stacked["forget"][:, step], activations.forget.mean(dim=2))
        torch.testing.assert_close(stacked["text"][:, step], activations.text[:, :, 0])
        torch.testing.assert_close(stacked["image"][2, step, 3], activations.image.mean())
