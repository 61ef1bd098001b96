from .datamodule import RetrievalDataModule as RetrievalDataModule
from .glyphs.glyphs_datamodule import GlyphsDataModule as GlyphsDataModule
from .layouts.base import Layout as Layout
from .m2kr_datamodule import M2KRDataModule as M2KRDataModule
from .rows import Passage as Passage
from .rows import Query as Query
from .rows import RowParser as RowParser
from .types import EvaluationSubset as EvaluationSubset
