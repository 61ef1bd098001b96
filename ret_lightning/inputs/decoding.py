"""Decoding of image files to RGB images."""

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
from ret_lightning.inputs.near_names import find_near_files, find_near_names
from ret_lightning.inputs.strip_metadata import strip_metadata
from ret_lightning.runtime.git_lfs import refuse_lfs_pointer

# Pillow warns above this number of pixels, and raises above twice this number.
MAX_PIXELS = 89_478_485
PILLOW_MAX_PIXELS = 2 * MAX_PIXELS

# Key in `Image.info`: the exact size at the reduced scale, if it is not a whole number of pixels.
EXACT_SIZE = "ret_lightning_exact_size"

# Allowed formats of Pillow. Others run programs (EPS calls Ghostscript) or are not images.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM", "ICO", "TGA")

# Exceptions of Pillow for broken files: SyntaxError for PNG, RuntimeError for AVIF, struct.error or TypeError for EXIF.
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
    UserWarning,  # if a warning filter of the user makes it an error
    struct.error,
    zlib.error,
)

# Transposition that corrects each EXIF orientation.
_TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ORIENTATION_KEYS = ("exif", "Raw profile type exif", "XML:com.adobe.xmp", "xmp")  # in `Image.info`


def open_image(path: str | Path, least_side: int | None = None, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Read and decode an image file to RGB.

    Args:
        path: the image file.
        least_side: minimum side in pixels of a JPEG that is decoded at a reduced scale; None: decode at full size.
        max_pixels: maximum number of pixels.

    Raises:
        DataError: if the file is missing, too large or cannot be decoded; the message names the file.
    """
    return decode_image(read_image_file(path), str(path), least_side, max_pixels)


def read_image_file(path: str | Path, max_bytes: int = -1, root: Path | None = None) -> bytes:
    """Read the bytes of an image file.

    Args:
        path: the image file.
        max_bytes: maximum number of bytes to read; -1: all, 0: only check that the file exists.
        root: folder in which files with a similar path are searched if the file is missing; None: the folders of `path`.

    Raises:
        DataError: of the kind `missing_image` if the file does not exist, with `near`, the files with a similar name; of the
            kind `unreadable_image` if it is a folder or cannot be read.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            return file.read(max_bytes)
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:  # ValueError: null byte or unpaired surrogate
        if not isinstance(error, ValueError) and path.is_symlink():
            raise DataError(
                f"image {_quote_name(path)} is a symbolic link to {_quote_name(path.readlink())}, which does not exist",
                "missing_image",
                code="image-link-dangling",
                path=str(path),
                target=str(path.readlink()),
            ) from error
        requested = str(path) if root is None else str(path.relative_to(root))
        near = find_near_files(path) if root is None else find_near_names(root, requested)
        message = f"image {_quote_name(path)} does not exist{near.hint(requested)}"
        raise DataError(message, "missing_image", code="image-missing", path=str(path), near=near.names) from error
    except IsADirectoryError as error:
        message = f"image {_quote_name(path)} cannot be decoded: expected a file, got a folder"
        raise DataError(message, "unreadable_image", code="image-is-folder", path=str(path)) from error
    except OSError as error:
        reason = error.strerror or str(error)
        message = f"image {_quote_name(path)} cannot be read: {reason}"
        raise DataError(message, "unreadable_image", code="image-not-read", path=str(path), reason=reason) from error


def decode_image(
    data: bytes, name: str = "", least_side: int | None = None, max_pixels: int = MAX_PIXELS
) -> Image.Image:
    """Decode an image to RGB.

    The image is rotated by its EXIF orientation, transparency is composited on white, and of an animation the first frame is
    decoded. Broken metadata (EXIF, colour profile, texts, resolution) is ignored if the pixels can be decoded.

    Args:
        data: content of an image file: JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF, JPEG 2000, PPM, ICO or TGA.
        name: name of the image, for error messages.
        least_side: a JPEG is decoded at 1/2, 1/4 or 1/8 of its size, which is faster, as long as both sides keep this number of
            pixels; None: decode at full size.
        max_pixels: maximum number of pixels, as stated by the header of the image; values above twice the limit of Pillow
            have no effect.

    Raises:
        DataError: of the kind `image_too_large`, `truncated_image` (if Pillow reports it), `lfs_pointer` or
            `unreadable_image`; the message names the image.
    """
    title = f"image {_quote_name(name)}".rstrip()
    if not data:
        raise DataError(
            f"{title} cannot be decoded: the file is empty", "unreadable_image", code="image-empty", image=name
        )
    refuse_lfs_pointer(title, data)
    try:
        return _decode(data, title, least_side, max_pixels)
    except DataError as error:
        if error.kind == "image_too_large":
            raise
        for stripped in strip_metadata(data):
            with suppress(DataError):
                return _decode(stripped, title, least_side, max_pixels)
        raise


def _decode(data: bytes, title: str, least_side: int | None, max_pixels: int) -> Image.Image:
    try:
        image = Image.open(BytesIO(data), formats=_known_formats())
    except Image.DecompressionBombError as error:
        raise _too_large_error(
            f"more than {PILLOW_MAX_PIXELS:,} pixels", title, min(max_pixels, PILLOW_MAX_PIXELS)
        ) from error
    except Image.UnidentifiedImageError as error:
        message = f"{title} cannot be decoded: truncated, or not one of {', '.join(_known_formats())}"
        raise DataError(message, "unreadable_image", code="image-format-unknown", allowed=_known_formats()) from error
    except Image.DecompressionBombWarning as error:  # if a warning filter of the user makes it an error
        raise _too_large_error(f"more than {MAX_PIXELS:,} pixels", title, max_pixels) from error
    except _UNREADABLE as error:
        raise _unreadable_error(title, error) from error
    with image:
        width, height = image.size
        if width * height > max_pixels:
            raise _too_large_error(f"{width * height:,} pixels ({width} x {height})", title, max_pixels)
        if least_side is not None and image.format in ("JPEG", "MPO"):
            _set_scale(image, least_side)
        return _convert_to_rgb(image, title)


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image of any mode to RGB and apply its EXIF orientation.

    Transparency is composited on white, as in the image processors of transformers; open_clip uses the stored colour of
    transparent pixels. 16-bit greys are scaled to 8 bits, whereas Pillow clips most of them to white.

    Args:
        image: an image, which is not modified. If it was opened lazily, Pillow decodes it.

    Returns:
        A new RGB image.

    Raises:
        DataError: of the kind `truncated_image` or `unreadable_image`, if the image cannot be decoded or has no pixels; the
            message names its file, if there is one.
    """
    rgb = _convert_to_rgb(image, f"image {_quote_name(getattr(image, 'filename', ''))}".rstrip())
    return rgb.copy() if rgb is image else rgb


def _convert_to_rgb(image: Image.Image, title: str) -> Image.Image:
    """Convert an image to RGB; may return `image` itself."""
    try:
        if 0 in image.size:
            raise ValueError(f"size is {image.width} x {image.height} pixels")
        image.load()
        if (transposition := _find_transposition(image)) is not None:
            image = image.transpose(transposition)
            for key in _ORIENTATION_KEYS:  # a later call must not transpose it again
                image.info.pop(key, None)
        if image.mode.startswith("I"):
            grey = (np.asarray(image, dtype=np.float32) / 257).round().clip(0, 255)
            return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
        if image.mode == "La":
            image = image.convert("LA")  # the only conversion that Pillow supports
        if "A" in image.mode or "a" in image.mode or "transparency" in image.info:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return image if image.mode == "RGB" else image.convert("RGB")
    except _UNREADABLE as error:
        raise _unreadable_error(title, error) from error


def _set_scale(image: Image.Image, least_side: int) -> None:
    """Set the scale at which a JPEG will be decoded: the smallest one with both sides of at least `least_side` pixels."""
    width, height = image.size
    scale = next((s for s in (8, 4, 2) if min(width, height) >= s * least_side), 1)
    if width % scale or height % scale:
        if _find_transposition(image) is not None:
            return  # the partly covered pixels would not be at the right and the bottom
        image.info[EXACT_SIZE] = width / scale, height / scale
    if scale > 1:
        image.draft(None, (width // scale, height // scale))


def _find_transposition(image: Image.Image) -> Image.Transpose | None:
    """Return the transposition for the orientation in EXIF or XMP; None if there is none, or it cannot be read."""
    try:
        return _TRANSPOSITIONS.get(image.getexif().get(ExifTags.Base.Orientation, 0))
    except _UNREADABLE:
        return None


@lru_cache(maxsize=1)
def _known_formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)  # some need optional libraries of Pillow


def _too_large_error(size: str, title: str, limit: int) -> DataError:
    return DataError(
        f"{title} is too large: expected at most {limit:,} pixels (max_pixels, data.max_image_pixels), got {size}",
        "image_too_large",
        code="image-too-large",
        found=size,
        allowed=limit,
    )


def _unreadable_error(title: str, error: Exception) -> DataError:
    text = " ".join(str(error).split()) or type(error).__name__
    kind = "truncated_image" if "truncated" in text.lower() else "unreadable_image"
    return DataError(f"{title} cannot be decoded: {text}", kind, code="image-not-decoded", reason=text)


def _quote_name(name: object) -> str:
    """Quote a name if it contains unprintable characters, or begins or ends with spaces."""
    text = str(name)
    return text if text.isprintable() and text == text.strip() else repr(text)
