"""The fused GPU kernels: supported inputs, and their results in Triton's interpreter on a CPU."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace

import pytest
import torch

from ret_lightning.losses import maxsim
from ret_lightning.ops import maxsim_fused
from ret_lightning.ops.maxsim_fused import fused_refusal

# Autotuning, which the library runs before the first launch of a kernel, needs a GPU and is disabled here.
INTERPRETED = """
import torch
from triton.runtime.autotuner import Autotuner
Autotuner._bench = lambda self, *args, config, **kwargs: [0.0]
Autotuner.check_disk_cache = lambda self, key, configs, benchmark: bool(benchmark())
from late_interaction_kernels import maxsim as library
from ret_lightning.losses import maxsim
torch.manual_seed(0)
for n_query, len_query, n_passage, len_passage, width in ((3, 5, 4, 6, 16), (2, 32, 3, 32, 128), (1, 1, 2, 40, 24)):
    # Not bfloat16: Triton's interpreter uses NumPy, which does not support it, and returns wrong values.
    query = torch.randn(n_query, len_query, width).half()
    passage = -torch.rand(n_passage, len_passage, width).half()
    masks = torch.rand(query.shape[:2]) < 0.7, torch.rand(passage.shape[:2]) < 0.7
    masks[0][:, 0] = masks[1][:, -1] = True
    for chosen in ((None, None), masks):
        theirs = library(query, passage, *chosen, normalize=False, backward="lowmem")
        torch.testing.assert_close(theirs, maxsim(query, passage, *chosen, backend="plain"), rtol=1e-4, atol=1e-3)
print("equal")
"""


def vectors(
    is_cuda: bool = True, dtype: torch.dtype = torch.bfloat16, width: int = 128, rows: int = 4
) -> SimpleNamespace:
    return SimpleNamespace(is_cuda=is_cuda, dtype=dtype, shape=(rows, 32, width), device=torch.device("cpu"))


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """Install kernels that compute the scores on a CPU."""
    module = ModuleType("late_interaction_kernels")
    module.calls = []

    def score(query, passage, query_mask, passage_mask, *, normalize, backward):
        module.calls.append((len(query), query.dtype))
        return maxsim(query, passage, query_mask, passage_mask, backend="plain")

    module.maxsim = score
    monkeypatch.setitem(sys.modules, "late_interaction_kernels", module)
    maxsim_fused._is_installed.cache_clear()
    maxsim_fused._kernel_error.cache_clear()
    yield module
    maxsim_fused._is_installed.cache_clear()
    maxsim_fused._kernel_error.cache_clear()


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        (vectors(), None),
        (vectors(width=1024), None),
        (vectors(is_cuda=False), "needs tensors on a GPU"),
        (vectors(dtype=torch.float32), "needs bfloat16 or float16 vectors, got torch.float32"),
        (vectors(width=1025), "supports vectors of width 1024 or less, got 1025"),
    ],
)
def test_unsupported_inputs_are_refused(query: SimpleNamespace, reason: str | None, kernels: ModuleType) -> None:
    assert fused_refusal(query, query) == reason
    assert len(kernels.calls) == (reason is None)


@pytest.mark.parametrize(
    ("queries", "passages", "width", "elements"),
    [
        (8192, 8191, 128, None),
        (8192, 8192, 128, 2**31),  # argmax indices
        (4, 2**19, 128, 2**31),  # passages
        (2**21, 4, 32, 2**31),  # queries
        (2**31 // 32 // 128 - 1, 4, 128, None),
    ],
)
def test_sizes_beyond_32_bits_are_refused(
    queries: int, passages: int, width: int, elements: int | None, kernels: ModuleType
) -> None:
    reason = fused_refusal(vectors(rows=queries, width=width), vectors(rows=passages, width=width))
    if elements is None:
        assert reason is None
    else:
        assert f"got {elements} for {queries} x {passages} pairs" in reason


def test_kernels_are_tried_once(kernels: ModuleType) -> None:
    for _ in range(3):
        assert fused_refusal(vectors(), vectors()) is None
    assert fused_refusal(vectors(dtype=torch.float16), vectors(dtype=torch.float16)) is None
    assert kernels.calls == [(2, torch.bfloat16), (2, torch.float16)]


@pytest.mark.parametrize("fault", ["forward", "backward", "values"])
def test_unusable_kernels_are_replaced_with_one_warning(
    fault: str, kernels: ModuleType, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    calls = []

    class Broken(torch.autograd.Function):
        @staticmethod
        def forward(ctx, query, passage):
            return maxsim(query, passage, backend="plain")

        @staticmethod
        def backward(ctx, gradient):
            raise RuntimeError("Failed to find C compiler.\nPlease specify it")

    def score(query, passage, *_: object, **__: object):
        calls.append(len(query))
        if fault == "forward":
            raise RuntimeError("Failed to find C compiler.\nPlease specify it")
        return Broken.apply(query, passage) if fault == "backward" else query.sum() + passage.sum() * torch.zeros(2, 2)

    kernels.maxsim = score
    on_gpu = lambda query, passage: fused_refusal(vectors(), vectors())  # noqa: E731
    monkeypatch.setattr(maxsim_fused, "fused_refusal", on_gpu)
    maxsim_fused._warn.cache_clear()
    query, passage = torch.randn(3, 4, 8), torch.randn(5, 6, 8)
    for _ in range(2):
        torch.testing.assert_close(maxsim(query, passage), maxsim(query, passage, backend="chunked"))
    assert calls == [2]
    (record,) = [each for each in caplog.records if "fused-kernels-unusable" in each.getMessage()]
    reason = "wrong scores" if fault == "values" else "RuntimeError: Failed to find C compiler."
    assert reason in record.getMessage()
    with pytest.raises(ValueError, match=r"backend fused cannot run its kernels on .*: .*; use auto or chunked"):
        maxsim_fused.fused_maxsim(query, passage, None, None)


def test_missing_package_is_reported_with_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maxsim_fused, "_is_installed", lambda: False)
    assert (
        fused_refusal(vectors(), vectors())
        == "needs the package late-interaction-kernels: pip install 'ret_lightning[kernels]'"
    )


def test_auto_selects_fused_if_supported(monkeypatch: pytest.MonkeyPatch) -> None:
    called = []
    from ret_lightning.losses import maxsim as function

    module = sys.modules[function.__module__]
    monkeypatch.setattr(maxsim_fused, "fused_refusal", lambda query, passage: None)
    monkeypatch.setattr(module, "fused_maxsim", lambda *inputs: called.append(inputs) or "scores")
    query, passage = torch.randn(2, 3, 4), torch.randn(5, 6, 4)
    mask = torch.ones(5, 6, dtype=torch.bool)
    assert maxsim(query, passage, None, mask) == "scores"
    assert called == [(query, passage, None, mask)]


@pytest.mark.slow
def test_fused_scores_match_plain_scores() -> None:
    pytest.importorskip("late_interaction_kernels")  # Linux only
    import os

    done = subprocess.run(
        [sys.executable, "-c", INTERPRETED],
        capture_output=True,
        text=True,
        env={**os.environ, "TRITON_INTERPRET": "1", "LIK_SUPPRESS_NORM_WARN": "1"},
    )
    assert done.stdout.strip() == "equal", done.stderr[-2000:]


def test_kernels_are_tried_with_gradients_in_inference_mode(kernels: ModuleType) -> None:
    with torch.inference_mode():
        assert fused_refusal(vectors(), vectors()) is None
