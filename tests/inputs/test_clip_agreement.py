"""Tokenizer and image transform compared with open_clip and transformers."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable

import numpy as np
import pytest
import torch
from open_clip import SimpleTokenizer, image_transform
from open_clip.tokenizer import basic_clean
from PIL import Image
from transformers import CLIPImageProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from ret_lightning.inputs import ClipTokenizer, ImageTransform, to_rgb

# Tokenizer. Ours equals that of transformers, which the published code uses; open_clip also cleans the text.

TEXTS = [
    "a photo of a cat",
    "",
    "   ",
    "  Which\tUnicode\nblock\r\n is U+00E9 in?  It's LATIN-1!! ",
    "I'M sure they've, we'll, don't, 'tis",
    "naïve café déjà-vu ÀÉÎÕÜ ñ Å e\u0301 A\u0327",
    "Ελληνικά, кириллица, العربية, עברית, हिन्दी, ไทย",
    "日本語の説明文, 中文 字符, 한국어",
    "🙂 👩‍👩‍👧‍👦 🇫🇷 ❤️",
    "1234567890 3.14 ½ ² Ⅷ ٣",
    "(a) [b] {c} <d> a_b-c__d !!!??? … — § © ™",
    "http://example.org/a?b=1#c",
    "a\u00a0b\u3000c\u2028d\u200be",
    "word " * 100,
    "x" * 500,
]
CLEANED = [  # repairs of ftfy, and HTML entities
    "&amp; &lt;b&gt; caf&eacute; &#39;quoted&#39; &amp;amp; &#x1F600;",
    "“curly” ‘quotes’ don’t",
    "schÃ¶n",
    "ﬁne ﬂow ﬀ ŉ ǅ",
    "ｆｕｌｌ　ｗｉｄｔｈ ｶﾅ",
    "\ufeffbom \x07bell \x1b[31mred\x1b[0m a\x85b",
]  # fmt: skip


def differing(texts: list[str], clean: bool = False) -> list[str]:
    """Return the texts whose ids differ from open_clip's, without padding; `clean`: clean the texts as open_clip does."""
    theirs = SimpleTokenizer()(texts)
    ids, mask = ClipTokenizer()([basic_clean(text) for text in texts] if clean else texts)
    lengths = (theirs == 49407).int().argmax(dim=1) + 1
    return [
        text
        for text, row, count, their_row, length in zip(texts, ids, mask.sum(dim=1), theirs, lengths, strict=True)
        if count != length or not torch.equal(row[:count], their_row[:length])
    ]


def test_ids_equal_open_clip() -> None:
    assert differing(TEXTS) == []


def test_ids_differ_if_open_clip_cleans_text() -> None:
    """The published code uses AutoTokenizer of transformers 4.45 without ftfy, so our tokenizer does not clean texts either."""
    assert differing(CLEANED) == CLEANED
    assert differing(CLEANED, clean=True) == []
    # Remaining differences: Python lowercases sigma by its position in the word, and transformers reads the name of a
    # special token in a text as that token.
    remaining = ["ΑΣ", "a <|endoftext|> b"]
    assert differing(remaining, clean=True) == remaining


@pytest.mark.slow
def test_all_cleaned_characters_equal_open_clip() -> None:
    old = unicodedata.ucd_3_2_0  # a version that all libraries support
    characters = [c for c in map(chr, range(1, 0x30000)) if old.category(c) not in ("Cn", "Cs")]
    assert len(characters) > 90_000
    texts = [f"a{c}b {c}" for c in characters]
    found = [text for i in range(0, len(texts), 4096) for text in differing(texts[i : i + 4096], clean=True)]
    assert found == ["a\u0345b \u0345"]  # the ypogegrammeni, whose upper case is a letter


# Image preprocessing.

SIZES = [
    (1, 1), (7, 5), (1, 50), (31, 57), (57, 31), (223, 223), (224, 224), (225, 225), (224, 300), (449, 224), (640, 480),
    (480, 640), (1000, 225), (225, 1000), (300, 700), (2000, 30), (341, 227), (1920, 1080), (1080, 1920), (1501, 1002),
]  # fmt: skip


def noise(width: int, height: int) -> Image.Image:
    """Return noise, for which resampling methods differ most."""
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def difference(ours: torch.Tensor, theirs: torch.Tensor) -> tuple[float, float]:
    """Return the maximum and mean difference in levels of 255."""
    levels = ((ours - theirs) * 255 * torch.tensor(ImageTransform().std)[:, None, None]).abs()
    return float(levels.max()), float(levels.mean())


@pytest.mark.parametrize("size", SIZES)
def test_pixels_equal_open_clip(size: tuple[int, int]) -> None:
    """If 4n + 3 pixels are cropped, the crops differ by one pixel, because torchvision rounds half to even."""
    transform = ImageTransform(224)
    theirs = image_transform(224, is_train=False, mean=transform.mean, std=transform.std)(noise(*size))
    ours = transform(noise(*size))
    short, long = sorted(size)
    if (int(224 * long / short) - 224) % 4 == 3:
        along = 2 if size[0] > size[1] else 1
        ours, theirs = ours.narrow(along, 1, 223), theirs.narrow(along, 0, 223)
    largest, mean = difference(ours, theirs)
    assert largest < 2.01
    assert mean < 0.01


@pytest.mark.parametrize("size", SIZES)
def test_pixels_equal_transformers_slow_processor(size: tuple[int, int]) -> None:
    """The slow processor resamples with Pillow, as the published code does."""
    largest, mean = difference(ImageTransform(224)(noise(*size)), processed(CLIPImageProcessorPil(), noise(*size)))
    assert largest < 2.01
    assert mean < 0.01


@pytest.mark.parametrize("size", SIZES)
def test_pixels_equal_transformers_fast_processor(size: tuple[int, int]) -> None:
    """The fast processor resamples with PyTorch, as ours does up to 2:1. Pillow resizes taller images in another order."""
    largest, _ = difference(ImageTransform(224)(noise(*size)), processed(CLIPImageProcessor(), noise(*size)))
    width, height = size
    if max(size) <= 2 * min(size):
        assert largest < 1e-3
    else:
        assert largest < (2.01 if width > height else 30)


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1", "CMYK"])
def test_pixels_of_all_modes_equal_transformers(mode: str) -> None:
    image = noise(300, 280).convert(mode)
    if mode in ("LA", "RGBA"):
        image.putalpha(noise(300, 280).getchannel("R"))
    largest, mean = difference(ImageTransform(224)(to_rgb(image)), processed(CLIPImageProcessorPil(), image))
    assert largest < 2.01
    assert mean < 0.02


def processed(processor: Callable, image: Image.Image) -> torch.Tensor:
    return processor(image, return_tensors="pt")["pixel_values"][0]
