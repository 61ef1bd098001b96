"""Decoding of images: modes, sizes, orientations, and errors of invalid files."""

from __future__ import annotations

import subprocess
import sys
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ret_lightning.errors import DataError
from ret_lightning.inputs import decode_image, open_image, to_rgb
from tests.support.pictures import encoded, kind_of, picture


def png(pixels: np.ndarray, size: tuple[int, int] | None = None) -> bytes:
    """Return a 16-bit PNG of pixels (h, w, channels) uint16, which Pillow cannot write; `size` overrides its header."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return len(content).to_bytes(4, "big") + name + content + zlib.crc32(name + content).to_bytes(4, "big")

    height, width, channels = pixels.shape
    stated = size or (width, height)
    colour = {1: 0, 3: 2, 2: 4, 4: 6}[channels]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = stated[0].to_bytes(4, "big") + stated[1].to_bytes(4, "big") + bytes([16, colour, 0, 0, 0])
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


# Modes.

SOLID = picture(40, 30)


@pytest.mark.parametrize(
    ("mode", "form"),
    [
        *((mode, "PNG") for mode in ("1", "L", "LA", "P", "RGB", "RGBA")),
        *((mode, "TIFF") for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr")),
        *((mode, "WEBP") for mode in ("L", "RGB", "RGBA")),
        *((mode, "JPEG") for mode in ("L", "RGB", "CMYK", "YCbCr")),
        *((mode, "GIF") for mode in ("1", "L", "P", "RGB")),
        ("RGB", "BMP"), ("RGB", "PPM"), ("RGBA", "ICO"), ("RGBA", "TGA"), ("RGB", "JPEG2000"), ("RGB", "AVIF"),
    ],
)  # fmt: skip
def test_all_modes_equal_pillow_conversion(mode: str, form: str) -> None:
    """CLIP's preprocessing uses that conversion. The pixels are also compared with the saved image."""
    image = SOLID.convert(mode)
    options = {"lossless": True, "exact": True} if form == "WEBP" else {"sizes": [SOLID.size]} if form == "ICO" else {}
    data = encoded(image, form, **options, **({"quality": 95} if form == "JPEG" else {}))
    decoded = decode_image(data)
    assert decoded.mode == "RGB"
    assert (np.asarray(decoded) == np.asarray(Image.open(BytesIO(data)).convert("RGB"))).all()
    difference = np.abs(np.asarray(decoded, dtype=float) - np.asarray(image.convert("RGB"), dtype=float))
    assert difference.mean() < ({"JPEG": 8, "AVIF": 8, "GIF": 10}.get(form, 1))


