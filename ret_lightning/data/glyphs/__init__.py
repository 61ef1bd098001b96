"""The generated corpus `glyphs`: a small multimodal knowledge base that needs no download."""
