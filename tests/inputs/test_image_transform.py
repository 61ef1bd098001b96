"""Reduced decoding, long images, and augmentation. test_clip_agreement.py compares the pixels with CLIP's processors."""

from __future__ import annotations

import tracemalloc
from io import BytesIO
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ret_lightning.inputs import Augmentation, ImageTransform, decode_image
from ret_lightning.inputs.image_transform import OPENAI_CLIP_STD

FONT = Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf")


def picture(width: int, height: int) -> Image.Image:
    random = np.random.default_rng(0)
    small = random.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def jpeg(image: Image.Image, **options) -> bytes:
    file = BytesIO()
    image.save(file, "JPEG", quality=88, **options)
    return file.getvalue()


def pictures(width: int, height: int) -> dict[str, Image.Image]:
    """Return images like photographs: smooth noise at several scales, lettering and gradients."""
    random = np.random.default_rng(0)
    noise = np.full((height, width, 3), 128.0)
    for cells, strength in ((4, 60), (16, 40), (64, 25), (256, 12)):
        for channel in range(3):
            layer = Image.fromarray(random.normal(0, strength, (cells, cells)).astype(np.float32))
            noise[:, :, channel] += np.asarray(layer.resize((width, height), Image.Resampling.BICUBIC))
    lettering = Image.new("RGB", (width, height), "white")
    font = ImageFont.truetype(FONT, height // 40)
    for y in range(0, height, height // 30):
        ImageDraw.Draw(lettering).text((5, y), "The quick brown fox jumps over the lazy dog. " * 5, (20, 20, 60), font)
    y, x = np.mgrid[0 : 1 : complex(height), 0 : 1 : complex(width)]
    return {
        "noise": Image.fromarray(noise.clip(0, 255).astype(np.uint8)),
        "lettering": lettering,
        "gradients": Image.fromarray((255 * np.stack([x, y, (x + y) / 2], axis=-1)).astype(np.uint8)),
    }


def levels(pixels: Tensor) -> np.ndarray:
    """Convert normalized pixels to levels of 255."""
    return pixels.numpy().transpose(1, 2, 0) * np.array(OPENAI_CLIP_STD) * 255


@pytest.mark.parametrize("size", [(2000, 1500), (1345, 2001), (1601, 1347)])
@pytest.mark.parametrize("subsampling", [0, 2])
def test_reduced_decoding_deviates_within_limits(size: tuple[int, int], subsampling: int) -> None:
    transform = ImageTransform(reduce=True)
    for name, image in pictures(*size).items():
        data = jpeg(image, subsampling=subsampling)
        reduced = decode_image(data, least_side=transform.least_side)
        assert reduced.size == ((size[0] + 1) // 2, (size[1] + 1) // 2)
        difference = np.abs(levels(transform(reduced)) - levels(transform(decode_image(data))))
        limits = (1.2, 20) if name == "lettering" else (0.4, 4)
        assert 0 < difference.mean() < limits[0], name
        assert difference.max() < limits[1] + 0.01, name


def test_reduced_decoding_is_off_by_default() -> None:
    assert ImageTransform(224).least_side is None
    assert ImageTransform(40, reduce=True).least_side == 120


@pytest.mark.parametrize("size", [(30_000, 3), (3, 30_000)])
def test_very_long_image_needs_little_memory(size: tuple[int, int]) -> None:
    """The whole resized image would have 500 million pixels. The central square of a ramp has nearly one colour."""
    ramp = np.linspace(0, 255, 30_000).astype(np.uint8)
    image = Image.fromarray(np.broadcast_to(ramp, (3, 30_000)) if size[0] > 3 else np.repeat(ramp[:, None], 3, axis=1))
    tracemalloc.start()
    pixels = ImageTransform(224, mean=(0, 0, 0), std=(1, 1, 1))(image.convert("RGB"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10_000_000
    assert pixels.shape == (3, 224, 224)
    assert (pixels * 255 - 127.5).abs().max() <= 1


def test_transform_does_not_modify_image() -> None:
    image = picture(300, 260)
    before = image.tobytes()
    ImageTransform()(image)
    assert image.tobytes() == before


def test_augmentation_shifts_within_limit() -> None:
    image = Image.new("RGB", (41, 41))
    image.putpixel((20, 20), (255, 255, 255))

    def middle(changed: Image.Image) -> np.ndarray:
        grey = np.asarray(changed.convert("L"), dtype=float)
        return np.array([(grey.sum(0) * np.arange(41)).sum(), (grey.sum(1) * np.arange(41)).sum()]) / grey.sum()

    assert middle(Augmentation()(image, np.random.default_rng(0))) == pytest.approx([20, 20])
    moved = [middle(Augmentation(shift=0.2)(image, np.random.default_rng(seed))) for seed in range(50)]
    spread = np.abs(np.array(moved) - 20)
    assert spread.max() <= 0.2 * 41 + 0.5
    assert spread.max(axis=0).min() > 0.15 * 41


def test_augmentation_rotates_and_scales_about_center() -> None:
    image = Image.new("L", (101, 101)).convert("RGB")
    for x in range(20, 81):
        image.putpixel((x, 50), (255, 255, 255))
    turned = np.asarray(Augmentation(rotation=30)(image, np.random.default_rng(3)).convert("L")) > 60
    angle = np.degrees(np.radians(30) * np.random.default_rng(3).uniform(-1, 1, 5)[0])
    ys, xs = np.nonzero(turned)
    assert abs(np.polyfit(xs, ys, 1)[0]) == pytest.approx(np.tan(np.radians(abs(angle))), abs=0.05)
    longer = np.asarray(Augmentation(scale=0.4)(image, np.random.default_rng(5)).convert("L"))[50] > 60
    zoom = 1 + 0.4 * np.random.default_rng(5).uniform(-1, 1, 5)[2]
    assert longer.sum() == pytest.approx(61 * zoom, abs=2)


def test_augmentation_is_deterministic() -> None:
    image = picture(40, 40)
    change = Augmentation(rotation=10, shift=0.1, scale=0.1, shear=10)
    one, same, other = (np.asarray(change(image, np.random.default_rng(seed))) for seed in (1, 1, 2))
    assert (one == same).all()
    assert (one != other).any()
