"""Linear maps by oneDNN: those of float64 arithmetic, differentiable, the same every time, and only where they are chosen."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from ret_lightning.errors import ConfigError
from ret_lightning.ops import onednn_linear
from ret_lightning.ops.onednn_linear import (
    Linear,
    choose_backend,
    inner_products,
    linear,
    linear_backend,
    multiply_by_products,
)

here = pytest.mark.skipif(not onednn_linear._has_operator(), reason="needs the operator, which is private")
# Above what is worth it, some with few rows and some with more axes.
SHAPES = [((300, 130), 160), ((2, 2100), 1030), ((5, 60, 130), 160), ((2, 3, 50, 130), 160), ((130,), 160)]


def drawn(*shapes: tuple[int, ...]) -> list[Tensor]:
    random = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=random, requires_grad=True) for shape in shapes]


@pytest.fixture(autouse=True)
def _by_onednn() -> Iterator[None]:
    """oneDNN, also on a processor without AVX-512, where PyTorch has the operator."""
    with linear_backend("onednn" if onednn_linear._has_operator() else "torch"):
        yield


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes that oneDNN is asked to multiply."""
    seen: list[tuple[int, ...]] = []
    real = onednn_linear._multiply

    def multiply(left: Tensor, right: Tensor, bias: Tensor | None = None) -> Tensor:
        seen.append((*left.shape, len(right)))
        return real(left, right, bias)

    onednn_linear._has_operator()  # multiplies once by itself
    monkeypatch.setattr(onednn_linear, "_multiply", multiply)
    return seen


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize(("shape", "outputs"), SHAPES)
def test_values_and_gradients_are_those_of_float64(shape: tuple[int, ...], outputs: int, with_bias: bool) -> None:
    x, weight, bias = drawn(shape, (outputs, shape[-1]), (outputs,))
    inputs = (x, weight, bias) if with_bias else (x, weight)
    exact = [tensor.detach().double().requires_grad_() for tensor in inputs]
    result, wanted = linear(*inputs), nn.functional.linear(*exact)
    (weights,) = drawn(tuple(result.shape))
    found = torch.autograd.grad(result, inputs, weights)
    expected = torch.autograd.grad(wanted, exact, weights.double())
    for got, want in zip((result, *found), (wanted, *expected), strict=True):
        assert got.dtype == torch.float32
        assert got.shape == want.shape
        assert (got - want).abs().max() <= 2e-6 * want.abs().max()


@here
def test_only_what_is_asked_for_is_computed(calls: list[tuple[int, ...]]) -> None:
    x, weight = drawn((300, 130), (160, 130))
    linear(x, weight.detach()).sum().backward()
    assert calls == [(300, 130, 160), (300, 160, 130)]
    assert weight.grad is None
    calls.clear()
    linear(x.detach(), weight).sum().backward()
    assert calls == [(300, 130, 160), (160, 300, 130)]


@here
def test_strided_inputs_are_taken_as_they_are(calls: list[tuple[int, ...]]) -> None:
    x, weight = drawn((130, 300), (130, 320))
    left, right = x.T, weight.T[::2]
    result = linear(left, right)
    assert calls
    torch.testing.assert_close(result, (left.double() @ right.double().T).float(), atol=1e-4, rtol=1e-5)


@here
@pytest.mark.parametrize("threads", [1, 2])
def test_the_same_bits_every_time(threads: int, calls: list[tuple[int, ...]]) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        results = []
        for _ in range(3):
            x, weight, bias = drawn((700, 130), (160, 130), (160,))
            result = linear(x, weight, bias)
            result.square().sum().backward()
            results.append((result.detach(), x.grad, weight.grad, bias.grad))
    finally:
        torch.set_num_threads(before)
    assert calls
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@here
def test_the_rest_goes_pytorch_s_own_way(calls: list[tuple[int, ...]]) -> None:
    x, weight, bias = drawn((300, 130), (160, 130), (160,))

    def same(*inputs: Tensor) -> bool:
        return torch.equal(linear(*inputs), nn.functional.linear(*inputs))

    assert same(x, weight[:20])  # small
    assert same(x.double(), weight.double())
    assert same(x.bfloat16(), weight.bfloat16())
    assert linear(x.to("meta"), weight.to("meta")).shape == (300, 160)
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(x, weight).dtype == torch.bfloat16
    with torch.backends.mkldnn.flags(enabled=False):
        assert same(x, weight, bias)
    with linear_backend("torch"):
        assert same(x, weight, bias)
    assert calls == []
    assert inner_products(x[:20].detach(), weight.detach()) is None
    assert linear(x[:0], weight).shape == (0, 160)
    linear(x, weight, bias)
    assert calls == [(300, 130, 160)]


@here
def test_a_row_comes_out_the_same_in_any_batch() -> None:
    x, weight, bias = drawn((700, 130), (160, 130), (160,))
    whole = linear(x, weight, bias)
    assert all(torch.equal(linear(x[:rows], weight, bias), whole[:rows]) for rows in (16, 100, 333, 640))


@here
def test_inner_products() -> None:
    left, right = drawn((300, 130), (160, 130))
    found = inner_products(left.detach(), right.detach())
    torch.testing.assert_close(found, (left.double() @ right.double().T).float(), atol=1e-4, rtol=1e-5)


