from .base import Backbone as Backbone
from .base import BlockStack as BlockStack
from .clip_open import open_clip_backbone as open_clip_backbone
from .clip_transformers import clip_backbone as clip_backbone
from .registry import BackboneCard as BackboneCard
from .registry import list_backbones as list_backbones
