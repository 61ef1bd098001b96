"""Image files to pixels: decoding, CLIP's preprocessing, and the light augmentation of training."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ret_lightning.errors import DataError

OPENAI_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

# What Pillow raises on broken files: of PNGs SyntaxError, of AVIFs RuntimeError, of EXIF fields struct.error or TypeError.
_UNREADABLE = (
    OSError,
    SyntaxError,
    ValueError,
    RuntimeError,
    TypeError,
    EOFError,
    struct.error,
    Image.DecompressionBombError,
)


def open_image(path: str | Path) -> Image.Image:
    """Decodes an image file to RGB, see `rgb_image`.

    Raises:
        DataError: if the file is missing or cannot be decoded; the message names the file.
    """
    try:
        image = Image.open(path)
    except FileNotFoundError as error:
        raise DataError(f"image {path} does not exist") from error
    except _UNREADABLE as error:
        raise DataError(f"image {path} cannot be decoded: {error}") from error
    with image:
        return rgb_image(image)


def rgb_image(image: Image.Image) -> Image.Image:
    """A picture of any mode as RGB, turned as its EXIF orientation says, transparency laid on white, 16 bits scaled to 8.

    The picture given stays as it is, except that Pillow decodes one that was only opened.

    Raises:
        DataError: if it was only opened and cannot be decoded, or has no pixels; the message names its file, if any.
    """
    try:
        if 0 in image.size:
            raise ValueError(f"it is {image.width} by {image.height} pixels")
        upright = ImageOps.exif_transpose(image)
        if upright.mode.startswith("I;16") or upright.mode == "I":
            # Pillow clips 16-bit greys at 255 instead of scaling them.
            grey = (np.asarray(upright, dtype=np.float32) / 257).round().clip(0, 255)
            return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
        if upright.mode in ("RGBA", "RGBa", "LA", "PA") or "transparency" in upright.info:
            upright = upright.convert("RGBA")
            upright = Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright)
        return upright.convert("RGB")
    except _UNREADABLE as error:
        name = f"image {getattr(image, 'filename', '')}".rstrip()
        raise DataError(f"{name} cannot be decoded: {error}") from error


class ImageTransform:
    """CLIP's preprocessing: the shorter side resized to `size` (bicubic, antialiased), the middle square cut out, normalised.

    Args:
        size: side of the square, pixels.
        mean: of the three channels, for values in [0, 1].
        std: of the three channels, for values in [0, 1].
    """

    def __init__(
        self,
        size: int = 224,
        mean: tuple[float, float, float] = OPENAI_CLIP_MEAN,
        std: tuple[float, float, float] = OPENAI_CLIP_STD,
    ) -> None:
        self.size = size
        self.mean = tuple(mean)
        self.std = tuple(std)
        self._scale = (1 / (255 * np.array(self.std, dtype=np.float64))).astype(np.float32)
        self._shift = (-np.array(self.mean, dtype=np.float64) / np.array(self.std)).astype(np.float32)

    def __call__(self, image: Image.Image) -> Tensor:
        """Args: an RGB image of any size. Returns: (3, size, size) float32."""
        pixels = np.asarray(self._middle_square(image), dtype=np.float32)
        return torch.from_numpy((pixels * self._scale + self._shift).transpose(2, 0, 1).copy())

    def _middle_square(self, image: Image.Image) -> Image.Image:
        width, height = image.size
        short = min(width, height)
        if short != self.size:
            # The longer side is cut to whole pixels, as torchvision's Resize does it.
            new = (
                (self.size, int(self.size * height / width))
                if width <= height
                else (int(self.size * width / height), self.size)
            )
            image = image.resize(new, Image.Resampling.BICUBIC)
        # Half a pixel goes to the lower right, as in transformers; torchvision rounds to even.
        left, top = (image.width - self.size) // 2, (image.height - self.size) // 2
        return image.crop((left, top, left + self.size, top + self.size))


class Augmentation:
    """A light random affine change: what a scan or another printer would do to a picture.

    Args:
        rotation: largest angle, degrees, either way.
        shift: largest displacement, as a share of the image's side, either way.
        scale: largest change of size, as a share, either way.
        shear: largest shear along x, degrees, either way.
    """

    def __init__(self, rotation: float = 0.0, shift: float = 0.0, scale: float = 0.0, shear: float = 0.0) -> None:
        self.rotation, self.shift, self.scale, self.shear = rotation, shift, scale, shear

    def __call__(self, image: Image.Image, random: np.random.Generator) -> Image.Image:
        """The changed image, of the same size; what comes in from outside has the colour of the upper left corner."""
        angle, shear, zoom, dx, dy = random.uniform(-1, 1, size=5) * np.array(
            [np.radians(self.rotation), np.radians(self.shear), self.scale, self.shift, self.shift]
        )
        width, height = image.size
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        forward = (1 + zoom) * turn @ np.array([[1, np.tan(shear)], [0, 1]])
        backward = np.linalg.inv(forward)  # Pillow asks where each pixel of the result comes from
        middle = np.array([width / 2, height / 2])
        offset = middle - backward @ (middle + np.array([dx * width, dy * height]))
        matrix = (backward[0, 0], backward[0, 1], offset[0], backward[1, 0], backward[1, 1], offset[1])
        background = image.getpixel((0, 0))
        return image.transform(
            image.size, Image.Transform.AFFINE, matrix, resample=Image.Resampling.BILINEAR, fillcolor=background
        )
