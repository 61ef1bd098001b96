from .datamodule import M2KRDataModule as M2KRDataModule
from .glyphs.glyphs_datamodule import GlyphsDataModule as GlyphsDataModule
