"""A package of the user's own with a backbone, written into a folder: one file and one config."""

from __future__ import annotations

from pathlib import Path

MODULE = '''
import torch
from torch import nn

from ret_lightning.inputs import ImageTransform, Tokenizer
from ret_lightning.models import Backbone, BlockStack


class Letters(Tokenizer):
    """One id per letter."""

    vocabulary_size = 128

    def __init__(self, max_length=24):
        self.max_length = max_length

    def __call__(self, texts):
        rows = [torch.tensor([1, *(ord(c) % 126 + 2 for c in text)][: self.max_length]) for text in texts]
        ids = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        return ids, ids != self.pad_id


class _Stack(BlockStack):
    def __init__(self, width, num_blocks):
        super().__init__()
        self.width, self.num_blocks = width, num_blocks
        layers = [nn.TransformerEncoderLayer(width, 2, 2 * width, 0.0, batch_first=True) for _ in range(num_blocks)]
        self.layers = nn.ModuleList(layers)

    def block(self, index):
        return self.layers[index]

    def run_block(self, index, states, attention_mask):
        return self.layers[index](states, src_key_padding_mask=None if attention_mask is None else ~attention_mask)

    def embedding_parameters(self):
        return list(self.embedding.parameters())

    def layout_config(self):
        return {"model_type": self.model_type, "width": self.width, "num_blocks": self.num_blocks}

    @classmethod
    def from_layout_config(cls, config):
        return cls(config["width"], config["num_blocks"])

    def layout_state(self):
        return self.state_dict()

    def load_layout_state(self, state):
        self.load_state_dict(state, assign=True)


class LetterStack(_Stack):
    model_type = f"{__name__}_letters"

    def __init__(self, width, num_blocks):
        super().__init__(width, num_blocks)
        self.embedding = nn.Embedding(128, width)

    def embed(self, inputs, attention_mask):
        return self.embedding(inputs)


class PatchStack(_Stack):
    model_type = f"{__name__}_patches"

    def __init__(self, width, num_blocks):
        super().__init__(width, num_blocks)
        self.embedding = nn.Conv2d(3, width, 10, 10)

    def embed(self, inputs, attention_mask):
        return self.embedding(inputs).flatten(2).transpose(1, 2)


def lab_backbone(width, text_blocks, vision_blocks, tokenizer, image_transform):
    return Backbone(LetterStack(width, text_blocks), PatchStack(width, vision_blocks), tokenizer, image_transform)
'''
CONFIG = """# Letters and patches. A backbone of our lab.
_target_: {package}.lab_backbone
width: 16
text_blocks: 2
vision_blocks: 3
tokenizer:
  _target_: {package}.Letters
  max_length: 20
image_transform:
  _target_: ret_lightning.inputs.ImageTransform
  size: 40
"""


def write_backbone(folder: Path, package: str) -> Path:
    """Write `package.py` and `conf/backbone/letters.yaml` into a folder; returns the folder of configs.

    Its stacks have the model types `{package}_letters` and `{package}_patches`, so that tests with different packages do
    not register the same ones.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{package}.py").write_text(MODULE)
    (folder / "conf" / "backbone").mkdir(parents=True)
    (folder / "conf" / "backbone" / "letters.yaml").write_text(CONFIG.format(package=package))
    return folder / "conf"
