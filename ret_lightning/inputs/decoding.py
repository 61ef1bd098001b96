"""Encoded images to RGB pictures: whatever real files hold, within a limit of size, or one clear line of what is wrong."""

from __future__ import annotations

import struct
import zlib
from contextlib import suppress
from functools import lru_cache
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

from ret_lightning.errors import DataError
from ret_lightning.inputs.near_names import near_file, near_names
from ret_lightning.inputs.strip_metadata import bare_images
from ret_lightning.runtime.git_lfs import refuse_lfs_pointer

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
    UserWarning,  # where the user's own filters make it an error
    struct.error,
    zlib.error,
)

# How the pixels of each EXIF orientation are turned.
_TURNED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_STATES_ORIENTATION = ("exif", "Raw profile type exif", "XML:com.adobe.xmp", "xmp")  # names in a picture's `info`


def open_image(path: str | Path, least_side: int | None = None, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode an image file to RGB, see `decode_image`.

    Raises:
        DataError: as `read_image_file` and `decode_image`; the message names the file.
    """
    return decode_image(read_image_file(path), str(path), least_side, max_pixels)


def read_image_file(path: str | Path, most: int = -1, root: Path | None = None) -> bytes:
    """Read an image file, undecoded.

    Args:
        path: the file.
        most: bytes that are read at most; 0 only finds out whether the file exists.
        root: the folder below which a missing file's near matches are searched; None: the folders on its path.

    Raises:
        DataError: of the kind `missing_image` where there is no such file, with `near`, the files of nearly that name;
            `unreadable_image` where it is a folder or may not be read.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            return file.read(most)
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:  # ValueError: a null byte, a lone surrogate
        if not isinstance(error, ValueError) and path.is_symlink():
            raise DataError(
                f"image {_shown(path)} is a symbolic link to {_shown(path.readlink())}, which does not exist",
                "missing_image",
                code="image-link-dangling",
                path=str(path),
                target=str(path.readlink()),
            ) from error
        asked = str(path) if root is None else str(path.relative_to(root))
        near = near_file(path) if root is None else near_names(root, asked)
        message = f"image {_shown(path)} does not exist{near.hint(asked)}"
        raise DataError(message, "missing_image", code="image-missing", path=str(path), near=near.names) from error
    except IsADirectoryError as error:
        message = f"image {_shown(path)} cannot be decoded: it is a folder"
        raise DataError(message, "unreadable_image", code="image-is-folder", path=str(path)) from error
    except OSError as error:
        reason = error.strerror or str(error)
        message = f"image {_shown(path)} cannot be read: {reason}"
        raise DataError(message, "unreadable_image", code="image-not-read", path=str(path), reason=reason) from error


def decode_image(
    data: bytes, name: str = "", least_side: int | None = None, max_pixels: int = MAX_PIXELS
) -> Image.Image:
    """Decode an encoded image to RGB, as `rgb_image` does; of an animation the first frame.

    Metadata that is broken (EXIF, colour profile, texts, resolution) does not matter as long as the pixels can be decoded.

    Args:
        data: a file's content: JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF, JPEG 2000, PPM, ICO or TGA.
        name: for messages.
        least_side: a JPEG is decoded at a half, a quarter or an eighth of its size as long as both its sides keep this
            many pixels, which leaves out most of the work of large ones; None: at full size.
        max_pixels: an image that has more, by its header, is not decoded; at most twice Pillow's own limit counts.

    Raises:
        DataError: of the kind `image_too_large`, `truncated_image` (where Pillow reports it), `lfs_pointer` or
            `unreadable_image`; the message names the image.
    """
    called = f"image {_shown(name)}".rstrip()
    if not data:
        raise DataError(f"{called} cannot be decoded: it is empty", "unreadable_image", code="image-empty", image=name)
    refuse_lfs_pointer(called, data)
    try:
        return _decoded(data, called, least_side, max_pixels)
    except DataError as error:
        if error.kind == "image_too_large":
            raise
        for bare in bare_images(data):
            with suppress(DataError):
                return _decoded(bare, called, least_side, max_pixels)
        raise


def _decoded(data: bytes, called: str, least_side: int | None, max_pixels: int) -> Image.Image:
    try:
        image = Image.open(BytesIO(data), formats=_known_formats())
    except Image.DecompressionBombError as error:
        raise _too_large(f"more than {PILLOW_REFUSES:,} pixels", called, min(max_pixels, PILLOW_REFUSES)) from error
    except Image.UnidentifiedImageError as error:
        message = f"{called} cannot be decoded: it is not whole, or not an image ({', '.join(_known_formats())})"
        raise DataError(message, "unreadable_image", code="image-format-unknown", allowed=_known_formats()) from error
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
        if (turn := _turn(image)) is not None:
            image = image.transpose(turn)
            for name in _STATES_ORIENTATION:  # a later call must not turn it again
                image.info.pop(name, None)
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
        if _turn(image) is not None:
            return  # the partly covered pixels would be at the left or the top
        image.info[EXACT_SIZE] = width / scale, height / scale
    if scale > 1:
        image.draft(None, (width // scale, height // scale))


def _turn(image: Image.Image) -> Image.Transpose | None:
    """How the pixels must be turned by EXIF or XMP; None where these state nothing, or cannot be read."""
    try:
        return _TURNED.get(image.getexif().get(ExifTags.Base.Orientation))
    except _UNREADABLE:
        return None


@lru_cache(maxsize=1)
def _known_formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)  # some need libraries that a build may lack


def _too_large(size: str, called: str, limit: int) -> DataError:
    return DataError(
        f"{called} is too large: it has {size}, and the limit max_pixels (data.max_image_pixels) is {limit:,}",
        "image_too_large",
        code="image-too-large",
        found=size,
        allowed=limit,
    )


def _unreadable(called: str, error: Exception) -> DataError:
    text = " ".join(str(error).split()) or type(error).__name__
    kind = "truncated_image" if "truncated" in text.lower() else "unreadable_image"
    return DataError(f"{called} cannot be decoded: {text}", kind, code="image-not-decoded", reason=text)


def _shown(name: object) -> str:
    """A name on one line, quoted where spaces at its ends would not show: those in archives and rows may hold anything."""
    text = str(name)
    return text if text.isprintable() and text == text.strip() else repr(text)
