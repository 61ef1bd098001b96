"""How many texts are longer than a tokenizer's limit, where it cuts them."""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from dataclasses import dataclass

from ret_lightning.inputs.encoder_input import EncoderInput
from ret_lightning.inputs.items import Item
from ret_lightning.inputs.tokenizer import Tokenizer


@dataclass
class TextCount:
    """Counts texts.

    Attributes:
        texts: all of them.
        cut: those that the tokenizer cuts.
        limit: of the tokenizer, in tokens; None where it is not known.
    """

    texts: int = 0
    cut: int = 0
    limit: int | None = None

    def add(self, other: TextCount) -> None:
        """Add the counts of other texts."""
        self.texts += other.texts
        self.cut += other.cut
        self.limit = self.limit or other.limit

    def warn(self, log: logging.Logger, what: str) -> None:
        """Log one line if any text is cut, such as `training texts: 12 of 6400 have more than 77 tokens and are cut there`."""
        if self.cut:
            text = "%s: %d of %d have more than %s tokens and are cut there"
            log.warning(text, what, self.cut, self.texts, self.limit)


def cut_texts(tokenizer: Tokenizer, texts: Sequence[str]) -> list[bool]:
    """Whether a tokenizer cuts each text; False for all where it has no `max_length`."""
    limit = getattr(tokenizer, "max_length", None)
    if limit is None or not texts:
        return [False] * len(texts)
    longer = copy.copy(tokenizer)
    longer.max_length = limit + 1
    return (longer(texts)[1].sum(dim=1) > limit).tolist()


def count_texts(tokenizer: Tokenizer, texts: Sequence[str]) -> TextCount:
    """Count texts by tokenising them all."""
    return TextCount(len(texts), sum(cut_texts(tokenizer, texts)), getattr(tokenizer, "max_length", None))


def count_cut(tokenizer: Tokenizer, items: Sequence[Item], inputs: EncoderInput) -> TextCount:
    """Count the texts of a batch. Only those that fill the limit are tokenised again.

    Args:
        tokenizer: that made `inputs`.
        items: B of them.
        inputs: of the items, B rows.
    """
    limit, rows = getattr(tokenizer, "max_length", None), inputs.text_rows.tolist()
    lengths = inputs.attention_mask.sum(dim=1).tolist()
    full = [items[row].text for row in rows if limit is not None and lengths[row] >= limit]
    return TextCount(len(rows), sum(cut_texts(tokenizer, full)), limit)
