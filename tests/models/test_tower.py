"""A tower: missing modalities, pooling, and the blocks of its backbones that run."""

from __future__ import annotations

import pytest
import torch

from ret_lightning.models import Backbone, EncoderInput, RetTower
from ret_lightning.models.layer_plans import Explicit
from ret_lightning.models.tower import normalised
from tests.support.backbone_counter import Counter
from tests.support.tiny_models import batch


def test_row_is_independent_of_other_rows(make_retriever) -> None:
    tower = make_retriever().eval().query_tower
    has_text, has_image = [1, 0, 1, 1], [0, 1, 1, 0]
    together = tower(batch(has_text, has_image))
    for row in range(4):
        whole = batch(has_text, has_image)
        keep = [row]
        alone = EncoderInput.dense(
            whole.input_ids[keep],
            whole.attention_mask[keep],
            batch([1] * 4, [1] * 4).pixel_values[keep],
            torch.tensor([has_text[row]]),
            torch.tensor([has_image[row]]),
        )
        torch.testing.assert_close(tower(alone)[0], together[row], rtol=1e-5, atol=1e-5)


def test_unused_blocks_do_not_run(make_retriever) -> None:
    retriever = make_retriever(recurrence=Explicit([0, 1], [0, 2])).eval()
    counter = Counter(retriever)
    retriever.query_tower(batch([1], [1]))
    assert counter.blocks == [0, 1, 2]


def test_pooling_averages_vectors(make_retriever) -> None:
    """The output map is linear without a bias, so it commutes with the mean."""
    tower = make_retriever().eval().query_tower
    rows = batch([1, 0, 1], [0, 1, 1])
    with torch.no_grad():
        vectors = tower(rows)
        assert (tower.row_shape, vectors.shape) == ((4, 8), (3, 4, 8))
        tower.pooled = True
        assert tower.row_shape == (1, 8)
        torch.testing.assert_close(tower(rows), vectors.mean(dim=1))


def test_wrong_number_of_cells_is_refused(make_retriever) -> None:
    tower = make_retriever(recurrence=Explicit([0, 1], [0, 2])).query_tower
    backbone = Backbone(tower.text_backbone, tower.vision_backbone, tower.tokenizer, tower.image_transform)
    cell = tower.cells[0]
    assert len(RetTower(backbone, tower.plan, [cell, cell]).cells) == 2
    with pytest.raises(ValueError, match="expected 1 cell, or 2 cells for 2 steps, got 3"):
        RetTower(backbone, tower.plan, [cell] * 3)


@pytest.mark.parametrize(
    ("dtype", "result"),
    [(torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)],
)
def test_normalised_vectors_are_at_least_float32(dtype: torch.dtype, result: torch.dtype) -> None:
    vectors = normalised(torch.randn(5, 3, 16).to(dtype))
    assert vectors.dtype == result
    torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(5, 3, dtype=result))
