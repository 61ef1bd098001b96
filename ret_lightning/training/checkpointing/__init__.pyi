from .best_checkpoint import BestCheckpoint as BestCheckpoint
from .last_checkpoint import LastCheckpoint as LastCheckpoint
from .load import open_retriever as open_retriever
