"""The four published models in full size, built from their configs on the meta device without memory or downloads."""

from __future__ import annotations

import pytest
import torch
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf
from torch import nn

from ret_lightning.config.build import build
from ret_lightning.models import PUBLISHED_PLANS, RetRetriever
from ret_lightning.models.backbones.clip_open import OpenClipTextStack, OpenClipVisionStack
from ret_lightning.models.backbones.clip_transformers import ClipTextStack, ClipVisionStack

# Backbone to millions of trained parameters per tower, and (blocks, width) of the text and the vision stack.
PUBLISHED = {
    "clip_vit_b": (41.1, (12, 512), (12, 768)),
    "clip_vit_l": (47.4, (12, 768), (24, 1024)),
    "openclip_vit_h": (53.7, (24, 1024), (32, 1280)),
    "openclip_vit_g": (73.6, (32, 1280), (48, 1664)),
}
TOKENS = {
    "clip_vit_b": 7 * 7 + 1,
    "clip_vit_l": 16 * 16 + 1,
    "openclip_vit_h": 16 * 16 + 1,
    "openclip_vit_g": 16 * 16 + 1,
}
# Heads, MLP width and activation of the text and the vision stack, which the published code reads from a checkpoint.
HEADS_AND_MLP = {
    "clip_vit_b": ((8, 2048, "quick_gelu"), (12, 3072, "quick_gelu")),
    "clip_vit_l": ((12, 3072, "quick_gelu"), (16, 4096, "quick_gelu")),
    "openclip_vit_h": ((16, 4096, "gelu"), (16, 5120, "gelu")),
    "openclip_vit_g": ((20, 5120, "gelu"), (16, 8192, "gelu")),
}


def build_full_size(backbone: str, *overrides: str) -> RetRetriever:
    with initialize_config_module("ret_lightning.conf", version_base="1.3"):
        options = [f"backbone={backbone}", "backbone.pretrained=null", "model=ret", *overrides]
        config = compose("train", overrides=options)
    OmegaConf.set_struct(config, False)
    config.output_dir = "/nowhere"  # its default needs a running Hydra application
    with torch.device("meta"):
        return build(config.model)


def count(modules: list[nn.Module]) -> int:
    return sum(p.numel() for p in {p for module in modules for p in module.parameters()})


@pytest.mark.parametrize("backbone", PUBLISHED)
def test_sizes_match_published_models(backbone: str) -> None:
    millions, (text_blocks, text_width), (vision_blocks, vision_width) = PUBLISHED[backbone]
    retriever = build_full_size(backbone)
    assert all(p.is_meta for p in retriever.parameters())
    assert retriever.query_tower is not retriever.passage_tower
    text, vision = retriever.query_tower.text_backbone, retriever.query_tower.vision_backbone
    assert (text.num_blocks, text.width) == (text_blocks, text_width)
    assert (vision.num_blocks, vision.width) == (vision_blocks, vision_width)
    for tower in (retriever.query_tower, retriever.passage_tower):
        assert tower.text_backbone is text
        assert tower.vision_backbone is vision
        assert tower.plan == PUBLISHED_PLANS[backbone]
        assert round((count([tower]) - count([text, vision])) / 1e6, 1) == millions
        trainable = sum(p.numel() for p in tower.parameters() if p.requires_grad)
        assert trainable == count([tower]) - count([text, vision])
        assert (tower.start.shape, tower.output_size) == ((1, 32, 1024), 128)
        assert tower.tokenizer.max_length == 77
        assert tower.image_transform.size == 224


@pytest.mark.parametrize("backbone", PUBLISHED)
def test_layout_of_full_size_backbones(backbone: str) -> None:
    tower = build_full_size(backbone).query_tower
    for stack, sizes in zip((tower.text_backbone, tower.vision_backbone), HEADS_AND_MLP[backbone], strict=True):
        config = stack.layout_config()
        assert (config["num_attention_heads"], config["intermediate_size"], config["hidden_act"]) == sizes
        state = stack.layout_state()
        assert sum(tensor.numel() for tensor in state.values()) == count([stack])
    assert config["image_size"] == 224
    (positions,) = (tensor for name, tensor in state.items() if name.endswith("position_embedding.weight"))
    assert len(positions) == TOKENS[backbone]


@pytest.mark.parametrize("backbone", ["openclip_vit_h", "openclip_vit_g"])
def test_libraries_build_same_layout(backbone: str) -> None:
    ours = build_full_size(backbone).query_tower
    theirs = build_full_size(backbone, "backbone.library=transformers").query_tower
    assert isinstance(ours.text_backbone, OpenClipTextStack)
    assert isinstance(ours.vision_backbone, OpenClipVisionStack)
    assert isinstance(theirs.text_backbone, ClipTextStack)
    assert isinstance(theirs.vision_backbone, ClipVisionStack)
    for a, b in ((ours.text_backbone, theirs.text_backbone), (ours.vision_backbone, theirs.vision_backbone)):
        assert count([a]) == count([b])
        assert a.layout_config() == b.layout_config()
        shapes = {name: tensor.shape for name, tensor in b.layout_state().items()}
        assert {name: tensor.shape for name, tensor in a.layout_state().items()} == shapes
    assert theirs.plan == ours.plan
