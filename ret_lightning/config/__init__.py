"""Configs that can be trusted: checked before anything is imported for them, and built from an allow-list."""
