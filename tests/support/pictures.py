"""Small pictures, encoded."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from ret_lightning.errors import DataError
from ret_lightning.inputs import decode_image


def picture(width: int, height: int) -> Image.Image:
    random = np.random.default_rng(0)
    small = random.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, form: str, **options) -> bytes:
    file = BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def kind_of(data: bytes, **options) -> str:
    with pytest.raises(DataError) as error:
        decode_image(data, "some.jpg", **options)
    assert "\n" not in str(error.value)
    assert str(error.value).startswith("image some.jpg ")
    return error.value.kind
