"""Decoding of awkward files, and the augmentation; for the preprocessing see test_clip_agreement.py."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ret_lightning.errors import DataError
from ret_lightning.inputs import Augmentation, open_image, rgb_image


def picture(width: int, height: int) -> Image.Image:
    random = np.random.default_rng(0)
    small = random.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


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


def grey_16() -> Image.Image:
    return Image.fromarray(np.array([[0, 257, 32896], [65535, 128, 129]], dtype=np.uint16))


@pytest.mark.parametrize(
    ("image", "colours"),
    [
        (Image.new("RGB", (1, 1), (1, 2, 3)), [(1, 2, 3)]),
        (Image.new("L", (1, 1), 7), [(7, 7, 7)]),
        (Image.new("1", (1, 1), 1), [(255, 255, 255)]),
        (Image.new("LA", (1, 1), (100, 51)), [(224, 224, 224)]),  # 255 - (255 - 100) / 5
        (Image.new("RGBA", (1, 1), (255, 100, 0, 51)), [(255, 224, 204)]),
        (Image.new("RGBa", (1, 1), (51, 20, 0, 51)), [(255, 224, 204)]),  # the same, premultiplied
        (grey_16(), [(v, v, v) for v in (0, 1, 128, 255, 0, 1)]),  # 257 steps of 16 bits are one of 8
        (grey_16().convert("I"), [(v, v, v) for v in (0, 1, 128, 255, 0, 1)]),
        (Image.new("CMYK", (1, 1), (0, 255, 255, 0)), [(255, 0, 0)]),
    ],
    ids=lambda value: value.mode if isinstance(value, Image.Image) else "",
)
def test_a_picture_in_memory_of_any_mode(image: Image.Image, colours: list[tuple[int, int, int]]) -> None:
    mode, before = image.mode, image.tobytes()
    rgb = rgb_image(image)
    assert (rgb.mode, rgb.size) == ("RGB", image.size)
    assert np.asarray(rgb).reshape(-1, 3) == pytest.approx(np.array(colours), abs=1)
    assert (image.mode, image.tobytes()) == (mode, before)


def test_a_picture_in_memory_is_turned_by_its_exif_and_stays_as_it_is() -> None:
    image = picture(8, 4)
    image.getexif()[0x0112] = 6
    turned = rgb_image(image)
    assert (np.asarray(turned) == np.rot90(np.asarray(picture(8, 4)), -1)).all()
    assert image.size == (8, 4)
    assert image.getexif()[0x0112] == 6
    assert (np.asarray(rgb_image(turned)) == np.asarray(turned)).all()


def test_a_16_bit_grey_with_a_transparent_value_keeps_its_greys(tmp_path: Path) -> None:
    grey_16().save(tmp_path / "deep.png", transparency=5)
    assert np.asarray(open_image(tmp_path / "deep.png"))[:, :, 0].tolist() == [[0, 1, 128], [255, 0, 1]]


def test_a_picture_in_memory_that_cannot_be_decoded(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^image cannot be decoded: it is 0 by 3 pixels$"):
        rgb_image(Image.new("RGB", (0, 3)))
    picture(64, 64).save(tmp_path / "whole.jpg")
    (tmp_path / "torn.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:-300])
    with Image.open(tmp_path / "torn.jpg") as torn, pytest.raises(DataError, match=r"^image .*torn\.jpg cannot be"):
        rgb_image(torn)
    closed = Image.open(tmp_path / "whole.jpg")
    closed.close()
    with pytest.raises(DataError, match=r"whole\.jpg cannot be decoded: Operation on closed image"):
        rgb_image(closed)


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
    # A text where EXIF wants a number: the tag's number 0x132, of the date, is made 0x100, of the width.
    exif = Image.Exif()
    exif[0x0112], exif[0x0132] = 6, "2020"
    picture(64, 64).save(tmp_path / "exif.jpg", exif=exif)
    data = (tmp_path / "exif.jpg").read_bytes()
    assert data.count(b"\x01\x32\x00\x02") == 1
    (tmp_path / "exif.jpg").write_bytes(data.replace(b"\x01\x32\x00\x02", b"\x01\x00\x00\x02"))
    with pytest.raises(DataError, match=r"exif\.jpg cannot be decoded"):
        open_image(tmp_path / "exif.jpg")
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
