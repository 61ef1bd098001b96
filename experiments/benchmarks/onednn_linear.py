"""Benchmark of float32 linear layers on a CPU: `ret_lightning.ops.onednn_linear.linear` against PyTorch.

    python experiments/benchmarks/onednn_linear.py
    python experiments/benchmarks/onednn_linear.py shapes=256x1024x4096,64x64x64 repeats=50

A shape is rows x inputs x outputs. The default shapes are those of the cell with H = 1024 and 8 pairs, of the text blocks of
ViT-B/32, of the demo, and a small one. Both run alternately in one process. Rates are of the forward pass and of both passes
(the backward pass has two matmuls of the same size).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial

import torch
from measure import compare
from torch import Tensor
from torch.nn.functional import linear as pytorch_linear

from ret_lightning.ops.onednn_linear import linear, linear_backend

OPTIONS = {
    "shapes": "512x1024x1024,512x1024x4096,512x4096x1024,1232x512x1024,1024x512x2048,1536x128x512,64x64x64",
    "repeats": "20",
}
Function = Callable[[Tensor, Tensor, Tensor], Tensor]


def main() -> None:
    options = {**OPTIONS, **dict(argument.split("=", 1) for argument in sys.argv[1:])}
    capability = torch.backends.cpu.get_cpu_capability()
    print(f"{options} torch {torch.__version__} threads {torch.get_num_threads()} {capability}")
    print("| rows x inputs x outputs | PyTorch, GFLOP/s | ours | speed | both passes, PyTorch | ours | speed |")
    print("|---|--:|--:|--:|--:|--:|--:|")
    for shape in options["shapes"].split(","):
        rows, inputs, outputs = map(int, shape.split("x"))
        random = torch.Generator().manual_seed(0)
        x, weight, bias = (
            torch.randn(size, generator=random, requires_grad=True)
            for size in ((rows, inputs), (outputs, inputs), (outputs,))
        )
        grad = torch.randn(rows, outputs, generator=random)
        calls = min(1000, max(1, 10**9 // (2 * rows * inputs * outputs)))  # a run takes some milliseconds
        sides: dict[str, Callable[[], object]] = {}
        for name, function in (("pytorch", pytorch_linear), ("ours", linear)):
            sides[f"{name} forward"] = partial(forward, function, x, weight, bias, calls)
            sides[name] = partial(both, function, x, weight, bias, grad, calls)
        with linear_backend("onednn"):  # also if auto selects PyTorch
            found = compare(sides, int(options["repeats"]), torch.device("cpu"))
        cells = []
        for suffix, matmuls in ((" forward", 1), ("", 3)):
            operations = 2 * rows * inputs * outputs * matmuls * calls
            theirs, own = (operations / found[f"{name}{suffix}"].seconds / 1e9 for name in ("pytorch", "ours"))
            cells += [f"{theirs:.0f}", f"{own:.0f}", f"{own / theirs:.2f}"]
        print(f"| {shape} | {' | '.join(cells)} |", flush=True)


@torch.no_grad()
def forward(function: Function, x: Tensor, weight: Tensor, bias: Tensor, calls: int) -> None:
    for _ in range(calls):
        function(x, weight, bias)


def both(function: Function, x: Tensor, weight: Tensor, bias: Tensor, grad: Tensor, calls: int) -> None:
    for _ in range(calls):
        torch.autograd.grad(function(x, weight, bias), (x, weight, bias), grad)


if __name__ == "__main__":
    main()
