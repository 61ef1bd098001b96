from .datamodule import M2KRDataModule as M2KRDataModule
from .glyphs.glyphs_datamodule import GlyphsDataModule as GlyphsDataModule
from .rows import Passage as Passage
from .rows import Query as Query
from .types import EvaluationSubset as EvaluationSubset
