"""Indexes: exact, FAISS and MUVERA, and how they are saved."""