def test_a_module_of_another_library_multiplies_so(calls: list[tuple[int, ...]]) -> None:
    torch.manual_seed(0)
    other = nn.Sequential(nn.Linear(130, 160), nn.GELU(), nn.Sequential(nn.Linear(160, 130, bias=False)))
    ours = copy.deepcopy(other)
    multiply_by_products(ours)
    assert [type(part) for part in ours.modules() if isinstance(part, nn.Linear)] == [Linear, Linear]
    assert list(ours.state_dict()) == list(other.state_dict())
    (x,) = drawn((300, 130))
    torch.testing.assert_close(ours(x), other(x), atol=1e-5, rtol=1e-5)
    assert len(calls) == (2 if onednn_linear._has_operator() else 0)


@here
def test_transforms_of_functions_go_pytorch_s_own_way(calls: list[tuple[int, ...]]) -> None:
    x, weight = drawn((2, 300, 130), (160, 130))
    mapped = torch.func.vmap(linear, in_dims=(0, None))(x, weight)
    torch.testing.assert_close(mapped, nn.functional.linear(x, weight), atol=1e-4, rtol=1e-5)
    value, derivative = torch.func.jvp(lambda v: linear(v, weight), (x[0],), (x[1],))
    torch.testing.assert_close((value, derivative), (mapped[0], mapped[1]), atol=1e-4, rtol=1e-5)
    assert calls == []


@here
def test_what_does_not_fit_is_told_by_pytorch() -> None:
    x, weight = drawn((300, 130), (160, 140))
    with pytest.raises(RuntimeError, match=r"300x130 and 140x160"):
        linear(x, weight)


@here
def test_overlapping_inputs(calls: list[tuple[int, ...]]) -> None:
    (line, weight) = drawn((430,), (160, 130))
    windows = line.unfold(0, 130, 1)  # (301, 130), neighbours share all but one number
    result = linear(windows, weight)
    assert calls
    (gradient,) = torch.autograd.grad(result.sum(), weight)
    torch.testing.assert_close(result, windows.detach().contiguous() @ weight.T, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(gradient, windows.sum(0).expand(160, -1), atol=1e-3, rtol=1e-4)


def test_sizes_that_change_are_compiled_once_for_all() -> None:
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(linear, backend=backend, dynamic=True)
    weight = torch.ones(160, 130)
    for rows in (20, 300, 3000):
        assert compiled(torch.ones(rows, 130), weight).shape == (rows, 160)
    assert len(graphs) == 1


def test_compiled_code_holds_no_call_of_ours(calls: list[tuple[int, ...]]) -> None:
    x, weight, bias = drawn((300, 130), (160, 130), (160,))
    compiled = torch.compile(linear, backend="eager", fullgraph=True)
    assert torch.equal(compiled(x, weight, bias), nn.functional.linear(x, weight, bias))
    assert calls == []


@pytest.fixture
def fresh() -> Iterator[None]:
    """The rule is applied anew in the test, and after it."""
    for cached in (onednn_linear._automatic, onednn_linear._has_operator):
        cached.cache_clear()
    yield
    for cached in (onednn_linear._automatic, onednn_linear._has_operator):
        cached.cache_clear()


class NoOperator:
    """`torch.ops.mkldnn` of a release that dropped the operator."""


def refusing(*_: object) -> Tensor:
    raise RuntimeError("another signature")


def wrong(left: Tensor, right: Tensor, bias: Tensor, *_: object) -> Tensor:
    return left @ right.T


def operator(function: Callable[..., Tensor]) -> object:
    return type("Operators", (), {"_linear_pointwise": staticmethod(function)})


@pytest.mark.parametrize("operators", [NoOperator, operator(refusing), operator(wrong)])
def test_release_without_the_operator_computes_by_torch(
    operators: object, fresh: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.ops, "mkldnn", operators)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    x, weight, bias = drawn((300, 130), (160, 130), (160,))
    expected = nn.functional.linear(x, weight, bias)
    with linear_backend() as chosen:
        assert chosen == "torch"
        result = linear(x, weight, bias)
        assert torch.equal(result, expected)
        gradients = torch.autograd.grad(result.square().sum(), (x, weight, bias))
        assert inner_products(x.detach(), weight.detach()) is None
    for found, wanted in zip(gradients, torch.autograd.grad(expected.square().sum(), (x, weight, bias)), strict=True):
        assert torch.equal(found, wanted)
    with pytest.raises(ConfigError) as refused, linear_backend("onednn"):
        pass
    assert refused.value.code == "linear-backend-unavailable"


@pytest.mark.parametrize(
    ("processor", "version", "chosen"),
    [
        ("AVX512", "2.8.0", "onednn"), ("AVX512_BF16", "3.1.0+cu132", "onednn"), ("AVX2", "2.15.0", "torch"),
        ("AVX512", "2.7.1", "torch"),
    ],
)  # fmt: skip
def test_rule(processor: str, version: str, chosen: str, fresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: processor)
    monkeypatch.setattr(torch, "__version__", version)
    monkeypatch.setattr(onednn_linear, "_has_operator", lambda: True)
    assert choose_backend() == choose_backend("auto") == chosen
    assert choose_backend("torch") == "torch"
    assert choose_backend("onednn") == "onednn"


def test_choice_ends_with_its_block() -> None:
    before = onednn_linear._chosen
    with linear_backend("torch"), linear_backend("auto"):
        assert onednn_linear._chosen == choose_backend()
    assert onednn_linear._chosen == before
