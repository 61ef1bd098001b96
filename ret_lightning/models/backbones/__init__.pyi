from .base import Backbone as Backbone
from .base import BlockStack as BlockStack
from .clip_open import open_clip_backbone as open_clip_backbone
from .clip_transformers import clip_backbone as clip_backbone
