"""What must hold between the keys of ret-index and ret-search."""

from __future__ import annotations

from collections.abc import Iterator

from omegaconf import DictConfig

from ret_lightning.config.config_errors import Wrong, exclusive
from ret_lightning.errors import ConfigError

UNNAMEABLE = '<>:"/\\|?*'  # what Qdrant takes in no name of a collection


def one_place(config: DictConfig) -> Iterator[Wrong]:
    """An index is a folder or a collection of Qdrant's."""
    if config.index is None and config.qdrant is None:
        yield "index", ConfigError("no index is named; give index=DIR or qdrant=URL", code="index-not-named")
    elif config.index is not None and config.qdrant is not None:
        yield "index", exclusive("qdrant")
    if config.qdrant is not None and config.collection is None:
        yield "collection", ConfigError("qdrant needs the name of a collection", code="qdrant-needs-collection")
    if config.qdrant is None and config.collection is not None:
        text = "is a name in Qdrant; it goes with qdrant=URL"
        yield "collection", ConfigError(text, code="collection-without-qdrant", found=config.collection)
    name = config.collection or ""
    if len(name) > 255 or any(letter in UNNAMEABLE or not letter.isprintable() for letter in name):
        text = f"is no name that Qdrant takes: at most 255 letters, none of {' '.join(UNNAMEABLE)} among them"
        yield "collection", ConfigError(text, code="collection-bad-name", found=name)
    for key in ("index", "qdrant", "collection"):
        if config[key] == "":
            yield key, ConfigError("is empty", code="index-setting-empty")


def question(config: DictConfig) -> Iterator[Wrong]:
    """One question on the command line, or a file of queries."""
    for key in ("image", "queries", "output"):
        if config[key] == "":
            yield key, ConfigError("is empty; name a file, or leave it out", code="empty-file-name")
    single = [name for name in ("query", "image") if config[name] is not None]
    if config.queries is not None and single:
        yield single[0], exclusive("queries")
    elif config.queries is None and not single:
        text = 'nothing is asked; give query="...", image=FILE or both, or queries=FILE'
        yield "query", ConfigError(text, code="query-missing")
    elif config.query is not None and not config.query.strip() and config.image is None:
        yield "query", ConfigError("is empty; give it a text, or an image=FILE", code="query-empty")
