"""MaxSim compared with plain loops, and its backends with each other."""

from __future__ import annotations

import pytest
import torch

from ret_lightning.losses import maxsim
from tests.support.maxsim_loops import by_loops, tensors

BACKENDS = ["plain", "chunked"]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("shape", [(5, 3, 4, 6), (1, 1, 1, 1), (2, 7, 9, 1)])
def test_scores_match_plain_loops(backend: str, masked: bool, shape: tuple[int, ...]) -> None:
    query, passage = tensors(*shape)
    masks = (None, None)
    if masked:
        masks = torch.rand(query.shape[:2]) < 0.6, torch.rand(passage.shape[:2]) < 0.6
        masks[0][:, -1] = masks[1][:, 0] = True
    torch.testing.assert_close(maxsim(query, passage, *masks, backend=backend), by_loops(query, passage, *masks))


@pytest.mark.parametrize("backend", BACKENDS)
def test_masked_vector_is_never_the_maximum(backend: str) -> None:
    query = torch.ones(1, 2, 4)
    passage = torch.tensor([[[-1.0] * 4, [5.0] * 4, [-3.0] * 4]])
    mask = torch.tensor([[True, False, True]])
    assert maxsim(query, passage, passage_mask=mask, backend=backend).item() == 2 * -4.0


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("masked", [False, True])
def test_gradients_pass_gradcheck(backend: str, masked: bool) -> None:
    query, passage = (x.requires_grad_() for x in tensors())
    masks = (None, None)
    if masked:
        masks = torch.rand(5, 3) < 0.7, torch.rand(4, 6) < 0.7
        masks[0][:, 0] = masks[1][:, -1] = True
    assert torch.autograd.gradcheck(lambda q, p: maxsim(q, p, *masks, backend=backend), (query, passage))


@pytest.mark.parametrize("backend", BACKENDS)
def test_first_of_equal_maxima_gets_gradient(backend: str) -> None:
    query = torch.ones(1, 1, 2, requires_grad=True)
    passage = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]]], requires_grad=True)
    maxsim(query, passage, backend=backend).sum().backward()
    assert passage.grad.tolist() == [[[1.0, 1.0], [0.0, 0.0], [0.0, 0.0]]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_backends_agree_on_ties(dtype: torch.dtype) -> None:
    """Vectors of small integers have many exact ties."""
    query, passage = (torch.randint(-1, 2, (6, 5, 4)).to(dtype).requires_grad_() for _ in range(2))
    weight = torch.randint(-3, 4, (6, 6)).float()
    plain, chunked = (
        torch.autograd.grad(maxsim(query, passage, backend=backend), (query, passage), weight) for backend in BACKENDS
    )
    assert all(torch.equal(one, other) for one, other in zip(plain, chunked, strict=True))
    assert plain[0].dtype == dtype


def test_gradient_of_one_side_only() -> None:
    for side in (0, 1):
        inputs = list(tensors())
        inputs[side].requires_grad_()
        maxsim(*inputs).sum().backward()
        expected = torch.autograd.grad(maxsim(*inputs, backend="plain").sum(), inputs[side])[0]
        torch.testing.assert_close(inputs[side].grad, expected)
        assert inputs[1 - side].grad is None


def test_non_contiguous_inputs() -> None:
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
def test_empty_inputs(backend: str, shape: tuple[int, ...]) -> None:
    query, passage = (x.requires_grad_() for x in tensors(*shape))
    scores = maxsim(query, passage, backend=backend)
    assert scores.shape == (shape[0], shape[2])
    for gradient, side in zip(torch.autograd.grad(scores.sum(), (query, passage)), (query, passage), strict=True):
        assert torch.equal(gradient, torch.zeros_like(side))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda q, p: maxsim(q[0], p), r"query of shape \(N, L, d\), got \(3, 8\)"),
        (lambda q, p: maxsim(q, p[..., :5]), "query width 8 and passage width 5 differ"),
        (lambda q, p: maxsim(q, p.float()), "query dtype torch.float64 and passage dtype torch.float32 differ"),
        (lambda q, p: maxsim(q.long(), p), "expected a floating-point query, got torch.int64"),
        (lambda q, p: maxsim(q[:, :0], p), r"at least one vector per query, got shape \(5, 0, 8\)"),
        (lambda q, p: maxsim(q, p, q[..., 0] > 0, (p[..., 0] > 0)[:2]), r"bool passage_mask of shape \(4, 6\), got"),
        (lambda q, p: maxsim(q, p, passage_mask=torch.zeros(4, 6).bool()), "all vectors of passage 0 are masked"),
        (
            lambda q, p: maxsim(q, p, (q[..., 0] < 9) & (torch.arange(5) != 3)[:, None]),
            "all vectors of query 3 are masked",
        ),
        (
            lambda q, p: maxsim(q, p, backend="fast"),
            "unknown backend 'fast'; expected auto, plain, chunked or fused",
        ),
        (lambda q, p: maxsim(q, p, backend="fused"), "backend fused needs tensors on a GPU; use auto or chunked"),
    ],
)
def test_inconsistent_inputs_are_refused(change, message) -> None:
    with pytest.raises(ValueError, match=message):
        change(*tensors())
