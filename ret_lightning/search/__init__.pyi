from .answer import search as search
from .hits import Hit as Hit
from .index_builder import build_index as build_index
from .index_folder import SearchFolder as SearchFolder
from .qdrant import QdrantCollection as QdrantCollection
from .qdrant import index_into_qdrant as index_into_qdrant
