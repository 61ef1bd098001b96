"""Benchmark of MaxSim forward and backward over all pairs of a batch, by backend.

    python experiments/benchmarks/maxsim.py
    python experiments/benchmarks/maxsim.py sizes=64,128,256 plot=maxsim.png
    python experiments/benchmarks/maxsim.py device=cuda dtype=bfloat16 sizes=512,2048,8192

All backends run alternately in one process; peak memory is the increase during a run. Ratios are relative to `plain`, the
fastest direct implementation of the formula; `others=true` adds two more, one of them that of the published code. On a GPU,
torch.compile of the plain formula and the fused backend (extra `kernels`) are added. Rates are relative to a large matmul on
the same device.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import partial

import torch
from measure import Measured, compare, synchronize
from torch import Tensor
from torch.nn.functional import normalize

from ret_lightning.losses import maxsim
from ret_lightning.models.precision import dtype_named
from ret_lightning.ops.maxsim_fused import fused_refusal
from ret_lightning.ops.onednn_linear import linear

OPTIONS = {
    "device": "cpu", "dtype": "float32", "sizes": "256", "k": "32", "d": "128", "repeats": "5", "plot": "", "others": "false",
}  # fmt: skip
# With more similarities, the plain formula is left out on a GPU; 2^34 float32 values take 64 GiB, several times.
LARGEST_PLAIN = 1 << 33
Shape = tuple[int, int, int]  # N, k, d


def main() -> None:
    options = {**OPTIONS, **dict(argument.split("=", 1) for argument in sys.argv[1:])}
    device, dtype = torch.device(options["device"]), dtype_named(options["dtype"])
    print(f"{options} torch {torch.__version__} threads {torch.get_num_threads()}")
    rate = measure_matmul_rate(device, dtype)
    print(f"a large matmul: {rate / 1e12:.2f} TFLOP/s in {options['dtype']}")
    print("| N | k | d | backend | forward, ms | both, ms | peak, MiB | speed | memory | forward rate / matmul rate |")
    print("|--:|--:|--:|---|--:|--:|--:|--:|--:|--:|")
    curves: dict[str, list[tuple[Shape, Measured]]] = {}
    for n, k, d in shapes(options):
        found = measure_shape(n, k, d, device, dtype, int(options["repeats"]), options["others"] == "true")
        plain = found.get("plain")
        for name in backends(found):
            forward, both = found[f"{name} forward"], found[name]
            ratios = (plain.seconds / both.seconds, plain.peak / max(both.peak, 1)) if plain else (float("nan"),) * 2
            share = 2 * n * n * k * k * d / forward.seconds / rate
            times = f"{1e3 * forward.seconds:.1f} | {1e3 * both.seconds:.1f} | {both.peak / 2**20:.0f}"
            print(
                f"| {n} | {k} | {d} | {name} | {times} | {ratios[0]:.1f} | {ratios[1]:.1f} | {share:.2f} |", flush=True
            )
            curves.setdefault(name, []).append(((n, k, d), both))
    if options["plot"]:
        draw(curves, options["plot"])


def shapes(options: dict[str, str]) -> list[Shape]:
    """Return every N with the first k and d, then the first N with the other k and d."""
    sizes, ks, ds = ([int(value) for value in options[name].split(",")] for name in ("sizes", "k", "d"))
    return [
        *((n, ks[0], ds[0]) for n in sizes),
        *((sizes[0], k, ds[0]) for k in ks[1:]),
        *((sizes[0], ks[0], d) for d in ds[1:]),
    ]


def backends(found: dict[str, Measured]) -> list[str]:
    return [name for name in found if not name.endswith(" forward")]


def measure_shape(
    n: int, k: int, d: int, device: torch.device, dtype: torch.dtype, repeats: int, others: bool
) -> dict[str, Measured]:
    random = torch.Generator(device).manual_seed(0)

    def vectors() -> Tensor:
        values = torch.randn(n, k, d, generator=random, device=device)
        return normalize(values, dim=-1).to(dtype).requires_grad_()

    query, passage = vectors(), vectors()
    weight = torch.randn(n, n, generator=random, device=device) / n
    names = ["plain", "chunked"] if device.type == "cpu" or n * n * k * k <= LARGEST_PLAIN else ["chunked"]
    functions: dict[str, Callable[..., Tensor]] = {name: partial(maxsim, backend=name) for name in names}
    if others and "plain" in functions:
        functions |= {"plain, amax": amax, "plain, as published": as_published}
    if device.type == "cuda":
        if "plain" in functions:
            functions["plain, compiled"] = torch.compile(partial(maxsim, backend="plain"))
        if fused_refusal(query, passage) is None:
            functions["fused"] = partial(maxsim, backend="fused")
    sides: dict[str, Callable[[], object]] = {}
    for name, function in functions.items():
        sides[f"{name} forward"] = partial(forward, function, query, passage)
        sides[name] = partial(both, function, query, passage, weight)
    return compare(sides, repeats, device)


def amax(query: Tensor, passage: Tensor) -> Tensor:
    """Compute MaxSim with `amax`, whose gradient is distributed over ties."""
    return torch.einsum("aqd,bpd->abqp", query, passage).amax(dim=3).sum(dim=2)


def as_published(query: Tensor, passage: Tensor) -> Tensor:
    """Compute MaxSim as the published code, with one matmul per pair."""
    return torch.matmul(passage.unsqueeze(0), query.transpose(1, 2).unsqueeze(1)).max(dim=2).values.sum(dim=2)


def forward(function: Callable[..., Tensor], query: Tensor, passage: Tensor) -> Tensor:
    """Run the forward pass with the graph for backward, as in training."""
    return function(query, passage)


def both(function: Callable[..., Tensor], query: Tensor, passage: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(function(query, passage), (query, passage), weight)


def measure_matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Measure the FLOP/s of a square matmul by the fastest library, best of ten."""
    n = 2048 if device.type == "cpu" else 8192
    left, right = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(10):
        synchronize(device)
        start = time.perf_counter()
        linear(left, right)
        synchronize(device)
        best = min(best, time.perf_counter() - start)
    return 2 * n**3 / best


def draw(curves: dict[str, list[tuple[Shape, Measured]]], file: str) -> None:
    """Plot time (top) and memory (bottom) by N, k and d; the other two are those of the first shape."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 6), layout="constrained")
    panels = figure.subplots(2, 3)
    first = next(iter(curves.values()))[0][0]
    for name, points in curves.items():
        for axis, letter in enumerate("Nkd"):
            others = [i for i in range(3) if i != axis]
            line = sorted((shape[axis], m) for shape, m in points if all(shape[i] == first[i] for i in others))
            x = [value for value, _ in line]
            panels[0][axis].plot(x, [measured.seconds for _, measured in line], marker="o", label=name)
            panels[1][axis].plot(x, [measured.peak / 2**20 for _, measured in line], marker="o", label=name)
            fixed = ", ".join(f"{'Nkd'[i]} = {first[i]}" for i in others)
            panels[0][axis].set(title=f"by {letter}, {fixed}")
            for row in panels:
                row[axis].set(xscale="log", yscale="log", xlabel=letter, xticks=x, xticklabels=map(str, x))
                row[axis].minorticks_off()
                row[axis].grid(alpha=0.3)
    panels[0][0].set(ylabel="forward and backward, seconds")
    panels[1][0].set(ylabel="peak memory, MiB")
    panels[0][0].legend(frameon=False)
    figure.savefig(file, dpi=120)


if __name__ == "__main__":
    main()
