"""Benchmark of encoding rows with missing modalities: ours against a tower that always runs both backbones.

    python experiments/benchmarks/encode_missing_modalities.py backbone=clip_vit_b rows=32

Both run alternately in one process with the same weights and inputs, and their features are compared. The other tower works as
the published code: a missing image is a black image, a missing text an empty string, and masks remove them at the end.
Options: backbone (a name of conf/backbone), rows (per batch), repeats, device, dtype (of autocast; none).
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial

import torch
from published_way import Dense, always_both
from random_model import random_retriever
from torch import Tensor

from ret_lightning.models import EncoderInput, RetTower
from ret_lightning.models.precision import dtype_named

# Fractions of rows with an image and with a text.
MIXES = ((1.0, 1.0), (0.75, 1.0), (0.5, 1.0), (0.25, 1.0), (0.0, 1.0), (1.0, 0.5), (1.0, 0.0))
TEXT_LENGTH = 64


def main() -> None:
    options = {"backbone": "clip_vit_b", "rows": "32", "repeats": "5", "device": "cpu", "dtype": "none"}
    options |= dict(argument.split("=", 1) for argument in sys.argv[1:])
    device, rows = torch.device(options["device"]), int(options["rows"])
    torch.manual_seed(0)
    tower = random_retriever(options["backbone"]).query_tower.to(device).eval()
    autocast = nullcontext()
    if options["dtype"] != "none":
        autocast = torch.autocast(device.type, dtype=dtype_named(options["dtype"]))
    print(f"{options} torch {torch.__version__} threads {torch.get_num_threads()}")
    print("| rows with an image | with a text | always both, rows/s | ours, rows/s | ratio | deviation |")
    print("|--:|--:|--:|--:|--:|--:|")
    for images, texts in MIXES:
        inputs = make_batch(tower, rows, images, texts, device)
        with torch.inference_mode(), autocast:
            sides: dict[Callable[[], Tensor], list[float]] = {
                partial(always_both, tower, inputs, every_block=False): [],
                partial(encode_present, tower, *inputs): [],
            }
            features = [run().float() for run in sides]  # also warms up
            for _ in range(int(options["repeats"])):
                for run, seconds in sides.items():
                    seconds.append(measure_seconds(run, device))
        other, ours = (rows / statistics.median(seconds) for seconds in sides.values())
        deviation = (features[0] - features[1]).abs().max() / features[0].abs().max()
        print(
            f"| {images:.0%} | {texts:.0%} | {other:.1f} | {ours:.1f} | {ours / other:.2f} | {deviation:.1e} |",
            flush=True,
        )


def make_batch(tower: RetTower, rows: int, images: float, texts: float, device: torch.device) -> Dense:
    """Return a dense batch in the format of the published code."""
    random = torch.Generator().manual_seed(0)
    ids = torch.randint(1000, 40000, (rows, TEXT_LENGTH), generator=random)
    pixels = torch.randn(rows, 3, tower.image_transform.size, tower.image_transform.size, generator=random)
    position = torch.arange(rows)
    masks = torch.ones_like(ids), position < texts * rows, position >= rows - images * rows
    return tuple(tensor.to(device) for tensor in (ids, masks[0], pixels, masks[1], masks[2]))


def encode_present(tower: RetTower, *inputs: Tensor) -> Tensor:
    """Encode a dense batch with our tower."""
    return tower(EncoderInput.dense(*inputs))


def measure_seconds(run: Callable[[], Tensor], device: torch.device) -> float:
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
