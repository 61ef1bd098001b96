"""Benchmark of a training step: ours against a reference implementation of the published code, with the same model.

    python experiments/benchmarks/step.py backbone=clip_vit_b pairs=8
    python experiments/benchmarks/step.py backbone=clip_vit_l pairs=256 device=cuda dtype=bfloat16 compile=true

In the reference, each tower runs all blocks of both backbones for every row, with a black image for a missing one; the loss
uses the plain formula, and matmuls are those of PyTorch. Both compute loss, gradients and an AdamW step with the same weights,
alternately in one process, and their losses are compared. On a CPU, our step is also measured with PyTorch's matmul (see
ops/onednn_linear.py), to separate the effect of skipping missing modalities. Random weights, frozen backbones.
Options: backbone (a name of conf/backbone), pairs, queries_with_image and passages_with_image (fractions), repeats, device,
dtype (of autocast; none), compile (of our step), profile (true: print the time of each part).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial

import torch
from measure import compare, synchronize
from published_way import Dense, always_both
from random_model import random_retriever
from torch import Tensor

from ret_lightning.losses import ContrastiveLoss, EncodedBatch
from ret_lightning.models import EncoderInput, RetRetriever, normalised
from ret_lightning.models.compile_blocks import compile_blocks
from ret_lightning.models.precision import dtype_named
from ret_lightning.ops.onednn_linear import linear_backend

OPTIONS = {
    "backbone": "clip_vit_b", "pairs": "8", "queries_with_image": "1", "passages_with_image": "0.5", "repeats": "3",
    "device": "cpu", "dtype": "none", "compile": "false", "profile": "true",
}  # fmt: skip
TEXT_LENGTH = 64


def main() -> None:
    options = {**OPTIONS, **dict(argument.split("=", 1) for argument in sys.argv[1:])}
    device, pairs = torch.device(options["device"]), int(options["pairs"])
    torch.manual_seed(0)
    # Losses can only be compared without dropout.
    retriever = random_retriever(options["backbone"], "model.dropout=0", "model.attention_dropout=0").to(device).train()
    shares = float(options["queries_with_image"]), float(options["passages_with_image"])
    queries, passages = (rows(retriever, pairs, share, seed, device) for seed, share in enumerate(shares))
    optimizer = torch.optim.AdamW([p for p in retriever.parameters() if p.requires_grad], lr=0.0)
    labels = torch.arange(pairs, device=device)
    if options["compile"] == "true":
        compile_blocks(retriever)
    autocast = (
        partial(torch.autocast, device.type, dtype=dtype_named(options["dtype"]))
        if options["dtype"] != "none"
        else nullcontext
    )
    clock = Clock(device)

    def ours() -> Tensor:
        with autocast():
            with clock("encode"):
                query, passage = retriever(EncoderInput.dense(*queries), EncoderInput.dense(*passages))
            with clock("loss"):
                loss = ContrastiveLoss()(EncodedBatch(query, passage, labels)).loss
        return finish(loss)

    def reference() -> Tensor:
        with autocast():
            with clock("encode"):
                query = normalised(always_both(retriever.query_tower, queries))
                passage = normalised(always_both(retriever.passage_tower, passages))
            with clock("loss"):
                loss = ContrastiveLoss(backend="plain")(EncodedBatch(query, passage, labels)).loss
        return finish(loss)

    def finish(loss: Tensor) -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        with clock("backward"):
            loss.backward()
        with clock("optimizer"):
            optimizer.step()
        return loss.detach()

    sides = {"reference": with_pytorch_matmul(reference), "ours": ours}
    if device.type == "cpu":
        sides["ours, PyTorch matmul"] = with_pytorch_matmul(ours)
    print(f"{options} torch {torch.__version__} threads {torch.get_num_threads()}")
    print("loss: " + ", ".join(f"{name} {side().item():.6f}" for name, side in sides.items()))
    found = compare(sides, int(options["repeats"]), device)
    print("| implementation | pairs/s | peak, MiB | speed | memory |")
    print("|---|--:|--:|--:|--:|")
    for name, measured in found.items():
        speed, memory = found["reference"].seconds / measured.seconds, measured.peak / found["reference"].peak
        rate = pairs / measured.seconds
        print(f"| {name} | {rate:.2f} | {measured.peak / 2**20:.0f} | {speed:.2f} | {memory:.2f} |", flush=True)
    if options["profile"] == "true":
        print("| implementation | encode | loss | backward | optimizer |")
        print("|---|--:|--:|--:|--:|")
        for name, run in sides.items():
            clock.parts = {}
            run()
            print(f"| {name} | {' | '.join(f'{1e3 * seconds:.0f} ms' for seconds in clock.parts.values())} |")


def with_pytorch_matmul(step: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """Wrap a step to use PyTorch's matmul."""

    def run() -> Tensor:
        with linear_backend("torch"):
            return step()

    return run


class Clock:
    """Measure the parts of a step in seconds; active, and synchronizing with the GPU, only if `parts` is set."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.parts: dict[str, float] | None = None

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        if self.parts is None:
            yield
            return
        synchronize(self.device)
        start = time.perf_counter()
        yield
        synchronize(self.device)
        self.parts[name] = time.perf_counter() - start


def rows(retriever: RetRetriever, count: int, with_image: float, seed: int, device: torch.device) -> Dense:
    """Return a dense batch in the format of the published code."""
    random = torch.Generator().manual_seed(seed)
    size = retriever.query_tower.image_transform.size
    ids = torch.randint(1000, 40000, (count, TEXT_LENGTH), generator=random)
    has_image = torch.arange(count) < with_image * count
    pixels = torch.randn(count, 3, size, size, generator=random) * has_image[:, None, None, None]
    dense = ids, torch.ones_like(ids), pixels, torch.ones(count), has_image
    return tuple(tensor.to(device) for tensor in dense)


if __name__ == "__main__":
    main()
