"""Decoding of awkward files, CLIP's preprocessing against torchvision and transformers, and the augmentation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ret_lightning.errors import DataError
from ret_lightning.inputs import Augmentation, ImageTransform, open_image
from ret_lightning.inputs.images import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD


def picture(width: int, height: int) -> Image.Image:
    random = np.random.default_rng(0)
    small = random.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("size", [(300, 200), (200, 300), (224, 224), (57, 91), (1000, 225), (224, 500)])
def test_the_pixels_are_torchvisions(size: tuple[int, int]) -> None:
    from torchvision import transforms

    reference = transforms.Compose(
        [
            transforms.Resize(224, transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize(OPENAI_CLIP_MEAN, OPENAI_CLIP_STD),
        ]
    )
    ours = ImageTransform()(picture(*size))
    assert ours.shape == (3, 224, 224)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, reference(picture(*size)), rtol=0, atol=1e-5)


def test_the_pixels_are_those_of_clips_own_image_processor() -> None:
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    theirs = CLIPImageProcessorPil()(picture(320, 240), return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(ImageTransform()(picture(320, 240)), theirs, rtol=0, atol=1e-4)


def test_modes(tmp_path: Path) -> None:
    grey = Image.new("L", (4, 3), 128)
    half = Image.new("RGBA", (4, 3), (255, 0, 0, 0))
    palette = Image.new("P", (4, 3), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    deep = Image.fromarray(np.full((3, 4), 32896, dtype=np.uint16))
    expected = {
        "grey.png": (grey, (128, 128, 128)),
        "alpha.png": (half, (255, 255, 255)),
        "palette.png": (palette, (10, 20, 30)),
        "deep.png": (deep, (128, 128, 128)),
        "grey.webp": (grey, (128, 128, 128)),
    }
    for name, (image, colour) in expected.items():
        image.save(tmp_path / name)
        decoded = open_image(tmp_path / name)
        assert decoded.mode == "RGB"
        assert decoded.size == (4, 3)
        assert decoded.getpixel((1, 1)) == pytest.approx(colour, abs=2), name
    cmyk = Image.new("CMYK", (4, 3), (0, 255, 255, 0))
    cmyk.save(tmp_path / "cmyk.jpg", quality=100)
    assert open_image(tmp_path / "cmyk.jpg").getpixel((1, 1)) == pytest.approx((255, 0, 0), abs=8)


def test_exif_orientation(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees to the right to see it upright
    Image.new("RGB", (8, 4)).save(tmp_path / "turned.jpg", exif=exif)
    assert open_image(tmp_path / "turned.jpg").size == (4, 8)


def test_what_cannot_be_read_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.png does not exist"):
        open_image(tmp_path / "none.png")
    (tmp_path / "text.png").write_text("not an image")
    with pytest.raises(DataError, match=r"text\.png cannot be decoded"):
        open_image(tmp_path / "text.png")
    picture(64, 64).save(tmp_path / "whole.jpg")
    (tmp_path / "torn.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:400])
    with pytest.raises(DataError, match=r"torn\.jpg cannot be decoded"):
        open_image(tmp_path / "torn.jpg")
    picture(64, 64).save(tmp_path / "whole.png")
    data = bytearray((tmp_path / "whole.png").read_bytes())
    data[60:80] = bytes(20)
    (tmp_path / "broken.png").write_bytes(data)
    with pytest.raises(DataError, match=r"broken\.png cannot be decoded"):
        open_image(tmp_path / "broken.png")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(DataError, match=r"folder\.png cannot be decoded"):
        open_image(tmp_path / "folder.png")


def test_augmentation_moves_as_asked() -> None:
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


def test_augmentation_turns_and_scales_about_the_middle() -> None:
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


def test_augmentation_is_what_its_random_numbers_say() -> None:
    image = picture(40, 40)
    change = Augmentation(rotation=10, shift=0.1, scale=0.1, shear=10)
    one, same, other = (np.asarray(change(image, np.random.default_rng(seed))) for seed in (1, 1, 2))
    assert (one == same).all()
    assert (one != other).any()
