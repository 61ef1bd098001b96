"""Benchmark of gradient caching (`micro_batch`) against the whole batch: time, memory and gradients of a step.

    python experiments/benchmarks/contrastive.py pairs=64 micro_batches=4,8,16 plot=contrastive.png

Options: backbone (a name of conf/backbone), model (a name of conf/model), trained (true: trainable backbones), pairs,
micro_batches (sizes), repeats, device, dtype (of autocast; none), plot (file).
"""

from __future__ import annotations

import sys
from contextlib import nullcontext
from functools import partial

import torch
from measure import compare
from random_model import random_retriever
from torch import Tensor

from ret_lightning.losses import ContrastiveLoss, EncodedBatch
from ret_lightning.models import EncoderInput, RetRetriever
from ret_lightning.models.gradient_cache import encode_in_micro_batches
from ret_lightning.models.precision import dtype_named

OPTIONS = {
    "backbone": "tiny", "model": "ret", "trained": "true", "pairs": "64", "micro_batches": "4,8,16", "repeats": "3",
    "device": "cpu", "dtype": "none", "plot": "",
}  # fmt: skip


def main() -> None:
    options = {**OPTIONS, **dict(argument.split("=", 1) for argument in sys.argv[1:])}
    device, pairs = torch.device(options["device"]), int(options["pairs"])
    torch.manual_seed(0)
    retriever = make_retriever(options).to(device).train()
    queries, passages = (rows(retriever, pairs, seed, device) for seed in (0, 1))
    sizes = [None, *map(int, options["micro_batches"].split(","))]
    step = partial(gradients, retriever, queries, passages, options["dtype"])
    found = compare({str(size): partial(step, size) for size in sizes}, int(options["repeats"]), device)
    whole, expected = found["None"], step(None)
    print(f"{options} torch {torch.__version__} threads {torch.get_num_threads()}")
    print("| pairs | micro_batch | step, ms | peak, MiB | time | memory | deviation of the gradients |")
    print("|--:|--:|--:|--:|--:|--:|--:|")
    for size in sizes:
        measured, ours = found[str(size)], step(size)
        deviation = max(
            float((a - b).abs().max() / b.abs().max().clamp(min=1e-9)) for a, b in zip(ours, expected, strict=True)
        )
        print(
            f"| {pairs} | {size or 'whole'} | {1e3 * measured.seconds:.0f} | {measured.peak / 2**20:.0f} | "
            f"{measured.seconds / whole.seconds:.2f} | {measured.peak / whole.peak:.2f} | {deviation:.1e} |"
        )
    if options["plot"]:
        draw([(str(size or "whole"), found[str(size)]) for size in sizes], options["plot"])


def make_retriever(options: dict[str, str]) -> RetRetriever:
    """Build a retriever with random weights, without dropout, so that gradients can be compared."""
    return random_retriever(
        options["backbone"],
        "model.dropout=0",
        "model.attention_dropout=0",
        f"model.train_text={options['trained']}",
        f"model.train_vision={options['trained']}",
        model=options["model"],
    )


def rows(retriever: RetRetriever, count: int, seed: int, device: torch.device) -> EncoderInput:
    """Return random rows, half of them with an image."""
    random = torch.Generator().manual_seed(seed)
    size = retriever.query_tower.image_transform.size
    ids = torch.randint(1000, 40000, (count, 32), generator=random)
    pixels = torch.randn(count, 3, size, size, generator=random)
    return EncoderInput.dense(ids, torch.ones_like(ids), pixels, image_mask=torch.arange(count) % 2).to(device)


def gradients(
    retriever: RetRetriever, queries: EncoderInput, passages: EncoderInput, dtype: str, size: int | None
) -> list[Tensor]:
    """Run one step and return the gradients."""
    device = queries.input_ids.device
    autocast = nullcontext() if dtype == "none" else torch.autocast(device.type, dtype=dtype_named(dtype))
    retriever.zero_grad(set_to_none=True)
    with autocast:
        vectors = encode_in_micro_batches(retriever, queries, passages, size)
        loss = ContrastiveLoss()(EncodedBatch(*vectors, torch.arange(len(queries), device=device))).loss
    loss.backward()
    # The gradient of a key bias is only rounding error, because softmax is shift-invariant.
    return [p.grad for n, p in retriever.named_parameters() if p.grad is not None and "k_proj.bias" not in n]


def draw(points: list, file: str) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.5), layout="constrained")
    for axes, title, values in zip(
        figure.subplots(1, 2),
        ("seconds per step", "peak memory, MiB"),
        ([m.seconds for _, m in points], [m.peak / 2**20 for _, m in points]),
        strict=True,
    ):
        axes.bar([label for label, _ in points], values)
        axes.set(title=title, xlabel="micro_batch")
    figure.savefig(file, dpi=120)


if __name__ == "__main__":
    main()
