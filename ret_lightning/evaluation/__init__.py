"""Retrieval evaluation: rows encoded, indexed, searched and scored, subset by subset."""
