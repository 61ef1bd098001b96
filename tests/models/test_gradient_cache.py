"""Gradient caching: the gradients of the whole batch, with the activations of one micro-batch in memory."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ret_lightning.losses import PADDING, ContrastiveLoss, EncodedBatch
from ret_lightning.models import ActivationMeans, EncoderInput, RetRetriever
from ret_lightning.models.gradient_cache import encode_in_micro_batches
from tests.support.tiny_models import NO_DROPOUT, PASSAGES, QUERIES, batch

LABELS = torch.tensor([[0, 3], [1, PADDING], [0, 4], [2, PADDING], [3, PADDING], [4, 1], [5, 9]])


def gradients(retriever: RetRetriever, size: int | None, precision: torch.dtype | None = None) -> dict[str, Tensor]:
    retriever.zero_grad(set_to_none=True)
    with torch.autocast("cpu", dtype=precision, enabled=precision is not None):
        vectors = encode_in_micro_batches(retriever, QUERIES, PASSAGES, size)
        loss = ContrastiveLoss()(EncodedBatch(*vectors, LABELS)).loss
    loss.backward()
    return {"loss": loss.detach(), **{n: p.grad for n, p in retriever.named_parameters() if p.requires_grad}}


def assert_equal(ours: dict[str, Tensor], theirs: dict[str, Tensor], tolerance: float = 1e-5) -> None:
    assert ours.keys() == theirs.keys()
    for name, theirs_of in theirs.items():
        largest = max(float(theirs_of.abs().max()), 1e-6)
        assert (ours[name] - theirs_of).abs().max() <= tolerance * largest, name


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
@pytest.mark.parametrize("options", [{}, {"train_text": True, "train_vision": 2}, {"share_towers": True}])
def test_gradients_match_whole_batch(make_retriever, size: int, options: dict) -> None:
    retriever = make_retriever(**NO_DROPOUT, **options).double().train()
    assert_equal(gradients(retriever, size), gradients(retriever, None))


def test_gradients_match_in_half_precision(make_retriever) -> None:
    retriever = make_retriever(**NO_DROPOUT, train_text=True).train()
    # Rounding to bfloat16 depends on the order of sums, which depends on the batch size.
    ours, theirs = gradients(retriever, 2, torch.bfloat16), gradients(retriever, None, torch.bfloat16)
    for name in [n for n in theirs if "k_proj.bias" in n]:  # its gradient is only rounding
        del ours[name], theirs[name]
    assert_equal(ours, theirs, 0.1)


def test_both_passes_use_the_same_dropout(make_retriever) -> None:
    """Compare with the same micro-batches with all activations kept."""
    retriever = make_retriever(dropout=0.4, attention_dropout=0.4, train_vision=True).train()
    torch.manual_seed(3)
    ours = gradients(retriever, 3)
    retriever.zero_grad(set_to_none=True)
    torch.manual_seed(3)
    kept = [
        retriever(QUERIES.slice(start, stop), PASSAGES.slice(start, stop)) for start, stop in ((0, 2), (2, 4), (4, 7))
    ]
    vectors = (torch.cat(side) for side in zip(*kept, strict=True))
    loss = ContrastiveLoss()(EncodedBatch(*vectors, LABELS)).loss
    loss.backward()
    theirs = {n: p.grad for n, p in retriever.named_parameters() if p.requires_grad}
    assert_equal(ours, {"loss": loss.detach(), **theirs}, 1e-6)
    torch.manual_seed(4)
    assert not torch.equal(gradients(retriever, 3)["loss"], ours["loss"])  # dropout is active


def test_vectors_match_with_more_passages_than_queries(make_retriever) -> None:
    retriever = make_retriever(**NO_DROPOUT).double().train()
    passages = batch([1] * 11, [0, 1] * 5 + [1], seed=2)
    for size in (1, 3):
        query, passage = encode_in_micro_batches(retriever, QUERIES, passages, size)
        whole = retriever(QUERIES, passages)
        torch.testing.assert_close(query, whole[0])
        torch.testing.assert_close(passage, whole[1])


def test_gate_activations_are_counted_once(make_retriever) -> None:
    retriever = make_retriever(**NO_DROPOUT).train()
    means, whole = (ActivationMeans(), ActivationMeans()), (ActivationMeans(), ActivationMeans())
    vectors = encode_in_micro_batches(retriever, QUERIES, PASSAGES, 2, *means)
    (vectors[0].sum() + vectors[1].sum()).backward()
    encode_in_micro_batches(retriever, QUERIES, PASSAGES, None, *whole)
    for ours, theirs in zip(means, whole, strict=True):
        assert ours.means().keys() == theirs.means().keys()
        for key, value in theirs.means().items():
            torch.testing.assert_close(ours.means()[key], value)


def saved_bytes(retriever: RetRetriever, rows: EncoderInput, size: int | None) -> int:
    """Return the bytes that the forward pass saves for the backward pass, excluding parameters."""
    parameters = {p.untyped_storage().data_ptr() for p in retriever.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        vectors = encode_in_micro_batches(retriever, rows, rows, size)
    del vectors
    return sum(kept.values())


def test_saved_memory_is_independent_of_batch_size(make_retriever) -> None:
    retriever = make_retriever(train_text=True, train_vision=True).train()
    small, large = batch([1] * 8, [1] * 8), batch([1] * 32, [1] * 32)
    inputs = sum(tensor.numel() * tensor.element_size() for tensor in (large.pixel_values, large.input_ids))
    assert saved_bytes(retriever, large, None) > 3 * saved_bytes(retriever, small, None)
    # With micro-batches, little more than the inputs and the vectors is saved.
    assert saved_bytes(retriever, large, 4) < 4 * inputs < saved_bytes(retriever, large, None) / 4


def test_part_of_a_batch_has_its_rows() -> None:
    part = QUERIES.slice(2, 6)
    assert torch.equal(part.input_ids, QUERIES.input_ids[2:6])
    assert part.text_mask.tolist() == QUERIES.text_mask[2:6].tolist()
    assert part.image_mask.tolist() == QUERIES.image_mask[2:6].tolist()
    assert torch.equal(
        part.pixel_values, QUERIES.pixel_values[1:3]
    )  # of rows 2 and 5, the second and third with an image
    assert len(QUERIES.slice(3, 3)) == 0
