"""Tokenizers: the interface, and CLIP's byte-pair tokenizer with the vocabulary of open_clip, which needs no download."""

from __future__ import annotations

import gzip
import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
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


# Maps texts to token ids and attention mask; a `Tokenizer` is one.
TokenizeFunction = Callable[[Sequence[str]], tuple[Tensor, Tensor]]


class Tokenizer(Preprocessor, ABC):
    """Interface of a tokenizer, which converts texts to token ids.

    Attributes:
        max_length: maximum number of tokens; longer texts are truncated.
        vocabulary_size: number of token ids, which are in [0, vocabulary_size).
        pad_id: token id of padding.
    """

    max_length: int
    vocabulary_size: int
    pad_id: int = 0

    @abstractmethod
    def __call__(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Tokenize texts and pad them on the right to the longest one.

        Args:
            texts: B texts, which may be empty.

        Returns:
            Token ids (B, L) int64, and mask (B, L) bool, True for tokens and False for padding.
        """


class ClipTokenizer(Tokenizer):
    """CLIP's tokenizer.

    All CLIP models of OpenAI and LAION use this vocabulary of 49,408 entries, and at most 77 tokens.

    Args:
        max_length: maximum number of tokens, including the start and end tokens; longer texts are truncated before the end
            token.
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
    """Read CLIP's vocabulary, in the order: bytes, bytes that end a word, merges, the two special tokens."""
    # find_spec instead of `import open_clip`, which takes seconds to import torchvision and timm.
    spec = importlib.util.find_spec("open_clip")
    if spec is None or spec.origin is None:
        raise ImportError(
            "CLIP's vocabulary is part of open_clip, which is not installed; run pip install open_clip_torch"
        )
    path = Path(spec.origin).parent / "bpe_simple_vocab_16e6.txt.gz"
    lines = gzip.decompress(path.read_bytes()).decode("utf-8").split("\n")
    pairs = lines[1 : VOCABULARY_SIZE - 2 * BYTE_TOKENS - len(SPECIAL_TOKENS) + 1]
    merges = [(left, right) for left, right in map(str.split, pairs)]
    byte_tokens = _byte_characters()
    tokens = [*byte_tokens, *(token + "</w>" for token in byte_tokens), *(a + b for a, b in merges), *SPECIAL_TOKENS]
    return {token: i for i, token in enumerate(tokens)}, merges


def _byte_characters() -> list[str]:
    """Return GPT-2's characters for the 256 bytes: printable bytes are unchanged, others are mapped to U+0100 and above."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = BYTE_TOKENS - len(printable)
    return [*(chr(b) for b in printable), *(chr(BYTE_TOKENS + i) for i in range(others))]
