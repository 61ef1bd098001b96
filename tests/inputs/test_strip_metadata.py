"""Images with intact pixels and broken metadata are decoded, with their orientation if it can be read."""

from __future__ import annotations

import struct
import warnings
import zlib
from collections.abc import Callable
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from ret_lightning.errors import DataError
from ret_lightning.inputs import decode_image, to_rgb
from ret_lightning.runtime.console import quiet_libraries
from tests.support.pictures import encoded, kind_of, picture

PICTURE = picture(24, 18)
TURNED = PICTURE.transpose(Image.Transpose.ROTATE_270)  # orientation 6
EXIF = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"  # orientation 6
ICC = bytes(range(256)) * 2


def assert_decodes_to(data: bytes, expected: Image.Image) -> None:
    decoded = decode_image(data)
    assert decoded.size == expected.size
    assert (np.asarray(decoded) == np.asarray(expected.convert("RGB"))).all()


# PNG.


def chunk(name: bytes, content: bytes, crc: int | None = None) -> bytes:
    crc = zlib.crc32(name + content) if crc is None else crc
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", crc)


def png(*chunks: bytes, after: bytes = b"", image: Image.Image = PICTURE) -> bytes:
    """Return a PNG with further chunks before and after its pixels."""
    data = encoded(image, "PNG")
    begins, ends = data.index(b"IDAT") - 4, data.index(b"IEND") - 4
    return data[:begins] + b"".join(chunks) + data[begins:ends] + after + data[ends:]


BROKEN_CHUNKS = {
    "EXIF without a header": chunk(b"eXIf", b"no TIFF header, but long enough for one"),
    "EXIF with an empty header": chunk(b"eXIf", b""),
    "EXIF with an offset beyond its end": chunk(b"eXIf", b"II*\0\xff\xff\xff\x7f"),
    "EXIF with a wrong checksum": chunk(b"eXIf", EXIF.replace(b"\x06", b"\x01"), crc=1),
    "EXIF profile that is not hexadecimal": chunk(b"tEXt", b"Raw profile type exif\0\nexif\n  9\nnot hex"),
    "colour profile of an unknown compression": chunk(b"iCCP", b"name\0\x07data"),
    "colour profile that ends early": chunk(b"iCCP", b"name\0"),
    "colour profile with a wrong checksum": chunk(b"iCCP", b"name\0\0" + zlib.compress(ICC), crc=1),
    "colour profile that grows without limit": chunk(b"iCCP", b"name\0\0" + zlib.compress(bytes(1 << 21))),
    "text that grows without limit": chunk(b"zTXt", b"key\0\0" + zlib.compress(bytes(1 << 21))),
    "text of an unknown compression": chunk(b"zTXt", b"key\0\x07data"),
    "text with a wrong checksum": chunk(b"tEXt", b"key\0value", crc=1),
    "more text than Pillow keeps": chunk(b"tEXt", b"key\0" + b"x" * (65 << 20)),
    "XMP that is not compressed": chunk(b"iTXt", b"XML:com.adobe.xmp\0\x01\0\0\0not deflated"),
    "XMP in another encoding": chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0\xff\xfe\xfd"),
    "gamma that ends early": chunk(b"gAMA", b"\0"),
    "chromaticity that ends early": chunk(b"cHRM", b"\0" * 30),
    "resolution that ends early": chunk(b"pHYs", b"\0"),
    "rendering intent that ends early": chunk(b"sRGB", b""),
    "time with a wrong checksum": chunk(b"tIME", bytes(7), crc=1),
    "transparency that ends early": chunk(b"tRNS", b"\0"),
    "transparency with a wrong checksum": chunk(b"tRNS", bytes(6), crc=1),
    "animation that ends early": chunk(b"acTL", b"\0"),
    "animation with a frame outside": chunk(b"acTL", bytes([0, 0, 0, 2, 0, 0, 0, 0]))
    + chunk(b"fcTL", struct.pack(">5I2H2B", 0, 24, 18, 9, 9, 1, 1, 0, 0)),
    "a chunk whose name has no letters": chunk(b"12!3", b"data"),
    "a private chunk with a wrong checksum": chunk(b"prVt", b"data", crc=1),
}  # fmt: skip


@pytest.mark.parametrize("broken", BROKEN_CHUNKS.values(), ids=BROKEN_CHUNKS)
@pytest.mark.parametrize("where", ["before", "after"])
def test_broken_png_chunks_are_ignored(broken: bytes, where: str) -> None:
    before, after = (broken, b"") if where == "before" else (b"", broken)
    assert_decodes_to(png(before, after=after), PICTURE)
    if b"eXIf" not in broken and b"exif" not in broken:
        assert_decodes_to(png(chunk(b"eXIf", EXIF), before, after=after), TURNED)


