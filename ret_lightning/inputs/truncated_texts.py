"""Counts of texts that a tokenizer truncates."""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ret_lightning.inputs.encoder_input import EncoderInput
from ret_lightning.inputs.items import Item
from ret_lightning.inputs.tokenizer import TokenizeFunction


@dataclass
class TextCount:
    """Number of texts, and of truncated texts.

    Attributes:
        texts: number of texts.
        truncated: number of texts that the tokenizer truncates.
        limit: maximum length of the tokenizer, in tokens; None if unknown.
    """

    texts: int = 0
    truncated: int = 0
    limit: int | None = None

    def add(self, other: TextCount) -> None:
        """Add the counts of other texts."""
        self.texts += other.texts
        self.truncated += other.truncated
        self.limit = self.limit or other.limit

    def warn(self, log: logging.Logger, name: str) -> None:
        """Log a warning if texts are truncated, such as `train: 12 of 6400 have more than 77 tokens and are truncated`.

        Args:
            log: logger.
            name: name of the texts in the message.
        """
        if self.truncated:
            log.warning(
                "%s: %d of %d have more than %s tokens and are truncated", name, self.truncated, self.texts, self.limit
            )


def find_truncated(tokenizer: TokenizeFunction, texts: Sequence[str]) -> list[bool]:
    """Return for each text whether a tokenizer truncates it; False if the tokenizer has no `max_length`."""
    limit = getattr(tokenizer, "max_length", None)
    if limit is None or not texts:
        return [False] * len(texts)
    longer: Any = copy.copy(tokenizer)
    longer.max_length = limit + 1
    return (longer(texts)[1].sum(dim=1) > limit).tolist()


def count_texts(tokenizer: TokenizeFunction, texts: Sequence[str]) -> TextCount:
    """Count texts and truncated texts by tokenizing all of them.

    Args:
        tokenizer: the tokenizer.
        texts: the texts.
    """
    return TextCount(len(texts), sum(find_truncated(tokenizer, texts)), getattr(tokenizer, "max_length", None))


def count_truncated(tokenizer: TokenizeFunction, items: Sequence[Item], inputs: EncoderInput) -> TextCount:
    """Count the texts and the truncated texts of a batch; only texts of maximum length are tokenized again.

    Args:
        tokenizer: tokenizer of `inputs`.
        items: B items.
        inputs: the batch of the items, B rows.
    """
    limit, rows = getattr(tokenizer, "max_length", None), inputs.text_rows.tolist()
    lengths = inputs.attention_mask.sum(dim=1).tolist()
    full = [items[row].text for row in rows if limit is not None and lengths[row] >= limit]
    return TextCount(len(rows), sum(find_truncated(tokenizer, full)), limit)
