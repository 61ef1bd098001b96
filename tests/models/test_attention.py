"""Attention compared with `torch.nn.MultiheadAttention`, which the published code uses."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ret_lightning.models.attention import Attention

N, K, L, WIDTH, HEADS = 3, 4, 6, 24, 3


def pair(bias: bool, dropout: float = 0.0) -> tuple[Attention, nn.MultiheadAttention]:
    torch.manual_seed(0)
    ours = Attention(WIDTH, HEADS, dropout, bias)
    torch.manual_seed(0)
    return ours, nn.MultiheadAttention(WIDTH, HEADS, dropout=dropout, bias=bias, batch_first=True)


@pytest.mark.parametrize("bias", [True, False])
def test_parameters_match_multihead_attention(bias: bool) -> None:
    ours, theirs = (module.state_dict() for module in pair(bias))
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("is_self_attention", [True, False])
def test_values_and_gradients_match_multihead_attention(bias: bool, is_self_attention: bool, padded: bool) -> None:
    ours, theirs = pair(bias)
    if bias:
        nn.init.normal_(ours.in_proj_bias)
        theirs.load_state_dict(ours.state_dict())
    query = torch.randn(N, K, WIDTH)
    source = query if is_self_attention else torch.randn(N, L, WIDTH)
    padding = torch.arange(source.shape[1]) >= torch.tensor([[2], [3], [4]]) if padded else None

    def both(function) -> list[Tensor]:
        module, attend = function
        inputs = [tensor.clone().requires_grad_() for tensor in ((query,) if is_self_attention else (query, source))]
        result = attend(inputs[0], inputs[-1])
        return [result, *torch.autograd.grad(result.square().sum(), [*inputs, *module.parameters()])]

    found = both((ours, lambda q, s: ours(q, s, padding)))
    expected = both((theirs, lambda q, s: theirs(q, s, s, key_padding_mask=padding, need_weights=False)[0]))
    for got, want in zip(found, expected, strict=True):
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)


def test_dropout_matches_multihead_attention() -> None:
    ours, theirs = pair(bias=False, dropout=0.5)
    query, source = torch.randn(N, K, WIDTH), torch.randn(N, L, WIDTH)
    for module in (ours, theirs):
        module.eval()
    assert torch.equal(ours(query, source), ours(query, source))
    for module in (ours, theirs):
        module.train()
    torch.manual_seed(1)
    found = ours(query, source)
    torch.manual_seed(1)
    expected = theirs(query, source, source, need_weights=False)[0]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(found, ours(query, source), atol=1e-3)
