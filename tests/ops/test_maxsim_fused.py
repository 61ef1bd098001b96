"""The fused GPU kernels: supported inputs, and their results in Triton's interpreter on a CPU."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

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


def vectors(is_cuda: bool = True, dtype: torch.dtype = torch.bfloat16, width: int = 128) -> SimpleNamespace:
    return SimpleNamespace(is_cuda=is_cuda, dtype=dtype, shape=(4, 32, width))


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
def test_unsupported_inputs_are_refused(
    query: SimpleNamespace, reason: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maxsim_fused, "_is_installed", lambda: True)
    assert fused_refusal(query) == reason


def test_missing_package_is_reported_with_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maxsim_fused, "_is_installed", lambda: False)
    assert (
        fused_refusal(vectors()) == "needs the package late-interaction-kernels: pip install 'ret_lightning[kernels]'"
    )


def test_auto_selects_fused_if_supported(monkeypatch: pytest.MonkeyPatch) -> None:
    called = []
    from ret_lightning.losses import maxsim as function

    module = sys.modules[function.__module__]
    monkeypatch.setattr(module, "fused_refusal", lambda query: None)
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
