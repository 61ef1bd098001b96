"""What goes into an encoder: token ids from texts, pixels from images, both in one `EncoderInput`.

The ground floor: models and data both stand on it and know nothing of each other.
"""

from ret_lightning.inputs.decoding import decode_image, open_image, rgb_image
from ret_lightning.inputs.encoder_input import EncoderInput
from ret_lightning.inputs.image_transform import Augmentation, ImageTransform
from ret_lightning.inputs.items import Item, encoder_input
from ret_lightning.inputs.preprocessor import Preprocessor
from ret_lightning.inputs.tokenizer import ClipTokenizer, Tokenizer

__all__ = [
    "Augmentation",
    "ClipTokenizer",
    "EncoderInput",
    "ImageTransform",
    "Item",
    "Preprocessor",
    "Tokenizer",
    "decode_image",
    "encoder_input",
    "open_image",
    "rgb_image",
]
