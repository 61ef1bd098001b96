"""Benchmark of JPEG preprocessing on one core: ours, CLIP processors of transformers, and torchvision.

    python experiments/benchmarks/images.py sizes=500x375,1024x768,2000x1500 images=8 repeats=7

All implementations run alternately in one process with one thread on the same files, and return (3, 224, 224) float32.
Deviations are from the slow processor, in levels of 255. Options: sizes (width x height), images (per size), repeats, quality
(of the JPEGs).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import partial
from io import BytesIO

import numpy as np
import torch
from measure import compare
from open_clip import image_transform
from PIL import Image
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms import v2
from transformers import CLIPImageProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from ret_lightning.inputs import ImageTransform, decode_image
from ret_lightning.inputs.image_transform import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

SIZE = 224
Side = Callable[[bytes], Tensor]


def main() -> None:
    options = {"sizes": "500x375,1024x768,2000x1500", "images": "8", "repeats": "7", "quality": "88"}
    options |= dict(argument.split("=", 1) for argument in sys.argv[1:])
    torch.set_num_threads(1)
    print(f"{options} torch {torch.__version__} ({torch.backends.cpu.get_cpu_capability()})")
    print("| size | implementation | images/s | speed | mean deviation | largest deviation |")
    print("|--:|---|--:|--:|--:|--:|")
    for size in options["sizes"].split(","):
        width, height = map(int, size.split("x"))
        files = [
            encode_jpeg(make_photo(width, height, seed), int(options["quality"]))
            for seed in range(int(options["images"]))
        ]
        runs = {name: partial(_all, side, files) for name, side in sides().items()}
        measured = compare(runs, int(options["repeats"]), torch.device("cpu"))
        slow = measured["transformers, slow"].seconds
        deviations = {name: deviation(runs["transformers, slow"](), run()) for name, run in runs.items()}
        for name, (mean, largest) in deviations.items():
            seconds = measured[name].seconds
            print(
                f"| {size} | {name} | {len(files) / seconds:.0f} | {slow / seconds:.2f} | {mean:.3f} | {largest:.0f} |",
                flush=True,
            )


def sides() -> Mapping[str, Side]:
    """Return the implementations, functions from the content of a file to pixels."""
    slow, fast = CLIPImageProcessorPil(), CLIPImageProcessor()
    pillow = image_transform(SIZE, is_train=False, mean=OPENAI_CLIP_MEAN, std=OPENAI_CLIP_STD)
    tensors = v2.Compose(
        [
            v2.Resize(SIZE, interpolation=v2.InterpolationMode.BICUBIC, antialias=True),
            v2.CenterCrop(SIZE),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(OPENAI_CLIP_MEAN, OPENAI_CLIP_STD),
        ]
    )
    ours, reducing = ImageTransform(SIZE), ImageTransform(SIZE, reduce=True)

    def opened(data: bytes) -> Image.Image:
        return Image.open(BytesIO(data)).convert("RGB")

    def bytes_tensor(data: bytes) -> Tensor:
        return torch.frombuffer(bytearray(data), dtype=torch.uint8)

    return {
        "transformers, slow": lambda data: slow(opened(data), return_tensors="pt")["pixel_values"][0],
        "transformers, fast": lambda data: fast(opened(data), return_tensors="pt")["pixel_values"][0],
        "torchvision on Pillow (open_clip's)": lambda data: pillow(opened(data)),
        "torchvision on tensors": lambda data: tensors(decode_jpeg(bytes_tensor(data), ImageReadMode.RGB)),
        "ours": lambda data: ours(decode_image(data)),
        "ours, reduce": lambda data: reducing(decode_image(data, least_side=reducing.least_side)),
    }


def make_photo(width: int, height: int, seed: int) -> Image.Image:
    """Generate an image with a spectrum similar to photographs: noise at several scales, weaker at finer ones."""
    random = np.random.default_rng(seed)
    picture = np.full((height, width, 3), 128.0)
    for cells, strength in ((4, 60), (16, 40), (64, 25), (256, 12)):
        for channel in range(3):
            noise = random.normal(0, strength, (cells, cells)).astype(np.float32)
            layer = Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)
            picture[:, :, channel] += np.asarray(layer)
    return Image.fromarray(picture.clip(0, 255).astype(np.uint8))


def encode_jpeg(picture: Image.Image, quality: int) -> bytes:
    """Encode an image as JPEG."""
    file = BytesIO()
    picture.save(file, "JPEG", quality=quality)
    return file.getvalue()


def deviation(one: Tensor, other: Tensor) -> tuple[float, float]:
    """Return the mean and largest deviation of two stacks of normalised images, in levels of 255."""
    levels = ((one - other) * 255 * torch.tensor(OPENAI_CLIP_STD)[:, None, None]).abs()
    return float(levels.mean()), float(levels.max())


def _all(side: Side, files: list[bytes]) -> Tensor:
    return torch.stack([side(data) for data in files])


if __name__ == "__main__":
    main()
