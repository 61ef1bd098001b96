"""Image files to pixels: decoding, CLIP's preprocessing, and the light augmentation of training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ret_lightning.errors import DataError

OPENAI_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def open_image(path: str | Path) -> Image.Image:
    """Decodes an image file to RGB, turned as its EXIF orientation says, transparency laid on white.

    Raises:
        DataError: if the file is missing or cannot be decoded; the message names the file.
    """
    try:
        with Image.open(path) as image:
            image = ImageOps.exif_transpose(image)
            if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            elif image.mode.startswith("I;16") or image.mode == "I":
                # Pillow clips 16-bit greys at 255 instead of scaling them.
                image = Image.fromarray(
                    (np.asarray(image, dtype=np.float32) / 257).round().clip(0, 255).astype(np.uint8)
                )
            return image.convert("RGB")
    except FileNotFoundError as error:
        raise DataError(f"image {path} does not exist") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        # Pillow reports a broken PNG as SyntaxError and a truncated one as OSError.
        raise DataError(f"image {path} cannot be decoded: {error}") from error


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
        left, top = round((image.width - self.size) / 2), round((image.height - self.size) / 2)
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
