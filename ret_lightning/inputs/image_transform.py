"""Image transforms: CLIP's preprocessing, and an affine augmentation for training."""

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

# A JPEG that is decoded at a reduced scale keeps a shorter side of at least this many times `size`.
REDUCED_MARGIN = 3


class ImageTransform(Preprocessor):
    """CLIP's preprocessing: resize the shorter side (bicubic, antialiased), crop the central square, normalize.

    Other transforms derive from this class and override `__call__`.

    Args:
        size: side of the square, in pixels.
        mean: mean of the three channels, for values in [0, 1].
        std: standard deviation of the three channels, for values in [0, 1].
        reduce: whether readers decode large JPEGs at 1/2, 1/4 or 1/8 of their size, as long as the shorter side keeps three
            times `size` pixels. Faster, with slightly different pixels.
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
        """Minimum side of a JPEG that is decoded at a reduced scale, in pixels; None: decode at full size."""
        return REDUCED_MARGIN * self.size if self.reduce else None

    def __call__(self, image: Image.Image) -> Tensor:
        """Transform an image.

        Args:
            image: an RGB image of any size.

        Returns:
            Pixels, (3, size, size) float32.
        """
        # NumPy, because it starts no threads, and several threads or processes transform images at the same time.
        pixels = np.ascontiguousarray(self._central_square(image).transpose(2, 0, 1)).astype(np.float32)
        pixels *= self._scale[:, None, None]
        pixels += self._shift[:, None, None]
        return torch.from_numpy(pixels)

    def _central_square(self, image: Image.Image) -> np.ndarray:
        """Resize and crop an image to (size, size, 3) uint8."""
        width, height = _exact_size(image)
        # The longer side is rounded down, as in torchvision's Resize.
        new_width, new_height = (
            (self.size, int(self.size * height / width))
            if width <= height
            else (int(self.size * width / height), self.size)
        )
        # An odd margin is larger at the right and the bottom, as in transformers; torchvision rounds to even.
        left, top = (new_width - self.size) // 2, (new_height - self.size) // 2
        right, bottom = left + self.size, top + self.size
        if min(width, height) == self.size:
            return np.asarray(image.crop((left, top, right, bottom)))
        if max(width, height) > 2 * min(width, height) or (width, height) != image.size:
            # Pillow resizes the square only, since a long image could need gigabytes, and supports fractions of a pixel.
            # It resizes tall images vertically first, as does the slow image processor of transformers.
            box = (
                left * width / new_width,
                top * height / new_height,
                right * width / new_width,
                bottom * height / new_height,
            )
            return np.asarray(image.resize((self.size, self.size), Image.Resampling.BICUBIC, box=box))
        # The uint8 resampling of PyTorch, which the fast processor of transformers also uses, is several times faster.
        resized = functional.interpolate(
            _as_tensor(image).permute(2, 0, 1)[None], (new_height, new_width), mode="bicubic", antialias=True
        )
        return resized[0].permute(1, 2, 0)[top:bottom, left:right].numpy()


def _exact_size(image: Image.Image) -> tuple[float, float]:
    size = image.info.get(EXACT_SIZE, image.size)
    # A different size means that the image was cropped after decoding.
    return size if tuple(map(math.ceil, size)) == image.size else image.size


def _as_tensor(image: Image.Image) -> Tensor:
    """Return the pixels (h, w, 3) uint8, which must not be modified."""
    try:
        return torch.from_dlpack(np.asarray(image))  # without a copy
    except BufferError:  # NumPy below 2.1 and older PyTorch versions do not share read-only memory
        return torch.from_numpy(np.array(image))


class Augmentation:
    """Random affine augmentation.

    Args:
        rotation: maximum angle in degrees, in both directions.
        shift: maximum displacement as a fraction of the image's side, in both directions.
        scale: maximum relative change of the size, in both directions.
        shear: maximum shear along x in degrees, in both directions.
    """

    def __init__(self, rotation: float = 0.0, shift: float = 0.0, scale: float = 0.0, shear: float = 0.0) -> None:
        self.rotation, self.shift, self.scale, self.shear = rotation, shift, scale, shear

    def __call__(self, image: Image.Image, random: np.random.Generator) -> Image.Image:
        """Augment an image.

        Args:
            image: an RGB image.
            random: source of randomness.

        Returns:
            The augmented image, of the same size. Pixels from outside the image get the colour of its upper left corner.
        """
        angle, shear, zoom, dx, dy = random.uniform(-1, 1, size=5) * np.array(
            [np.radians(self.rotation), np.radians(self.shear), self.scale, self.shift, self.shift]
        )
        width, height = image.size
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        forward = (1 + zoom) * turn @ np.array([[1, np.tan(shear)], [0, 1]])
        backward = np.linalg.inv(forward)  # Pillow expects the map from output to input pixels
        middle = np.array([width / 2, height / 2])
        offset = middle - backward @ (middle + np.array([dx * width, dy * height]))
        matrix = (backward[0, 0], backward[0, 1], offset[0], backward[1, 0], backward[1, 1], offset[1])
        background = image.getpixel((0, 0))
        return image.transform(
            image.size, Image.Transform.AFFINE, matrix, resample=Image.Resampling.BILINEAR, fillcolor=background
        )
