"""Search from the command line: passages encoded once, into a folder or into Qdrant, and queries answered from them."""
