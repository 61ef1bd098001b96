"""Linear layers on oneDNN: accuracy, gradients, determinism, and the choice of the backend."""

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
    linear,
    linear_backend,
    matmul_transposed,
    use_onednn_matmul,
)

needs_operator = pytest.mark.skipif(not onednn_linear._has_operator(), reason="needs PyTorch's private oneDNN operator")
# Above the minimum sizes; some have few rows, some more than two axes.
SHAPES = [((300, 130), 160), ((2, 2100), 1030), ((5, 60, 130), 160), ((2, 3, 50, 130), 160), ((130,), 160)]


def random_tensors(*shapes: tuple[int, ...]) -> list[Tensor]:
    random = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=random, requires_grad=True) for shape in shapes]


@pytest.fixture(autouse=True)
def _by_onednn() -> Iterator[None]:
    """Use oneDNN if PyTorch has the operator, even on a processor without AVX-512."""
    with linear_backend("onednn" if onednn_linear._has_operator() else "torch"):
        yield


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Return the list that collects the shapes of all oneDNN multiplications."""
    seen: list[tuple[int, ...]] = []
    real = onednn_linear._onednn_matmul

    def multiply(left: Tensor, right: Tensor, bias: Tensor | None = None) -> Tensor:
        seen.append((*left.shape, len(right)))
        return real(left, right, bias)

    onednn_linear._has_operator()  # cached; its own multiplication is not recorded
    monkeypatch.setattr(onednn_linear, "_onednn_matmul", multiply)
    return seen


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize(("shape", "outputs"), SHAPES)
def test_values_and_gradients_match_float64(shape: tuple[int, ...], outputs: int, with_bias: bool) -> None:
    x, weight, bias = random_tensors(shape, (outputs, shape[-1]), (outputs,))
    inputs = (x, weight, bias) if with_bias else (x, weight)
    exact = [tensor.detach().double().requires_grad_() for tensor in inputs]
    result, exact_result = linear(*inputs), nn.functional.linear(*exact)
    (weights,) = random_tensors(tuple(result.shape))
    found = torch.autograd.grad(result, inputs, weights)
    expected = torch.autograd.grad(exact_result, exact, weights.double())
    for got, want in zip((result, *found), (exact_result, *expected), strict=True):
        assert got.dtype == torch.float32
        assert got.shape == want.shape
        assert (got - want).abs().max() <= 2e-6 * want.abs().max()


@needs_operator
def test_only_required_gradients_are_computed(calls: list[tuple[int, ...]]) -> None:
    x, weight = random_tensors((300, 130), (160, 130))
    linear(x, weight.detach()).sum().backward()
    assert calls == [(300, 130, 160), (300, 160, 130)]
    assert weight.grad is None
    calls.clear()
    linear(x.detach(), weight).sum().backward()
    assert calls == [(300, 130, 160), (160, 300, 130)]


@needs_operator
def test_strided_inputs_are_supported(calls: list[tuple[int, ...]]) -> None:
    x, weight = random_tensors((130, 300), (130, 320))
    left, right = x.T, weight.T[::2]
    result = linear(left, right)
    assert calls
    torch.testing.assert_close(result, (left.double() @ right.double().T).float(), atol=1e-4, rtol=1e-5)


@needs_operator
@pytest.mark.parametrize("threads", [1, 2])
def test_results_are_deterministic(threads: int, calls: list[tuple[int, ...]]) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        results = []
        for _ in range(3):
            x, weight, bias = random_tensors((700, 130), (160, 130), (160,))
            result = linear(x, weight, bias)
            result.square().sum().backward()
            results.append((result.detach(), x.grad, weight.grad, bias.grad))
    finally:
        torch.set_num_threads(before)
    assert calls
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@needs_operator
def test_unsupported_inputs_use_pytorch(calls: list[tuple[int, ...]]) -> None:
    x, weight, bias = random_tensors((300, 130), (160, 130), (160,))

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
    assert matmul_transposed(x[:20].detach(), weight.detach()) is None
    assert linear(x[:0], weight).shape == (0, 160)
    linear(x, weight, bias)
    assert calls == [(300, 130, 160)]


@needs_operator
def test_row_result_is_independent_of_batch() -> None:
    x, weight, bias = random_tensors((700, 130), (160, 130), (160,))
    whole = linear(x, weight, bias)
    assert all(torch.equal(linear(x[:rows], weight, bias), whole[:rows]) for rows in (16, 100, 333, 640))


@needs_operator
def test_matmul_transposed_matches_float64() -> None:
    left, right = random_tensors((300, 130), (160, 130))
    found = matmul_transposed(left.detach(), right.detach())
    torch.testing.assert_close(found, (left.double() @ right.double().T).float(), atol=1e-4, rtol=1e-5)


def test_linear_layers_of_a_module_are_replaced(calls: list[tuple[int, ...]]) -> None:
    torch.manual_seed(0)
    other = nn.Sequential(nn.Linear(130, 160), nn.GELU(), nn.Sequential(nn.Linear(160, 130, bias=False)))
    ours = copy.deepcopy(other)
    use_onednn_matmul(ours)
    assert [type(part) for part in ours.modules() if isinstance(part, nn.Linear)] == [Linear, Linear]
    assert list(ours.state_dict()) == list(other.state_dict())
    (x,) = random_tensors((300, 130))
    torch.testing.assert_close(ours(x), other(x), atol=1e-5, rtol=1e-5)
    assert len(calls) == (2 if onednn_linear._has_operator() else 0)


@needs_operator
def test_function_transforms_use_pytorch(calls: list[tuple[int, ...]]) -> None:
    x, weight = random_tensors((2, 300, 130), (160, 130))
    mapped = torch.func.vmap(linear, in_dims=(0, None))(x, weight)
    torch.testing.assert_close(mapped, nn.functional.linear(x, weight), atol=1e-4, rtol=1e-5)
    value, derivative = torch.func.jvp(lambda v: linear(v, weight), (x[0],), (x[1],))
    torch.testing.assert_close((value, derivative), (mapped[0], mapped[1]), atol=1e-4, rtol=1e-5)
    assert calls == []


@needs_operator
def test_shape_errors_are_those_of_pytorch() -> None:
    x, weight = random_tensors((300, 130), (160, 140))
    with pytest.raises(RuntimeError, match=r"300x130 and 140x160"):
        linear(x, weight)


@needs_operator
def test_overlapping_inputs_are_supported(calls: list[tuple[int, ...]]) -> None:
    (line, weight) = random_tensors((430,), (160, 130))
    windows = line.unfold(0, 130, 1)  # (301, 130), adjacent rows overlap in 129 numbers
    result = linear(windows, weight)
    assert calls
    (gradient,) = torch.autograd.grad(result.sum(), weight)
    torch.testing.assert_close(result, windows.detach().contiguous() @ weight.T, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(gradient, windows.sum(0).expand(160, -1), atol=1e-3, rtol=1e-4)


def test_dynamic_sizes_are_compiled_once() -> None:
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(linear, backend=backend, dynamic=True)
    weight = torch.ones(160, 130)
    for rows in (20, 300, 3000):
        assert compiled(torch.ones(rows, 130), weight).shape == (rows, 160)
    assert len(graphs) == 1


def test_compiled_code_does_not_call_onednn(calls: list[tuple[int, ...]]) -> None:
    x, weight, bias = random_tensors((300, 130), (160, 130), (160,))
    compiled = torch.compile(linear, backend="eager", fullgraph=True)
    assert torch.equal(compiled(x, weight, bias), nn.functional.linear(x, weight, bias))
    assert calls == []


@pytest.fixture
def fresh() -> Iterator[None]:
    """Clear the cached choice of the backend before and after the test."""
    for cached in (onednn_linear._automatic, onednn_linear._has_operator):
        cached.cache_clear()
    yield
    for cached in (onednn_linear._automatic, onednn_linear._has_operator):
        cached.cache_clear()


class NoOperator:
    """`torch.ops.mkldnn` of a PyTorch release without the operator."""


def refusing(*_: object) -> Tensor:
    raise RuntimeError("another signature")


def wrong(left: Tensor, right: Tensor, bias: Tensor, *_: object) -> Tensor:
    return left @ right.T


def operator(function: Callable[..., Tensor]) -> object:
    return type("Operators", (), {"_linear_pointwise": staticmethod(function)})


@pytest.mark.parametrize("operators", [NoOperator, operator(refusing), operator(wrong)])
def test_missing_operator_falls_back_to_torch(operators: object, fresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.ops, "mkldnn", operators)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    x, weight, bias = random_tensors((300, 130), (160, 130), (160,))
    expected = nn.functional.linear(x, weight, bias)
    with linear_backend() as chosen:
        assert chosen == "torch"
        result = linear(x, weight, bias)
        assert torch.equal(result, expected)
        gradients = torch.autograd.grad(result.square().sum(), (x, weight, bias))
        assert matmul_transposed(x.detach(), weight.detach()) is None
    expected_gradients = torch.autograd.grad(expected.square().sum(), (x, weight, bias))
    for found, exact in zip(gradients, expected_gradients, strict=True):
        assert torch.equal(found, exact)
    with pytest.raises(ConfigError) as error, linear_backend("onednn"):
        pass
    assert error.value.code == "linear-backend-unavailable"


@pytest.mark.parametrize(
    ("processor", "version", "chosen"),
    [
        ("AVX512", "2.8.0", "onednn"), ("AVX512_BF16", "3.1.0+cu132", "onednn"), ("AVX2", "2.15.0", "torch"),
        ("AVX512", "2.7.1", "torch"),
    ],
)  # fmt: skip
def test_choice_of_backend(
    processor: str, version: str, chosen: str, fresh: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: processor)
    monkeypatch.setattr(torch, "__version__", version)
    monkeypatch.setattr(onednn_linear, "_has_operator", lambda: True)
    assert choose_backend() == choose_backend("auto") == chosen
    assert choose_backend("torch") == "torch"
    assert choose_backend("onednn") == "onednn"


def test_backend_is_restored_after_block() -> None:
    before = onednn_linear._chosen
    with linear_backend("torch"), linear_backend("auto"):
        assert onednn_linear._chosen == choose_backend()
    assert onednn_linear._chosen == before
