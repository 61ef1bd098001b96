"""Inputs of the encoders: tokenizers, image decoding and transforms, and `EncoderInput`.

The packages `models` and `data` depend on this package, and not on each other.
"""

from ret_lightning.inputs.decoding import decode_image, open_image, to_rgb
from ret_lightning.inputs.encoder_input import EncoderInput
from ret_lightning.inputs.image_transform import Augmentation, ImageTransform
from ret_lightning.inputs.items import Item, collate_items
from ret_lightning.inputs.preprocessor import Preprocessor
from ret_lightning.inputs.tokenizer import ClipTokenizer, Tokenizer
from ret_lightning.runtime.deprecation import find_in, renamed_names

__all__ = [
    "Augmentation",
    "ClipTokenizer",
    "EncoderInput",
    "ImageTransform",
    "Item",
    "Preprocessor",
    "Tokenizer",
    "collate_items",
    "decode_image",
    "open_image",
    "to_rgb",
]

__getattr__ = renamed_names(__name__, {"rgb_image": "to_rgb"}, find_in(globals()))
