"""CLIP's tokenizer compared with open_clip's implementation."""

from __future__ import annotations

import torch

from ret_lightning.inputs import ClipTokenizer

TEXTS = [
    "a photo of a cat",
    "",
    "  Which Unicode block is U+00E9 in?  It's LATIN-1!!",
    "naïve café déjà-vu, Ελληνικά, кириллица, 日本語, 🙂",
    "1234567890 3.14 (a) [b] {c} don't they've",
    "word " * 100,
]


def test_ids_equal_open_clip() -> None:
    from open_clip.tokenizer import SimpleTokenizer

    expected = SimpleTokenizer()(TEXTS)
    ids, mask = ClipTokenizer()(TEXTS)
    assert ids.dtype == torch.int64
    assert mask.dtype == torch.bool
    assert ids.shape == mask.shape == (len(TEXTS), 77)
    for row in range(len(TEXTS)):
        length = int(mask[row].sum())
        assert torch.equal(ids[row, :length], expected[row, :length])
        assert not expected[row, length:].any()  # open_clip pads with 0


def test_texts_are_padded_on_the_right() -> None:
    ids, mask = ClipTokenizer()(["a cat", "a cat on a mat"])
    assert ids.shape == (2, 7)
    assert mask.sum(dim=1).tolist() == [4, 7]
    assert mask[0].tolist() == [True] * 4 + [False] * 3


def test_truncated_text_keeps_end_token() -> None:
    ids, mask = ClipTokenizer(max_length=8)(["one two three four five six seven eight nine ten"])
    assert ids.shape == (1, 8)
    assert mask.all()
    assert ids[0, -1] == 49407
