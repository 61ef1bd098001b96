"""Checks between the keys of ret-index and ret-search."""

from __future__ import annotations

from collections.abc import Iterator

from omegaconf import DictConfig

from ret_lightning.config.config_errors import KeyedError, exclusive_error
from ret_lightning.errors import ConfigError

FORBIDDEN = '<>:"/\\|?*'  # characters that Qdrant does not allow in collection names


def check_index_target(config: DictConfig) -> Iterator[KeyedError]:
    """Check that either a folder or a Qdrant collection is named."""
    if config.index is None and config.qdrant is None:
        yield "index", ConfigError("no index is set; set index=DIR or qdrant=URL", code="index-not-named")
    elif config.index is not None and config.qdrant is not None:
        yield "index", exclusive_error("qdrant")
    if config.qdrant is not None and config.collection is None:
        yield "collection", ConfigError("qdrant=URL requires collection=NAME", code="qdrant-needs-collection")
    if config.qdrant is None and config.collection is not None:
        text = "a collection requires qdrant=URL; set qdrant or remove collection"
        yield "collection", ConfigError(text, code="collection-without-qdrant", found=config.collection)
    name = config.collection or ""
    if len(name) > 255 or any(letter in FORBIDDEN or not letter.isprintable() for letter in name):
        text = f"not a valid Qdrant collection name; expected at most 255 printable characters without {' '.join(FORBIDDEN)}"
        yield "collection", ConfigError(text, code="collection-bad-name", found=name)
    for key in ("index", "qdrant", "collection"):
        if config[key] == "":
            yield key, ConfigError("the value is empty; set a name or remove the option", code="index-setting-empty")


def check_query(config: DictConfig) -> Iterator[KeyedError]:
    """Check that either one query or a file of queries is set."""
    for key in ("image", "queries", "output"):
        if config[key] == "":
            yield key, ConfigError("the file name is empty; set a file or remove the option", code="empty-file-name")
    single = [name for name in ("query", "image") if config[name] is not None]
    if config.queries is not None and single:
        yield single[0], exclusive_error("queries")
    elif config.queries is None and not single:
        text = 'no query is set; set query="...", image=FILE or both, or queries=FILE'
        yield "query", ConfigError(text, code="query-missing")
    elif config.query is not None and not config.query.strip() and config.image is None:
        yield "query", ConfigError("the query text is empty; set a text or image=FILE", code="query-empty")
