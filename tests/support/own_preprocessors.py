"""A tokenizer with a vocabulary file and an image transform, both of the user's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ret_lightning.inputs import ImageTransform, Tokenizer

WORDS = "[pad]\n[other]\na\ncat\ndog\nred\n"


class WordTokenizer(Tokenizer):
    """One id per word, by the line of a file."""

    name = "tests_words"

    def __init__(self, vocabulary: str | Path, max_length: int = 12, lower: bool = True) -> None:
        self._read(Path(vocabulary).read_bytes(), max_length, lower)

    def _read(self, words: bytes, max_length: int, lower: bool) -> None:
        self.words, self.max_length, self.lower = words, max_length, lower
        self.ids = {word: number for number, word in enumerate(words.decode().split())}
        self.vocabulary_size = len(self.ids)

    def __call__(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        words = [["a", *(text.lower() if self.lower else text).split()][: self.max_length] for text in texts]
        ids = pad_sequence([torch.tensor([self.ids.get(w, 1) for w in row]) for row in words], batch_first=True)
        return ids, ids != self.pad_id

    def to_config(self) -> dict[str, Any]:
        return {"max_length": self.max_length, "lower": self.lower}

    @classmethod
    def from_config(cls, config: Mapping[str, Any], files: Mapping[str, bytes]) -> WordTokenizer:
        tokenizer = cls.__new__(cls)
        tokenizer._read(files["words.txt"], **config)
        return tokenizer

    def files(self) -> dict[str, bytes]:
        return {"words.txt": self.words}


class SquashedImages(ImageTransform):
    """The whole picture, whatever its shape."""

    name = "tests_squashed"

    def __init__(self, size: int = 16, mean: Sequence[float] = (0.5,) * 3, levels: int = 256) -> None:
        super().__init__(size, tuple(mean), (0.5, 0.5, 0.5))
        self.levels = levels
        self.shift = torch.tensor(mean)[:, None, None]  # has values even where the model is built without

    def __call__(self, image: Image.Image) -> Tensor:
        pixels = torch.from_numpy(np.array(image.resize((self.size, self.size)))).permute(2, 0, 1) / 255
        return ((pixels * self.levels).floor() / self.levels - self.shift) / 0.5
