"""The embedded corpus `glyphs`: a multimodal knowledge base that needs no download."""
