"""MaxSim against plain loops, and the backends against each other."""

from __future__ import annotations

import pytest
import torch

from ret_lightning.losses import maxsim
from tests.support.maxsim_loops import by_loops, tensors

BACKENDS = ["plain", "chunked"]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("shape", [(5, 3, 4, 6), (1, 1, 1, 1), (2, 7, 9, 1)])
def test_scores(backend: str, masked: bool, shape: tuple[int, ...]) -> None:
    query, passage = tensors(*shape)
    masks = (None, None)
    if masked:
        masks = torch.rand(query.shape[:2]) < 0.6, torch.rand(passage.shape[:2]) < 0.6
        masks[0][:, -1] = masks[1][:, 0] = True
    torch.testing.assert_close(maxsim(query, passage, *masks, backend=backend), by_loops(query, passage, *masks))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_masked_vector_never_wins_even_when_all_scores_are_negative(backend: str) -> None:
    query = torch.ones(1, 2, 4)
    passage = torch.tensor([[[-1.0] * 4, [5.0] * 4, [-3.0] * 4]])
    mask = torch.tensor([[True, False, True]])
    assert maxsim(query, passage, passage_mask=mask, backend=backend).item() == 2 * -4.0


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("masked", [False, True])
def test_gradients(backend: str, masked: bool) -> None:
    query, passage = (x.requires_grad_() for x in tensors())
    masks = (None, None)
    if masked:
        masks = torch.rand(5, 3) < 0.7, torch.rand(4, 6) < 0.7
        masks[0][:, 0] = masks[1][:, -1] = True
    assert torch.autograd.gradcheck(lambda q, p: maxsim(q, p, *masks, backend=backend), (query, passage))


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_first_of_equal_vectors_gets_the_gradient(backend: str) -> None:
    query = torch.ones(1, 1, 2, requires_grad=True)
    passage = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]]], requires_grad=True)
    maxsim(query, passage, backend=backend).sum().backward()
    assert passage.grad.tolist() == [[[1.0, 1.0], [0.0, 0.0], [0.0, 0.0]]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_backends_agree_on_ties(dtype: torch.dtype) -> None:
    """Vectors of small whole numbers tie all the time, and exactly."""
    query, passage = (torch.randint(-1, 2, (6, 5, 4)).to(dtype).requires_grad_() for _ in range(2))
    weight = torch.randint(-3, 4, (6, 6)).float()
    plain, chunked = (
        torch.autograd.grad(maxsim(query, passage, backend=backend), (query, passage), weight) for backend in BACKENDS
    )
    assert all(torch.equal(one, other) for one, other in zip(plain, chunked, strict=True))
    assert plain[0].dtype == dtype


def test_only_one_side_may_want_a_gradient() -> None:
    for wanted in (0, 1):
        inputs = list(tensors())
        inputs[wanted].requires_grad_()
        maxsim(*inputs).sum().backward()
        expected = torch.autograd.grad(maxsim(*inputs, backend="plain").sum(), inputs[wanted])[0]
        torch.testing.assert_close(inputs[wanted].grad, expected)
        assert inputs[1 - wanted].grad is None


def test_views_that_are_not_contiguous() -> None:
    query, passage = (
        torch.randn(3, 5, 8, dtype=torch.float64).transpose(0, 1),
        torch.randn(4, 8, 6, dtype=torch.float64).mT,
    )
    torch.testing.assert_close(maxsim(query, passage), by_loops(query, passage))
    weight = torch.ones(1, dtype=torch.float64).expand(5, 4)  # a gradient that is not dense
    query.requires_grad_()
    ours = torch.autograd.grad(maxsim(query, passage), query, weight)[0]
    torch.testing.assert_close(ours, torch.autograd.grad(maxsim(query, passage, backend="plain"), query, weight)[0])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(0, 3, 4, 6), (4, 3, 0, 6), (0, 1, 0, 1)])
def test_no_rows_at_all(backend: str, shape: tuple[int, ...]) -> None:
    query, passage = (x.requires_grad_() for x in tensors(*shape))
    scores = maxsim(query, passage, backend=backend)
    assert scores.shape == (shape[0], shape[2])
    for gradient, side in zip(torch.autograd.grad(scores.sum(), (query, passage)), (query, passage), strict=True):
        assert torch.equal(gradient, torch.zeros_like(side))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda q, p: maxsim(q[0], p), r"query must be \(N, L, d\), got shape \(3, 8\)"),
        (lambda q, p: maxsim(q, p[..., :5]), "query width 8 and passage width 5 differ"),
        (lambda q, p: maxsim(q, p.float()), "query is torch.float64 and passage is torch.float32"),
        (lambda q, p: maxsim(q.long(), p), "query must be floating point"),
        (lambda q, p: maxsim(q[:, :0], p), "query has no vectors"),
        (lambda q, p: maxsim(q, p, q[..., 0] > 0, (p[..., 0] > 0)[:2]), r"passage_mask must be bool of shape \(4, 6\)"),
        (lambda q, p: maxsim(q, p, passage_mask=torch.zeros(4, 6).bool()), "passage 0 has no vector that counts"),
        (
            lambda q, p: maxsim(q, p, (q[..., 0] < 9) & (torch.arange(5) != 3)[:, None]),
            "query 3 has no vector that counts",
        ),
        (
            lambda q, p: maxsim(q, p, backend="fast"),
            "unknown MaxSim backend 'fast': choose auto, plain, chunked or fused",
        ),
        (lambda q, p: maxsim(q, p, backend="fused"), "backend fused needs tensors on a GPU; choose auto or chunked"),
    ],
)
def test_what_does_not_fit_is_said(change, message) -> None:
    with pytest.raises(ValueError, match=message):
        change(*tensors())
