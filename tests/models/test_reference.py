"""Agreement with the published code: features, scores, loss and gradients on its reference data."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from ret_lightning import RetRetriever
from ret_lightning.losses import ContrastiveLoss, EncodedBatch, maxsim
from ret_lightning.models import EncoderInput

TOLERANCE = 1e-5  # relative to the largest magnitude of the tensor


def deviation(ours: Tensor, theirs: Tensor) -> float:
    return float((ours.detach() - theirs).abs().max() / theirs.abs().max())


def rows(data: dict[str, Tensor], side: str, with_text_mask: bool = True) -> EncoderInput:
    names = ("input_ids", "attention_mask", "pixel_values", "text_mask", "image_mask")
    tensors = [data[f"{side}_{name}"] for name in names]
    if not with_text_mask:
        tensors[3] = None
    return EncoderInput.dense(*tensors)


@pytest.fixture
def loaded(reference: Path) -> tuple[RetRetriever, dict[str, Tensor]]:
    return RetRetriever.from_pretrained(reference / "checkpoint"), load_file(reference / "reference.safetensors")


def test_features_match_published_code(loaded) -> None:
    retriever, data = loaded
    assert deviation(retriever.query_tower(rows(data, "query")), data["query_features"]) < TOLERANCE
    assert deviation(retriever.passage_tower(rows(data, "passage")), data["passage_features"]) < TOLERANCE
    without = retriever.query_tower(rows(data, "query", with_text_mask=False))
    assert deviation(without, data["query_features_without_text_mask"]) < TOLERANCE


def test_joint_forward_matches_published_code(loaded) -> None:
    retriever, data = loaded
    query, passage = retriever(rows(data, "query"), rows(data, "passage"))
    normalise = torch.nn.functional.normalize
    assert deviation(query, normalise(data["query_features"], dim=-1)) < TOLERANCE
    assert deviation(passage, normalise(data["passage_features"], dim=-1)) < TOLERANCE


def test_loss_and_gradients_match_published_code(loaded) -> None:
    retriever, data = loaded
    if "maxsim_scores" not in data:
        assert retriever.query_tower.pooled  # no MaxSim scores for one vector per row
        return
    query, passage = retriever(rows(data, "query"), rows(data, "passage"))
    assert deviation(maxsim(query, passage), data["maxsim_scores"]) < TOLERANCE
    labels = torch.tensor([ord(letter) for letter in "abacd"])
    query, passage = (x.detach().requires_grad_() for x in (query, passage))
    output = ContrastiveLoss(symmetric=False)(EncodedBatch(query, passage, labels))
    assert deviation(output.loss, data["loss_query_to_passage"]) < TOLERANCE
    grad_query, grad_passage = torch.autograd.grad(output.loss, (query, passage))
    assert deviation(grad_query, data["grad_query_q2p"]) < TOLERANCE
    assert deviation(grad_passage, data["grad_passage_q2p"]) < TOLERANCE