@pytest.mark.parametrize("length", [1, 40])
def test_png_truncated_in_text_chunk_is_decoded(length: int) -> None:
    data = png(chunk(b"eXIf", EXIF), after=chunk(b"tEXt", b"key\0" + b"value" * 20))
    assert_decodes_to(data[: data.index(b"key") + length], TURNED)


def test_intact_transparency_is_kept() -> None:
    image = Image.new("RGB", (4, 3), (1, 2, 3))
    key = chunk(b"tRNS", struct.pack(">3H", 1, 2, 3))
    assert_decodes_to(png(key, chunk(b"gAMA", b""), image=image), Image.new("RGB", (4, 3), "white"))
    palette = image.quantize(4)
    assert_decodes_to(
        png(chunk(b"tRNS", b"\0" * 4), chunk(b"gAMA", b""), image=palette), Image.new("RGB", (4, 3), "white")
    )


# JPEG.


def jpeg(*segments: tuple[int, bytes], image: Image.Image = PICTURE, jfif: bool = True) -> bytes:
    """Return a JPEG with further segments at its beginning."""
    data = encoded(image, "JPEG", quality=95)
    assert data[2:4] == b"\xff\xe0"
    rest = data[2:] if jfif else data[4 + int.from_bytes(data[4:6], "big") :]
    added = (struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content for marker, content in segments)
    return data[:2] + b"".join(added) + rest


BROKEN_SEGMENTS = {
    "JFIF that ends early": (0xE0, b"JFIF\0"),
    "EXIF without a header": (0xE1, b"Exif\0\0no TIFF header, but long enough"),
    "EXIF that is empty": (0xE1, b"Exif\0\0"),
    "EXIF with an offset beyond its end": (0xE1, b"Exif\0\0II*\0\xff\xff\xff\x7f"),
    "EXIF with more fields than bytes": (0xE1, b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + bytes(30)),
    "XMP that is not XML": (0xE1, b"http://ns.adobe.com/xap/1.0/\0\xff\xfe<<<"),
    "colour profile that ends early": (0xE2, b"ICC_PROFILE\0"),
    "colour profile of which a part is missing": (0xE2, b"ICC_PROFILE\0\x01\x02" + ICC),
    "pictures of a group that ends early": (0xE2, b"MPF\0II*\0\x08\0\0\0\x01\0"),
    "FlashPix that ends early": (0xE2, b"FPXR\0"),
    "Photoshop's resources that end early": (0xED, b"Photoshop 3.0\x008BIM\x03\xed"),
    "Adobe that ends early": (0xEE, b"Adobe"),
    "a comment that is not text": (0xFE, b"\xff\0\xff"),
    "a segment of unknown type": (0xE9, b"\xff\xd8\xff\xd9"),
}


@pytest.mark.parametrize("broken", BROKEN_SEGMENTS.values(), ids=BROKEN_SEGMENTS)
@pytest.mark.parametrize("jfif", [True, False])
def test_broken_jpeg_segments_are_ignored(broken: tuple[int, bytes], jfif: bool) -> None:
    expected = Image.open(BytesIO(jpeg()))
    assert_decodes_to(jpeg(broken, jfif=jfif), expected)
    if not broken[1].startswith(b"Exif"):
        turned = expected.transpose(Image.Transpose.ROTATE_270)
        assert_decodes_to(jpeg((0xE1, b"Exif\0\0" + EXIF), broken, jfif=jfif), turned)
        assert_decodes_to(jpeg(broken, (0xE1, b"Exif\0\0" + EXIF), jfif=jfif), turned)


def test_cmyk_jpeg_with_broken_segments() -> None:
    """Adobe's segment defines the colour space; it is not metadata."""
    red = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    data = encoded(red, "JPEG", quality=100)
    assert b"Adobe" in data
    broken = data[:2] + b"\xff\xe2\x00\x0eICC_PROFILE\0" + data[2:]
    with pytest.raises(OSError, match="cannot identify"):
        Image.open(BytesIO(broken))
    assert (np.asarray(decode_image(broken)) == np.asarray(decode_image(data))).all()


def test_reduced_jpeg_with_broken_segments() -> None:
    image = picture(640, 480)
    whole = jpeg((0xE1, b"Exif\0\0" + EXIF), image=image)
    broken = jpeg((0xE1, b"Exif\0\0" + EXIF), (0xE2, b"ICC_PROFILE\0"), image=image)
    reduced = decode_image(broken, least_side=120)
    assert reduced.size == (120, 160)
    assert (np.asarray(reduced) == np.asarray(decode_image(whole, least_side=120))).all()


# Other formats.


def riff(chunks: list[tuple[bytes, bytes, int | None]], size: int | None = None) -> bytes:
    body = b"WEBP"
    for name, content, stated in chunks:
        body += (
            name + struct.pack("<I", len(content) if stated is None else stated) + content + b"\0" * (len(content) % 2)
        )
    return b"RIFF" + struct.pack("<I", len(body) if size is None else size) + body


