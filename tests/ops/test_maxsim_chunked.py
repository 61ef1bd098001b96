"""Chunked MaxSim: block sizes, many vectors per passage, half precision, determinism and memory."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ret_lightning.losses import maxsim
from ret_lightning.ops.maxsim_chunked import BLOCK_ELEMENTS, block_shape
from tests.support.maxsim_loops import by_loops, tensors


def test_result_is_independent_of_block_size(monkeypatch: pytest.MonkeyPatch) -> None:
    query, passage = (x.requires_grad_() for x in tensors(7, 3, 11, 5))
    weight = torch.randn(7, 11, dtype=torch.float64)
    expected = maxsim(query, passage, backend="plain")
    expected_gradients = torch.autograd.grad(expected, (query, passage), weight)
    for elements in (1, 40, 100, 1000):
        for block in ("BLOCK_ELEMENTS", "BACKWARD_ELEMENTS"):
            monkeypatch.setattr(f"ret_lightning.ops.maxsim_chunked.{block}", elements)
        got = maxsim(query, passage, backend="chunked")
        torch.testing.assert_close(got, expected)
        for ours, theirs in zip(torch.autograd.grad(got, (query, passage), weight), expected_gradients, strict=True):
            torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("count", [255, 256, 300])
def test_passages_of_more_than_256_vectors(count: int) -> None:
    query, passage = (x.requires_grad_() for x in tensors(3, 4, 5, count))
    weight = torch.randn(3, 5, dtype=torch.float64)
    expected = torch.autograd.grad(maxsim(query, passage, backend="plain"), (query, passage), weight)
    ours = torch.autograd.grad(maxsim(query, passage, backend="chunked"), (query, passage), weight)
    for one, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_results_are_deterministic() -> None:
    query, passage = (x.float().requires_grad_() for x in tensors(40, 8, 30, 8))
    runs = [
        (maxsim(query, passage), *torch.autograd.grad(maxsim(query, passage).sum(), (query, passage))) for _ in range(2)
    ]
    assert all(torch.equal(one, other) for one, other in zip(*runs, strict=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_sums_in_float32(dtype: torch.dtype) -> None:
    query, passage = (torch.nn.functional.normalize(x, dim=-1).to(dtype) for x in tensors(4, 32, 4, 32, 16))
    scores = maxsim(query, passage, backend="chunked")
    assert scores.dtype == torch.float32
    # Products of half-precision numbers are exact in float32, so this fails if anything is rounded to half precision.
    torch.testing.assert_close(scores.double(), by_loops(query, passage), rtol=0, atol=1e-5)


def test_no_tensor_holds_all_similarities() -> None:
    """The largest tensor of the forward and backward pass has far fewer than Nq x Np x Lq x Lp elements."""
    from torch.utils._python_dispatch import TorchDispatchMode

    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            out = function(*args, **(kwargs or {}))
            if isinstance(out, Tensor) and out.layout == torch.strided:
                largest = max(largest, out.numel())
            return out

    query, passage = (torch.randn(192, 32, 16, requires_grad=True) for _ in range(2))
    with Watch():
        maxsim(query, passage).sum().backward()
    assert 0 < largest <= 1 << 23 < 192 * 192 * 32 * 32 / 4


@pytest.mark.parametrize(
    "shape", [(1, 1, 1, 1), (512, 32, 512, 32), (3, 32, 100_000, 32), (9, 7, 2, 300), (5, 2000, 4, 900)]
)
def test_block_shape_uses_the_element_limit(shape: tuple[int, int, int, int]) -> None:
    n_query, len_query, n_passage, len_passage = shape
    rows, columns = block_shape(*shape)
    assert 1 <= rows <= n_query
    assert 1 <= columns <= n_passage
    held = rows * columns * len_query * len_passage
    pair = len_query * len_passage
    assert held <= max(BLOCK_ELEMENTS, pair)
    if (rows, columns) != (n_query, n_passage):
        assert 2 * max(held, pair) > BLOCK_ELEMENTS
