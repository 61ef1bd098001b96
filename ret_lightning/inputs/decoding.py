"""Encoded images to RGB pictures: whatever real files hold, within a limit of size, or one clear line of what is wrong."""

from __future__ import annotations

import struct
import warnings
import zlib
from functools import lru_cache
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps

from ret_lightning.errors import DataError

# Pillow's own limit. Beyond twice as many pixels Pillow refuses by itself.
MAX_PIXELS = 89_478_485
PILLOW_REFUSES = 2 * MAX_PIXELS

# In a picture's `info`: its size at the reduced scale before rounding up, where that is no whole number of pixels.
EXACT_SIZE = "ret_lightning_exact_size"

# Of what Pillow reads, the formats that pictures come in. Others run programs (EPS calls Ghostscript) or are no pictures.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM", "ICO", "TGA")

# What Pillow raises on broken files: of PNGs SyntaxError, of AVIFs RuntimeError, of EXIF fields struct.error or TypeError.
_UNREADABLE = (
    OSError,
    SyntaxError,
    ValueError,
    RuntimeError,
    TypeError,
    EOFError,
    LookupError,
    ArithmeticError,
    AttributeError,
    AssertionError,
    MemoryError,
    struct.error,
    zlib.error,
)

# Pillow warns of large images when it opens them; here they are refused by a limit of ours, right after.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def open_image(path: str | Path, least_side: int | None = None, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decodes an image file to RGB, see `decode_image`.

    Raises:
        DataError: of the kind `missing_image` where there is no such file, `unreadable_image` where it is a folder or may
            not be read, or as `decode_image` does; the message names the file.
    """
    return decode_image(read_image_file(path), str(path), least_side, max_pixels)


def read_image_file(path: str | Path, most: int = -1) -> bytes:
    """The bytes of a file, at most so many; with 0 of them it is only found out whether the file is there.

    Raises:
        DataError: as `open_image`.
    """
    try:
        with Path(path).open("rb") as file:
            return file.read(most)
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:  # ValueError: a null byte, a lone surrogate
        raise DataError(f"image {_shown(path)} does not exist", "missing_image") from error
    except IsADirectoryError as error:
        raise DataError(f"image {_shown(path)} cannot be decoded: it is a folder", "unreadable_image") from error
    except OSError as error:
        message = f"image {_shown(path)} cannot be read: {error.strerror or error}"
        raise DataError(message, "unreadable_image") from error


def decode_image(
    data: bytes, name: str = "", least_side: int | None = None, max_pixels: int = MAX_PIXELS
) -> Image.Image:
    """Decodes an encoded image to RGB, as `rgb_image` does; of an animation the first frame.

    Args:
        data: a file's content: JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF, JPEG 2000, PPM, ICO or TGA.
        name: for messages.
        least_side: a JPEG is decoded at a half, a quarter or an eighth of its size as long as both its sides keep this
            many pixels, which leaves out most of the work of large ones; None: at full size.
        max_pixels: an image that has more, by its header, is not decoded; at most twice Pillow's own limit counts.

    Raises:
        DataError: of the kind `image_too_large`, `truncated_image` (by what Pillow says: of some formats it cannot tell) or
            `unreadable_image`; the message names the image.
    """
    called = f"image {_shown(name)}".rstrip()
    if not data:
        raise DataError(f"{called} cannot be decoded: it is empty", "unreadable_image")
    try:
        image = Image.open(BytesIO(data), formats=_known_formats())
    except Image.DecompressionBombError as error:
        raise _too_large(f"more than {PILLOW_REFUSES:,} pixels", called, min(max_pixels, PILLOW_REFUSES)) from error
    except Image.UnidentifiedImageError as error:
        message = f"{called} cannot be decoded: it is not whole, or not an image ({', '.join(_known_formats())})"
        raise DataError(message, "unreadable_image") from error
    except Image.DecompressionBombWarning as error:  # where the user's own filters make it an error
        raise _too_large(f"more than {MAX_PIXELS:,} pixels", called, max_pixels) from error
    except _UNREADABLE as error:
        raise _unreadable(called, error) from error
    with image:
        width, height = image.size
        if width * height > max_pixels:
            raise _too_large(f"{width * height:,} pixels ({width} by {height})", called, max_pixels)
        if least_side is not None and image.format in ("JPEG", "MPO"):
            _reduce(image, least_side)
        return _rgb(image, called)


def rgb_image(image: Image.Image) -> Image.Image:
    """A picture of any mode as RGB, turned as its EXIF orientation says.

    Transparency is laid on white, as transformers' processors do; open_clip's shows whatever colour a file stores for
    transparent pixels. Greys of 16 bits are scaled to 8; Pillow's own conversion would clip nearly all of them to white.

    The picture given stays as it is, except that Pillow decodes one that was only opened.

    Raises:
        DataError: if it was only opened and cannot be decoded, or has no pixels, of the kinds `truncated_image` or
            `unreadable_image`; the message names its file, if any.
    """
    rgb = _rgb(image, f"image {_shown(getattr(image, 'filename', ''))}".rstrip())
    return rgb.copy() if rgb is image else rgb


def _rgb(image: Image.Image, called: str) -> Image.Image:
    """As `rgb_image`; may be the very picture given."""
    try:
        if 0 in image.size:
            raise ValueError(f"it is {image.width} by {image.height} pixels")
        image.load()
        if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:  # exif_transpose would copy an upright picture
            image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I"):
            grey = (np.asarray(image, dtype=np.float32) / 257).round().clip(0, 255)
            return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
        if image.mode == "La":
            image = image.convert("LA")  # Pillow converts it to nothing else
        if "A" in image.mode or "a" in image.mode or "transparency" in image.info:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return image if image.mode == "RGB" else image.convert("RGB")
    except _UNREADABLE as error:
        raise _unreadable(called, error) from error


def _reduce(image: Image.Image, least_side: int) -> None:
    """Has a JPEG, only opened, decoded at the smallest scale that leaves both sides `least_side` pixels."""
    width, height = image.size
    scale = next((s for s in (8, 4, 2) if min(width, height) >= s * least_side), 1)
    if width % scale or height % scale:
        if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
            return  # the pixels that are covered in part would stand at the left or the top
        image.info[EXACT_SIZE] = width / scale, height / scale
    if scale > 1:
        image.draft(None, (width // scale, height // scale))


@lru_cache(maxsize=1)
def _known_formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)  # some need libraries that a build may lack


def _too_large(size: str, called: str, limit: int) -> DataError:
    return DataError(
        f"{called} is too large: it has {size}, and the limit max_pixels (data.max_image_pixels) is {limit:,}",
        "image_too_large",
    )


def _unreadable(called: str, error: Exception) -> DataError:
    text = " ".join(str(error).split()) or type(error).__name__
    kind = "truncated_image" if "truncated" in text.lower() else "unreadable_image"
    return DataError(f"{called} cannot be decoded: {text}", kind)


def _shown(name: object) -> str:
    """A name on one line: those in archives and rows may hold anything."""
    text = str(name)
    return text if text.isprintable() else repr(text)
