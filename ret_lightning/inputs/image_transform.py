"""Pictures to pixels: CLIP's preprocessing, and the light augmentation of training."""

from __future__ import annotations

import math

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from ret_lightning.inputs.decoding import EXACT_SIZE
from ret_lightning.inputs.preprocessor import Preprocessor

OPENAI_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

# How much larger than the square a JPEG's shorter side stays when it is decoded at a reduced size.
REDUCED_MARGIN = 3


class ImageTransform(Preprocessor):
    """CLIP's preprocessing: the shorter side resized to `size` (bicubic, antialiased), the middle square cut out, normalised.

    A transform of another kind derives from it and overrides `__call__`.

    Args:
        size: side of the square, pixels.
        mean: of the three channels, for values in [0, 1].
        std: of the three channels, for values in [0, 1].
        reduce: whether readers decode large JPEGs at a half, a quarter or an eighth of their size, as long as the shorter side
            keeps three times `size` (see `least_side`). Measured against full decoding, in levels of 255: on smooth noise 0.4
            in the mean and at most 4, on fine lettering 1.2 and at most 20.
    """

    name = "clip"

    def __init__(
        self,
        size: int = 224,
        mean: tuple[float, float, float] = OPENAI_CLIP_MEAN,
        std: tuple[float, float, float] = OPENAI_CLIP_STD,
        reduce: bool = False,
    ) -> None:
        self.size = size
        self.mean = tuple(mean)
        self.std = tuple(std)
        self.reduce = reduce
        self._scale = (1 / (255 * np.array(self.std, dtype=np.float64))).astype(np.float32)
        self._shift = (-np.array(self.mean, dtype=np.float64) / np.array(self.std)).astype(np.float32)

    @property
    def least_side(self) -> int | None:
        """For `open_image`: what a JPEG's sides keep when it is decoded at a reduced size; None: decode it in full."""
        return REDUCED_MARGIN * self.size if self.reduce else None

    def __call__(self, image: Image.Image) -> Tensor:
        """Args: an RGB image of any size. Returns: (3, size, size) float32."""
        # NumPy, since it does not start threads: images are prepared in several threads or processes at once.
        pixels = np.ascontiguousarray(self._middle_square(image).transpose(2, 0, 1)).astype(np.float32)
        pixels *= self._scale[:, None, None]
        pixels += self._shift[:, None, None]
        return torch.from_numpy(pixels)

    def _middle_square(self, image: Image.Image) -> np.ndarray:
        """(size, size, 3) uint8."""
        width, height = _exact_size(image)
        # The longer side is cut to whole pixels, as torchvision's Resize does it.
        new_width, new_height = (
            (self.size, int(self.size * height / width))
            if width <= height
            else (int(self.size * width / height), self.size)
        )
        # Half a pixel goes to the lower right, as in transformers; torchvision rounds to even.
        left, top = (new_width - self.size) // 2, (new_height - self.size) // 2
        right, bottom = left + self.size, top + self.size
        if min(width, height) == self.size:
            return np.asarray(image.crop((left, top, right, bottom)))
        if max(width, height) > 2 * min(width, height) or (width, height) != image.size:
            # Of a long picture only the square is computed, or a few rows of pixels might ask for gigabytes. Pillow can do
            # that, and fractions of a pixel. It resamples tall pictures down first, as transformers' slow processor then does.
            box = (
                left * width / new_width,
                top * height / new_height,
                right * width / new_width,
                bottom * height / new_height,
            )
            return np.asarray(image.resize((self.size, self.size), Image.Resampling.BICUBIC, box=box))
        # PyTorch's resampling of bytes, which transformers' fast processor uses by way of torchvision: several times faster.
        resized = functional.interpolate(
            _as_tensor(image).permute(2, 0, 1)[None], (new_height, new_width), mode="bicubic", antialias=True
        )
        return resized[0].permute(1, 2, 0)[top:bottom, left:right].numpy()


def _exact_size(image: Image.Image) -> tuple[float, float]:
    size = image.info.get(EXACT_SIZE, image.size)
    return size if tuple(map(math.ceil, size)) == image.size else image.size  # else it was cut since


def _as_tensor(image: Image.Image) -> Tensor:
    """(h, w, 3) uint8, only to be read."""
    try:
        return torch.from_dlpack(np.asarray(image))  # without a copy
    except BufferError:  # NumPy below 2.1 and older PyTorch do not exchange memory that is only to be read
        return torch.from_numpy(np.array(image))


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
