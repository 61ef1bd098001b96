"""CLIP backbones of transformers, compared with the forward pass of the library."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import CLIPConfig, CLIPModel

from ret_lightning.errors import ConfigError, UserError
from ret_lightning.models.backbones.clip_transformers import ClipTextStack, ClipVisionStack, clip_backbone
from tests.support.tiny_models import TEXT, VISION


def test_config_must_match_pretrained_backbone(tmp_path: Path) -> None:
    """A run is later opened from its config, which must build the model that was trained."""
    config = CLIPConfig(text_config={**TEXT, "hidden_act": "gelu"}, vision_config={**VISION, "hidden_act": "gelu"})
    model, folder = CLIPModel(config), tmp_path / "clip"
    model.save_pretrained(folder)
    described = {"text": {**TEXT, "hidden_act": "gelu"}, "vision": {**VISION, "hidden_act": "gelu"}}
    backbone = clip_backbone(**described, pretrained=str(folder))
    tokens = model.text_model.embeddings.token_embedding.weight
    assert torch.equal(backbone.text.layout_state()["text_model.embeddings.token_embedding.weight"], tokens)
    assert backbone.text.source == str(folder)
    described["vision"]["hidden_act"] = "quick_gelu"
    with pytest.raises(ConfigError) as error:
        clip_backbone(**described, pretrained=str(folder))
    assert (error.value.code, error.value.key) == ("backbone-setting-differs", "backbone.vision.hidden_act")
    assert (error.value.found, error.value.expected) == ("quick_gelu", "gelu")
    with pytest.raises(UserError) as error:
        clip_backbone(pretrained="/nowhere/clip")
    assert (error.value.code, error.value.found) == ("weights-folder-missing", "/nowhere/clip")


def test_vision_states_match_library() -> None:
    stack = ClipVisionStack.of_sizes(VISION).eval()
    pixels = torch.randn(3, 3, 16, 16)
    with torch.no_grad():
        ours = stack(pixels, range(stack.num_blocks))
        theirs = stack.model(pixels, output_hidden_states=True).hidden_states[1:]
    assert stack.num_blocks == len(theirs) == VISION["num_hidden_layers"]
    for own, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(own, expected, rtol=1e-5, atol=1e-5)


def test_text_states_match_library() -> None:
    """The library gets the padding mask, which the stack does not need."""
    stack = ClipTextStack.of_sizes(TEXT).eval()
    ids, lengths = torch.randint(1, 99, (3, 7)), torch.tensor([7, 4, 2])
    real = torch.arange(7)[None] < lengths[:, None]
    with torch.no_grad():
        ours = stack(ids, range(stack.num_blocks))
        theirs = stack.model(ids, attention_mask=real.long(), output_hidden_states=True).hidden_states[1:]
    for own, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(own[real], expected[real], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("kind", "sizes"), [(ClipTextStack, TEXT), (ClipVisionStack, VISION)])
def test_layout_restores_stack(kind: type, sizes: dict) -> None:
    stack = kind.of_sizes(sizes)
    again = kind.from_layout_config(stack.layout_config())
    again.load_layout_state(stack.layout_state())
    assert again.layout_config() == stack.layout_config()
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), stack.parameters(), strict=True))


def test_stack_from_meta_device_has_position_ids() -> None:
    stack = ClipTextStack.of_sizes(TEXT).eval()
    with torch.device("meta"):
        again = ClipTextStack.of_sizes(TEXT).eval()
    again.load_layout_state(stack.layout_state())
    ids = torch.randint(1, 99, (2, 5))
    with torch.no_grad():
        assert torch.equal(again(ids, [3])[0], stack(ids, [3])[0])


def test_invalid_settings_are_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        ClipTextStack.of_sizes({**TEXT, "hiden_size": 16})
    assert (caught.value.code, caught.value.found) == ("backbone-setting-unknown", "hiden_size")
    assert "did you mean hidden_size?" in caught.value.message
    with pytest.raises(ConfigError) as caught:
        ClipVisionStack.of_sizes({**VISION, "num_attention_heads": 5})
    assert caught.value.code == "backbone-not-built"
