"""A whole training step: this project's against the same model run the plain way, alternately in one process.

    python experiments/benchmarks/step.py backbone=clip_vit_b pairs=8
    python experiments/benchmarks/step.py backbone=clip_vit_l pairs=256 device=cuda dtype=bfloat16 compile=true

The plain way is what the published code does: each tower runs both backbones on every row, all blocks of them, a missing image
as a black picture; the loss is the plain formula, and matrices are multiplied as PyTorch does it by itself. Both sides encode,
score, go backward and take a step of AdamW, on the same weights; their losses are compared. On a CPU a third side tells what
comes of leaving out what is not there alone: this project's step with PyTorch's own products (see ops/onednn_linear.py).
Random weights, backbones frozen. Options: backbone (a name of conf/backbone), pairs, queries_with_image and passages_with_image
(shares), repeats, device, dtype (of autocast), compile (of this project's side), profile (true: where the time goes).
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
    # Without dropout, so that the losses can be compared.
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

    def plain() -> Tensor:
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
        with clock("optimiser"):
            optimizer.step()
        return loss.detach()

    sides = {"plain": by_pytorch(plain), "ours": ours}
    if device.type == "cpu":
        sides["ours, PyTorch's products"] = by_pytorch(ours)
    print(f"{options} torch {torch.__version__} threads {torch.get_num_threads()}")
    print("loss: " + ", ".join(f"{name} {side().item():.6f}" for name, side in sides.items()))
    found = compare(sides, int(options["repeats"]), device)
    print("| side | pairs a second | peak, MiB | speed | memory |")
    print("|---|--:|--:|--:|--:|")
    for name, measured in found.items():
        speed, memory = found["plain"].seconds / measured.seconds, measured.peak / found["plain"].peak
        rate = pairs / measured.seconds
        print(f"| {name} | {rate:.2f} | {measured.peak / 2**20:.0f} | {speed:.2f} | {memory:.2f} |", flush=True)
    if options["profile"] == "true":
        print("| side | encode | loss | backward | optimiser |")
        print("|---|--:|--:|--:|--:|")
        for name, run in sides.items():
            clock.parts = {}
            run()
            print(f"| {name} | {' | '.join(f'{1e3 * seconds:.0f} ms' for seconds in clock.parts.values())} |")


def by_pytorch(step: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """The step with PyTorch's own matrix multiplication."""

    def run() -> Tensor:
        with linear_backend("torch"):
            return step()

    return run


class Clock:
    """Seconds of the parts of a step; waits for a GPU only once `parts` is set."""

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
    """Dense tensors, as the published code takes them."""
    random = torch.Generator().manual_seed(seed)
    size = retriever.query_tower.image_transform.size
    ids = torch.randint(1000, 40000, (count, TEXT_LENGTH), generator=random)
    has_image = torch.arange(count) < with_image * count
    pixels = torch.randn(count, 3, size, size, generator=random) * has_image[:, None, None, None]
    dense = ids, torch.ones_like(ids), pixels, torch.ones(count), has_image
    return tuple(tensor.to(device) for tensor in dense)


if __name__ == "__main__":
    main()
