"""Tokenizers: the interface, and CLIP's byte-pair tokenizer from the vocabulary that open_clip ships, without a download."""

from __future__ import annotations

import gzip
import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ret_lightning.inputs.preprocessor import Preprocessor

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

BYTE_TOKENS = 256
SPECIAL_TOKENS = ("<|startoftext|>", "<|endoftext|>")
VOCABULARY_SIZE = 49408


class Tokenizer(Preprocessor, ABC):
    """Texts to token ids.

    Attributes:
        max_length: tokens of the longest text; longer ones are cut.
        vocabulary_size: ids are smaller.
        pad_id: the id of padding.
    """

    max_length: int
    vocabulary_size: int
    pad_id: int = 0

    @abstractmethod
    def __call__(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Tokenize texts, padded on the right to the longest of them.

        Args:
            texts: B of them; a text may be empty.

        Returns:
            ids (B, L) int64, and mask (B, L) bool, True where a token is.
        """


class ClipTokenizer(Tokenizer):
    """CLIP's tokenizer.

    Every CLIP model (OpenAI's and LAION's) uses this one vocabulary of 49,408 entries and at most 77 tokens.

    Args:
        max_length: longer texts are cut here, the end-of-text token kept.
    """

    name = "clip"
    vocabulary_size = VOCABULARY_SIZE
    pad_id = VOCABULARY_SIZE - 1  # the end-of-text token

    def __init__(self, max_length: int = 77) -> None:
        self.max_length = max_length

    def __call__(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        batch = _clip_tokenizer()(list(texts), padding="longest", truncation=True, max_length=self.max_length)
        return torch.tensor(batch["input_ids"]), torch.tensor(batch["attention_mask"], dtype=torch.bool)


@lru_cache(maxsize=1)
def _clip_tokenizer() -> CLIPTokenizer:
    from transformers import CLIPTokenizer

    vocabulary, merges = _read_vocabulary()
    return CLIPTokenizer(vocab=vocabulary, merges=merges)


def _read_vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """The order of CLIP's vocabulary: bytes, bytes that end a word, merges, the two special tokens."""
    # find_spec, not `import open_clip`: the import would bring torchvision and timm, seconds for one data file.
    spec = importlib.util.find_spec("open_clip")
    if spec is None or spec.origin is None:
        raise ImportError("CLIP's vocabulary comes with open_clip, which is not installed: pip install open_clip_torch")
    path = Path(spec.origin).parent / "bpe_simple_vocab_16e6.txt.gz"
    lines = gzip.decompress(path.read_bytes()).decode("utf-8").split("\n")
    merges = [tuple(line.split()) for line in lines[1 : VOCABULARY_SIZE - 2 * BYTE_TOKENS - len(SPECIAL_TOKENS) + 1]]
    byte_tokens = _printable_bytes()
    tokens = [*byte_tokens, *(token + "</w>" for token in byte_tokens), *(a + b for a, b in merges), *SPECIAL_TOKENS]
    return {token: i for i, token in enumerate(tokens)}, merges


def _printable_bytes() -> list[str]:
    """GPT-2's printable stand-ins for the 256 bytes: those that print stand for themselves, the others from U+0100 on."""
    printing = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = BYTE_TOKENS - len(printing)
    return [*(chr(b) for b in printing), *(chr(BYTE_TOKENS + i) for i in range(others))]