def webp_chunks(data: bytes) -> list[tuple[bytes, bytes, int | None]]:
    chunks, at = [], 12
    while at < len(data):
        size = int.from_bytes(data[at + 4 : at + 8], "little")
        chunks.append((data[at : at + 4], data[at + 8 : at + 8 + size], None))
        at += 8 + size + size % 2
    return chunks


@pytest.mark.parametrize("image", [PICTURE, PICTURE.convert("RGBA")], ids=["RGB", "RGBA"])
@pytest.mark.parametrize("lossless", [True, False])
def test_broken_webp_chunks_are_ignored(image: Image.Image, lossless: bool) -> None:
    options = {"lossless": lossless, "exact": True}
    upright = decode_image(encoded(image, "WEBP", **options))
    turned = upright.transpose(Image.Transpose.ROTATE_270)
    data = encoded(image, "WEBP", exif=b"Exif\0\0" + EXIF, icc_profile=ICC, xmp=b"<x:xmpmeta/>", **options)
    chunks = webp_chunks(data)
    names = [name for name, *_ in chunks]
    assert {b"VP8X", b"ICCP", b"EXIF", b"XMP "} <= set(names)
    assert_decodes_to(data, turned)

    def changed(name: bytes, content: bytes, size: int | None = None) -> bytes:
        return riff([(name, content, size) if chunk[0] == name else chunk for chunk in chunks])

    assert_decodes_to(changed(b"ICCP", b""), turned)
    assert_decodes_to(changed(b"XMP ", b"\xff\xfe<<<"), turned)
    assert_decodes_to(changed(b"EXIF", b"no TIFF header, but long enough"), upright)
    assert_decodes_to(changed(b"EXIF", b""), upright)
    assert_decodes_to(changed(b"EXIF", EXIF, 1 << 30), upright)
    assert_decodes_to(data[: data.index(b"XMP ")], turned)
    assert_decodes_to(data[: data.index(b"XMP ") + 10], turned)
    assert_decodes_to(data[: data.index(b"EXIF") + 20], upright)
    assert_decodes_to(riff(chunks, size=100), turned)
    assert_decodes_to(riff(chunks, size=1 << 20), turned)
    assert kind_of(data[: data.index(b"EXIF") - 4]) in ("truncated_image", "unreadable_image")


