from .checkpointing.load import open_retriever as open_retriever
from .fit import train as train
from .module import RetModule as RetModule
from .schedule import WarmupCosine as WarmupCosine
