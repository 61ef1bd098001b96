from .best_checkpoint import BestCheckpoint as BestCheckpoint
from .last_checkpoint import LastCheckpoint as LastCheckpoint
from .load import image_transform_of as image_transform_of
from .load import open_retriever as open_retriever
from .load import tokenizer_of as tokenizer_of