def test_transparency_is_composited_on_white(recwarn: pytest.WarningsRecorder) -> None:
    palette = Image.new("P", (4, 3), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    for image, colour in (
        (Image.new("RGBA", (4, 3), (255, 100, 0, 51)), (255, 224, 204)),
        (Image.new("LA", (4, 3), (100, 0)), (255, 255, 255)),
    ):
        assert decode_image(encoded(image, "PNG")).getpixel((1, 1)) == colour
    for transparency, colour in ((1, (255, 255, 255)), (0, (10, 20, 30)), (b"\x80\x33", (206, 208, 210))):
        for form in ("PNG", "GIF") if isinstance(transparency, int) else ("PNG",):
            assert decode_image(encoded(palette, form, transparency=transparency)).getpixel((1, 1)) == colour
    key = encoded(Image.new("RGB", (4, 3), (1, 2, 3)), "PNG", transparency=(1, 2, 3))
    assert decode_image(key).getpixel((1, 1)) == (255, 255, 255)
    assert not recwarn.list


def test_16_bit_images_are_scaled_to_8_bits() -> None:
    random = np.random.default_rng(0)
    for channels in (1, 2, 3, 4):
        pixels = random.integers(0, 65536, (20, 30, channels), dtype=np.uint16)
        expected = (pixels[:, :, :1] if channels < 3 else pixels[:, :, :3]).astype(float)
        if channels in (2, 4):
            expected = 65535 - (65535 - expected) * (pixels[:, :, -1:] / 65535)
        decoded = np.asarray(decode_image(png(pixels)), dtype=float)
        assert np.abs(decoded - expected / 257).max() <= 2, channels
    grey = Image.fromarray(np.array([[0, 257, 32896], [65535, 128, 129]], dtype=np.uint16))
    for form in ("TIFF", "PNG"):
        assert np.asarray(decode_image(encoded(grey, form)))[:, :, 1].tolist() == [[0, 1, 128], [255, 0, 1]]
    with_key = encoded(grey, "PNG", transparency=5)
    assert np.asarray(decode_image(with_key))[:, :, 0].tolist() == [[0, 1, 128], [255, 0, 1]]


def test_adobe_cmyk_jpeg() -> None:
    """Red is full magenta and yellow. YCCK stores the inverted inks as luminance and chrominance."""
    options = {"quality": 100, "subsampling": 0}
    inks = encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", **options)
    assert decode_image(inks).getpixel((8, 8)) == pytest.approx((255, 0, 0), abs=3)
    stored = Image.new("RGB", (1, 1), (0, 255, 255)).convert("YCbCr").getpixel((0, 0))
    ycck = bytearray(encoded(Image.new("CMYK", (16, 16), (*(255 - v for v in stored), 0)), "JPEG", **options))
    transform = ycck.index(b"Adobe") + 11
    assert ycck[transform] == 0
    ycck[transform] = 2
    assert decode_image(bytes(ycck)).getpixel((8, 8)) == pytest.approx((255, 0, 0), abs=3)


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG"])
def test_first_frame_of_animation_is_decoded(form: str) -> None:
    frames = [Image.new("RGB", (12, 10), colour) for colour in ("red", "blue", "lime")]
    data = encoded(
        frames[0], form, save_all=True, append_images=frames[1:], **({} if form != "WEBP" else {"lossless": True})
    )
    with Image.open(BytesIO(data)) as opened:
        assert opened.n_frames == 3
    assert (np.asarray(decode_image(data)) == [255, 0, 0]).all()


@pytest.mark.parametrize("form", ["PNG", "WEBP", "TIFF"])
def test_all_exif_orientations(form: str) -> None:
    stored = np.asarray(picture(8, 4))
    upright = {
        1: stored,
        2: stored[:, ::-1],
        3: np.rot90(stored, 2),
        4: stored[::-1],
        5: stored.transpose(1, 0, 2),
        6: np.rot90(stored, -1),
        7: np.rot90(stored, 2).transpose(1, 0, 2),
        8: np.rot90(stored, 1),
    }
    for orientation, expected in upright.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        data = encoded(picture(8, 4), form, exif=exif, **({"lossless": True} if form == "WEBP" else {}))
        decoded = np.asarray(decode_image(data))
        assert decoded.shape == expected.shape
        assert (decoded == expected).all(), orientation


# Images in memory.


def transparent_palette() -> Image.Image:
    image = Image.new("P", (1, 1), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    image.putalpha(51)
    assert image.mode == "PA"
    return image


@pytest.mark.parametrize(
    ("image", "colours"),
    [
        (Image.new("RGB", (1, 1), (1, 2, 3)), [(1, 2, 3)]),
        (Image.new("L", (1, 1), 7), [(7, 7, 7)]),
        (Image.new("1", (1, 1), 1), [(255, 255, 255)]),
        (Image.new("LA", (1, 1), (100, 51)), [(224, 224, 224)]),
        (Image.new("La", (1, 1), (20, 51)), [(224, 224, 224)]),  # the same, premultiplied
        (Image.new("RGBA", (1, 1), (255, 100, 0, 51)), [(255, 224, 204)]),
        (Image.new("RGBa", (1, 1), (51, 20, 0, 51)), [(255, 224, 204)]),
        (transparent_palette(), [(206, 208, 210)]),
        (Image.new("I", (1, 1), 32896), [(128, 128, 128)]),
        (Image.new("I;16", (1, 1), 32896), [(128, 128, 128)]),
        (Image.new("CMYK", (1, 1), (0, 255, 255, 0)), [(255, 0, 0)]),
        (Image.new("HSV", (1, 1), (0, 255, 255)), [(255, 0, 0)]),
    ],
    ids=lambda value: value.mode if isinstance(value, Image.Image) else "",
)
def test_to_rgb_of_all_modes(image: Image.Image, colours: list[tuple[int, int, int]]) -> None:
    mode, before = image.mode, image.tobytes()
    rgb = to_rgb(image)
    assert (rgb.mode, rgb.size) == ("RGB", image.size)
    assert rgb is not image
    assert np.asarray(rgb).reshape(-1, 3) == pytest.approx(np.array(colours), abs=1)
    assert (image.mode, image.tobytes()) == (mode, before)


def test_to_rgb_applies_exif_to_copy() -> None:
    image = picture(8, 4)
    image.getexif()[0x0112] = 6
    turned = to_rgb(image)
    assert (np.asarray(turned) == np.rot90(np.asarray(picture(8, 4)), -1)).all()
    assert image.size == (8, 4)
    assert image.getexif()[0x0112] == 6
    assert (np.asarray(to_rgb(turned)) == np.asarray(turned)).all()


def test_to_rgb_of_invalid_image_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        to_rgb(Image.new("RGB", (0, 3)))
    assert (error.value.code, error.value.reason) == ("image-not-decoded", "size is 0 x 3 pixels")
    assert error.value.message.startswith("image cannot be decoded: ")  # no file name
    picture(64, 64).save(tmp_path / "whole.jpg")
    (tmp_path / "torn.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:-300])
    with Image.open(tmp_path / "torn.jpg") as torn, pytest.raises(DataError) as error:
        to_rgb(torn)
    assert (error.value.code, error.value.kind) == ("image-not-decoded", "truncated_image")
    assert error.value.message.startswith(f"image {tmp_path / 'torn.jpg'} ")
    closed = Image.open(tmp_path / "whole.jpg")
    closed.close()
    with pytest.raises(DataError) as error:
        to_rgb(closed)
    assert (error.value.code, error.value.reason) == ("image-not-decoded", "Operation on closed image")
    assert error.value.message.startswith(f"image {tmp_path / 'whole.jpg'} ")


# Sizes.


@pytest.mark.parametrize(
    ("size", "least", "decoded"),
    [
        ((896, 1200), 448, (448, 600)),
        ((895, 1200), 448, (895, 1200)),  # half the size would be 447
        ((1793, 1801), 448, (449, 451)),  # a quarter, rounded up
        ((4000, 3584), 448, (500, 448)),
        ((300, 200), 448, (300, 200)),
        ((896, 1200), None, (896, 1200)),
    ],
)
def test_jpeg_is_decoded_at_reduced_scale(size, least: int | None, decoded) -> None:
    data = encoded(Image.new("RGB", size, (200, 100, 50)), "JPEG")
    image = decode_image(data, least_side=least)
    assert image.size == decoded
    assert image.getpixel((5, 5)) == pytest.approx((200, 100, 50), abs=3)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = size if any(s % 2 for s in size) else decoded  # a side that is not divisible is not reduced
    assert decode_image(encoded(Image.new("RGB", size), "JPEG", exif=exif), least_side=least).size == turned[::-1]
    assert decode_image(encoded(Image.new("CMYK", size), "JPEG"), least_side=least).size == decoded
    assert decode_image(encoded(Image.new("RGB", size), "WEBP", quality=1, method=0), least_side=least).size == size


def test_too_large_image_is_refused_before_decoding() -> None:
    data = encoded(picture(20, 10), "JPEG")
    assert decode_image(data, max_pixels=200).size == (20, 10)
    with pytest.raises(DataError) as error:
        decode_image(data, max_pixels=199)
    assert (error.value.code, error.value.allowed) == ("image-too-large", 199)
    assert error.value.found == "200 pixels (20 x 10)"
    row = np.zeros((1, 1, 1), dtype=np.uint16)
    for size in ((10_000, 9_000), (60_000, 60_000), (2**31 - 1, 2**31 - 1)):
        assert kind_of(png(row, size)) == "image_too_large"
    assert (
        kind_of(png(row, (10_000, 9_000)), max_pixels=100_000_000) == "truncated_image"
    )  # allowed by the limit, but without pixels


def test_pillow_size_warning_is_hidden_in_commands(tmp_path: Path) -> None:
    (tmp_path / "large.png").write_bytes(png(np.zeros((1, 1, 1), dtype=np.uint16), (10_000, 9_000)))
    script = (
        "from ret_lightning.inputs import open_image\nfrom ret_lightning.errors import DataError\n"
        "from ret_lightning.runtime.console import quiet_libraries\n"
        "with quiet_libraries():\n"
        "    try:\n        open_image('large.png')\n    except DataError as error:\n        print(error.kind)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path)
    assert (done.stdout, done.stderr) == ("image_too_large\n", "")


# Invalid files.


def test_unreadable_file_error_has_kind_and_name(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("not an image")
    (tmp_path / "empty.png").touch()
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "script.eps").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"
    )
    data = bytearray(encoded(picture(64, 64), "PNG"))
    data[60:80] = bytes(20)
    (tmp_path / "broken.png").write_bytes(data)
    (tmp_path / "link.png").symlink_to("elsewhere.png")
    for name, kind, code in (
        ("none.png", "missing_image", "image-missing"),
        ("text.png/none.png", "missing_image", "image-missing"),
        ("nu\0ll.png", "missing_image", "image-missing"),
        ("\ud800.png", "missing_image", "image-missing"),
        ("link.png", "missing_image", "image-link-dangling"),
        ("a" * 300, "unreadable_image", "image-not-read"),
        ("text.png", "unreadable_image", "image-format-unknown"),
        ("script.eps", "unreadable_image", "image-format-unknown"),
        ("empty.png", "unreadable_image", "image-empty"),
        ("folder.png", "unreadable_image", "image-is-folder"),
        ("broken.png", "unreadable_image", "image-not-decoded"),
    ):
        with pytest.raises(DataError) as error:
            open_image(tmp_path / name)
        assert str(error.value).startswith("image ")
        assert (error.value.kind, error.value.code) == (kind, code), name
        assert "\n" not in str(error.value)
        if name.isprintable():
            assert name in str(error.value)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_truncated_files_are_refused(form: str) -> None:
    whole = encoded(picture(64, 64), form)
    for share in (0.1, 0.5, 0.9):
        kind = kind_of(whole[: int(share * len(whole))])
        assert kind in ("truncated_image", "unreadable_image")
        if form in ("JPEG", "PNG") and share == 0.9:
            assert kind == "truncated_image"


EXIF = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"  # orientation 6
WHOLE = [
    encoded(picture(24, 18).convert(mode), form, **options)
    for form, mode, options in (
        ("JPEG", "RGB", {}),
        ("JPEG", "RGB", {"progressive": True, "exif": EXIF}),
        ("JPEG", "CMYK", {}), ("PNG", "P", {}), ("PNG", "RGBA", {}), ("WEBP", "RGBA", {}), ("GIF", "P", {}),
        ("TIFF", "RGB", {"compression": "tiff_lzw"}), ("TIFF", "CMYK", {}), ("BMP", "RGB", {}), ("PPM", "RGB", {}),
        ("ICO", "RGBA", {}), ("TGA", "P", {}), ("JPEG2000", "RGB", {}), ("AVIF", "RGB", {}),
    )
]  # fmt: skip


@settings(deadline=None, max_examples=400)
@given(
    st.sampled_from(WHOLE),
    st.lists(st.tuples(st.integers(0, 10_000), st.binary(min_size=1, max_size=8)), max_size=6),
    st.floats(0, 1),
    st.sampled_from([None, 4]),
)
def test_damaged_image_is_decoded_or_data_error(whole: bytes, changes, share: float, least: int | None) -> None:
    data = bytearray(whole)
    for position, new in changes:
        position %= len(data)
        data[position : position + len(new)] = new
    check(bytes(data[: round(share * len(data))] if share > 0.5 else data), least)


@settings(deadline=None, max_examples=200)
@given(st.sampled_from(WHOLE), st.integers(0, 16), st.binary(max_size=200))
def test_random_bytes_after_signature_are_image_or_data_error(whole: bytes, kept: int, rest: bytes) -> None:
    check(whole[:kept] + rest, None)


def check(data: bytes, least: int | None) -> None:
    try:
        assert decode_image(data, "some", least, max_pixels=1_000_000).mode == "RGB"
    except DataError as error:
        assert error.kind in ("image_too_large", "truncated_image", "unreadable_image")
        assert str(error).startswith("image some ")
        assert "\n" not in str(error)
