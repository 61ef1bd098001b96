"""Bidirectional text stacks: with the attention mask, features do not depend on padding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from ret_lightning import RetRetriever
from ret_lightning.errors import ConfigError
from ret_lightning.models import Backbone, BlockStack, EncoderInput, LayerPlan
from ret_lightning.models.backbones import clip_backbone, open_clip_backbone
from ret_lightning.models.backbones.base import text_states
from tests.support.hashed_text import HashedText, make
from tests.support.tiny_models import TEXT, VISION, batch


class BidirectionalText(HashedText):
    """A text stack of encoder blocks with bidirectional attention and positions that skip padding."""

    def __init__(self, width: int = 12, num_blocks: int = 3) -> None:
        super().__init__(width, num_blocks)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 2, 2 * width, dropout=0.0, batch_first=True) for _ in range(num_blocks)
        )

    def embed(self, inputs: Tensor, attention_mask: Tensor | None) -> Tensor:
        return self.embedding(inputs) + attention_mask.cumsum(1)[..., None] / 10

    def run_block(self, index: int, states: Tensor, attention_mask: Tensor | None) -> Tensor:
        # Training mode, because the fast path of eval mode replaces the states of padding by zeros.
        return self.layers[index].train()(states, src_key_padding_mask=~attention_mask)


class Unmasked(BidirectionalText):
    def run_block(self, index: int, states: Tensor, attention_mask: Tensor | None) -> Tensor:
        return super().run_block(index, states, torch.ones_like(attention_mask))


def padded(inputs: EncoderInput, more: int) -> EncoderInput:
    return replace(
        inputs,
        input_ids=pad(inputs.input_ids, (0, more), value=3),
        attention_mask=pad(inputs.attention_mask, (0, more)),
    )


def by_tower(retriever: RetRetriever, rows: EncoderInput, more: int) -> Tensor:
    return retriever.query_tower(padded(rows, more))


def by_both_towers(retriever: RetRetriever, rows: EncoderInput, more: int) -> Tensor:
    return retriever(rows, padded(batch([1, 1], [0, 1], seed=1), more))[0]


@pytest.mark.parametrize("encode", [by_tower, by_both_towers])
def test_features_do_not_depend_on_padding(encode: Callable[..., Tensor]) -> None:
    torch.manual_seed(0)
    rows = batch([1, 0, 1, 1], [1, 1, 0, 0])
    retriever, unmasked = make(BidirectionalText()).eval(), make(Unmasked()).eval()
    with torch.no_grad():
        torch.testing.assert_close(encode(retriever, rows, 9), encode(retriever, rows, 0), rtol=1e-5, atol=1e-5)
        changed = (encode(unmasked, rows, 9) - encode(unmasked, rows, 0)).abs().amax(dim=(1, 2))
    assert (changed > 1e-3).tolist() == [True, False, True, True]


@pytest.mark.parametrize(
    "make_backbone",
    [partial(clip_backbone, TEXT, VISION), partial(open_clip_backbone, "ViT-B-32")],
    ids=["clip", "open"],
)
def test_clip_states_do_not_depend_on_padding(make_backbone: Callable[[], Backbone]) -> None:
    """The states are identical, because the attention is causal and the mask has no effect."""
    backbone = make_backbone()
    rows = batch([1, 1, 1], [0, 0, 0], length=9)
    other = replace(rows, input_ids=rows.input_ids.masked_fill(~rows.attention_mask, 99))
    plan = LayerPlan((0, 2), (0, 2))
    with torch.no_grad():
        states, others = (text_states(backbone.text, [x], plan.text)[0] for x in (rows, other))
        bare = backbone.text(rows.input_ids, plan.text)
    for block, unmasked in zip(plan.text, bare, strict=True):
        assert torch.equal(states[block][rows.attention_mask], others[block][rows.attention_mask])
        assert torch.equal(states[block], unmasked)


def test_vision_stack_gets_no_mask() -> None:
    retriever = make(BidirectionalText()).eval()
    masks = {}
    for name in ("text", "vision"):
        stack: BlockStack = getattr(retriever.query_tower, f"{name}_backbone")
        stack.register_forward_pre_hook(lambda _, args, name=name: masks.update({name: args[2]}))
    rows = batch([1, 0, 1], [1, 1, 1])
    retriever.query_tower(rows)
    assert torch.equal(masks["text"], rows.attention_mask[[0, 2]])
    assert masks["vision"] is None


def _embed(self: Any, inputs: Tensor) -> Tensor: ...
def _run_block(self: Any, index: int, states: Tensor) -> Tensor: ...
def _forward(self: Any, inputs: Tensor, blocks: Sequence[int]) -> list[Tensor]: ...


@pytest.mark.parametrize("method", [_embed, _run_block, _forward])
def test_stack_without_mask_is_refused(method: Callable[..., Any]) -> None:
    name = method.__name__[1:]
    with pytest.raises(ConfigError) as raised:
        type("Former", (HashedText,), {name: method})
    assert (raised.value.code, raised.value.backbone, raised.value.method) == ("backbone-without-mask", "Former", name)