def with_tiff_field(data: bytes, tag: int, kind: int, count: int, value: int) -> bytes:
    """Return a TIFF with one field changed."""
    order = "<" if data[:2] == b"II" else ">"
    (start,) = struct.unpack_from(f"{order}I", data, 4)
    (fields,) = struct.unpack_from(f"{order}H", data, start)
    for at in range(start + 2, start + 2 + 12 * fields, 12):
        if struct.unpack_from(f"{order}H", data, at)[0] == tag:
            return data[:at] + struct.pack(f"{order}HHII", tag, kind, count, value) + data[at + 12 :]
    raise AssertionError(f"no field {tag}")


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_deflate"])
@pytest.mark.parametrize("image", [PICTURE, PICTURE.convert("P"), PICTURE.convert("CMYK")], ids=["RGB", "P", "CMYK"])
def test_broken_tiff_fields_are_ignored(
    compression: str | None, image: Image.Image, capfd: pytest.CaptureFixture[str]
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    options = {"dpi": (72, 72), "description": "text", "icc_profile": ICC, "exif": exif, "compression": compression}
    data = encoded(image, "TIFF", **options)
    turned = image.convert("RGB").transpose(Image.Transpose.ROTATE_270)
    assert_decodes_to(data, turned)
    for tag in (270, 282, 283, 296, 34675):  # description, resolutions and their unit, colour profile
        for kind, count, value in ((2, 100, 1 << 30), (2, 1 << 31, 8), (5, 1, 1 << 31), (13, 9, 1 << 31), (0, 0, 0)):
            assert_decodes_to(with_tiff_field(data, tag, kind, count, value), turned)


def test_broken_gif_extensions_are_ignored() -> None:
    image = PICTURE.quantize(16)
    data = encoded(image, "GIF", comment=b"text", loop=3, duration=10)
    expected = Image.open(BytesIO(data)).convert("RGB")
    loops, control = data.index(b"\x21\xff"), data.index(b"\x21\xf9")
    assert data[loops + 14 : loops + 19] == b"\x03\x01\x03\0\0"
    assert_decodes_to(data[: loops + 14] + b"\0" + data[loops + 19 :], expected)  # without its number
    assert_decodes_to(data[: loops + 14] + b"\x01\x01\0" + data[loops + 19 :], expected)
    assert_decodes_to(data[: control + 2] + b"\x01\0\0" + data[control + 8 :], expected)
    assert_decodes_to(data[: control + 2] + b"\0" + data[control + 8 :], expected)
    assert_decodes_to(data[:-1], expected)


def test_broken_avif_exif_is_ignored() -> None:
    options = {"quality": 100, "subsampling": "4:4:4"}
    expected = decode_image(encoded(PICTURE, "AVIF", **options))
    exif = Image.Exif()
    exif[0x0132] = "2020:01:01 00:00:00"
    data = encoded(PICTURE, "AVIF", exif=exif, icc_profile=ICC, **options)
    assert_decodes_to(data, expected)
    at = data.index(b"MM\0*")
    for broken in (b"none", b"\0\0\0\0"):
        data = data[:at] + broken + data[at + 4 :]
        with pytest.raises(ValueError, match="Exif"):
            Image.open(BytesIO(data))
        assert_decodes_to(data, expected)


def box(name: bytes, content: bytes, size: int | None = None) -> bytes:
    return struct.pack(">I4s", 8 + len(content) if size is None else size, name) + content


@pytest.mark.parametrize(
    "broken", [box(b"res ", box(b"resc", b"\0")), box(b"res ", bytes(9)), box(b"res ", bytes(9), size=500)]
)
def test_broken_jpeg_2000_resolution_is_ignored(broken: bytes) -> None:
    data = encoded(PICTURE, "JPEG2000", irreversible=False)
    header = data.index(b"jp2h") - 4
    (size,) = struct.unpack_from(">I", data, header)
    end = header + size
    assert_decodes_to(data, PICTURE)
    assert_decodes_to(
        data[:header] + struct.pack(">I", size + len(broken)) + data[header + 4 : end] + broken + data[end:], PICTURE
    )


@pytest.mark.parametrize("value", [0, -1, 2**31 - 1])
def test_invalid_bmp_resolution_is_ignored(value: int) -> None:
    data = encoded(PICTURE, "BMP")
    assert_decodes_to(data[:38] + struct.pack("<ii", value, value) + data[46:], PICTURE)


# Truncated pixels.


@pytest.mark.parametrize(
    "data",
    [
        png(chunk(b"gAMA", b""), chunk(b"eXIf", EXIF)),
        jpeg((0xE2, b"ICC_PROFILE\0"), (0xE1, b"Exif\0\0" + EXIF)),
        encoded(PICTURE, "WEBP", lossless=True, icc_profile=ICC),
        with_tiff_field(encoded(PICTURE, "TIFF", description="text", compression="raw"), 270, 2, 100, 1 << 30),
        encoded(PICTURE, "GIF", comment=b"text"),
    ],
    ids=["PNG", "JPEG", "WEBP", "TIFF", "GIF"],
)
def test_truncated_pixels_are_refused(data: bytes) -> None:
    for share in (0.5, 0.8, 0.95):
        assert kind_of(data[: int(share * len(data))]) in ("truncated_image", "unreadable_image")


def test_png_without_last_pixels_is_refused() -> None:
    """Also if whole chunks are missing and the remaining file looks complete."""
    data = encoded(picture(200, 150), "PNG")
    at = data.index(b"IDAT") - 4
    (size,) = struct.unpack_from(">I", data, at)
    pixels = data[at + 8 : at + 8 + size]
    for kept in (0, size // 2, size - 100):
        for broken in (b"", chunk(b"gAMA", b"")):
            torn = data[:at] + broken + chunk(b"IDAT", pixels[:kept]) + chunk(b"IEND", b"")
            assert kind_of(torn) in ("truncated_image", "unreadable_image")


def test_first_error_is_reported() -> None:
    with pytest.raises(DataError) as error:
        decode_image(png(chunk(b"gAMA", b""))[:-200])
    assert error.value.reason == "Truncated gAMA chunk"


@pytest.mark.parametrize(
    "save", [lambda exif: png(chunk(b"eXIf", exif)), lambda exif: jpeg((0xE1, b"Exif\0\0" + exif))]
)
def test_orientation_is_applied_once(save: Callable[[bytes], bytes]) -> None:
    turned = decode_image(save(EXIF))
    assert turned.size == TURNED.size
    assert to_rgb(turned).size == TURNED.size
    opened = Image.open(BytesIO(save(b"no TIFF header")))
    assert to_rgb(opened).size == PICTURE.size


def test_metadata_warnings_are_hidden_in_commands() -> None:
    data = png(BROKEN_CHUNKS["EXIF with an offset beyond its end"])
    with pytest.warns(UserWarning, match="Corrupt EXIF"):
        decode_image(data)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with quiet_libraries():
            assert_decodes_to(data, PICTURE)
            warnings.warn("not from Pillow", stacklevel=1)
    assert [str(each.message) for each in caught] == ["not from Pillow"]
