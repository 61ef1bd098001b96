"""From queries to what was found: what ret-search does."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeAlias

import torch
from omegaconf import DictConfig
from torch import Tensor

from ret_lightning.errors import DataError
from ret_lightning.inputs import open_image
from ret_lightning.inputs.truncated_texts import TextCount, count_texts
from ret_lightning.models.precision import device_named
from ret_lightning.runtime.console import print_lines
from ret_lightning.search.hits import Hit
from ret_lightning.search.model_identity import ModelIdentity
from ret_lightning.search.output import json_lines, print_table, refuse_existing_output, write_lines

if TYPE_CHECKING:
    from PIL import Image

    from ret_lightning.data.rows import Query


log = logging.getLogger(__name__)

Answer: TypeAlias = tuple[str | None, list[Hit]]  # a query's data_id, where it has one, and what was found


class Pool(Protocol):
    """What can be searched: `SearchFolder`, `QdrantCollection`."""

    model: ModelIdentity

    def __len__(self) -> int: ...

    def search(self, queries: Tensor, top_k: int) -> list[list[Hit]]: ...


def answer(config: DictConfig) -> None:
    """Answers one query, or a file of them, on standard output or into a file.

    Args:
        config: as ret-search composes it.

    Raises:
        UserError: on what the user can mend.
    """
    # What can be wrong with a query, or with where its answer goes, is told before anything that takes long.
    if config.output is not None:
        refuse_existing_output(Path(config.output), config.overwrite)
    image = None if config.image is None else open_image(config.image)
    rows = None if config.queries is None else _read_queries(config.queries)
    device = device_named(config.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    with _open_pool(config, device) as pool:
        _answer(pool, image, rows, config, device)


def _answer(
    pool: Pool, image: Image.Image | None, rows: list[Query] | None, config: DictConfig, device: torch.device
) -> None:
    retriever = pool.model.open(config.checkpoint, device)
    texts = TextCount()
    if rows is None:
        vectors = iter([retriever.encode_queries([(config.query, image)])])
        texts = count_texts(retriever.query_tower.tokenizer, [config.query] if config.query else [])
        ids: list[str | None] = [None]
    else:
        from ret_lightning.data.images.missing_images import check_images
        from ret_lightning.data.types import distinct_ids
        from ret_lightning.search.encoded_rows import encoded

        check_images(rows, config.image_root)
        vectors = encoded(retriever, rows, config.image_root, config.batch_size, config.num_workers, texts=texts)
        ids = [*distinct_ids(rows)]
    answers = _counted(pool, _answers(pool, vectors, ids, config.top_k), len(ids), config.top_k)
    if config.output is not None:
        write_lines(Path(config.output), json_lines(answers))
    elif sys.stdout.isatty():
        for data_id, hits in answers:
            print_table(hits, data_id)
    else:
        print_lines(json_lines(answers))
    texts.warn(log, "query texts")


def _answers(pool: Pool, vectors: Iterator[Tensor], ids: list[str | None], top_k: int) -> Iterator[Answer]:
    waiting = iter(ids)
    for batch in vectors:
        if not batch.isfinite().all():
            raise DataError(
                "the model encodes the query to numbers that are not finite; index with another checkpoint",
                code="query-not-finite",
            )
        for hits in pool.search(batch.cpu(), top_k):
            yield next(waiting), hits


def _counted(pool: Pool, answers: Iterator[Answer], queries: int, top_k: int) -> Iterator[Answer]:
    """The answers, then a warning about the queries for which an approximate index found too few candidates."""
    yield from answers
    if short := getattr(pool, "short_queries", 0):
        log.warning(
            "the index found fewer than top_k=%d candidates for %d of %d queries, %s; ret-index with more retrieval.probes, "
            "retrieval.hits or retrieval.candidates finds more",
            *(top_k, short, queries),
            "which were ranked exactly" if pool.index.exact_fallback else "whose answers are fewer",
        )


@contextmanager
def _open_pool(config: DictConfig, device: torch.device) -> Iterator[Pool]:
    if config.qdrant is not None:
        from ret_lightning.search.qdrant import QdrantCollection
        from ret_lightning.search.qdrant_connection import connected

        with connected(config.qdrant, must_exist=True) as client:
            yield QdrantCollection(client, config.collection)
        return
    from ret_lightning.search.index_folder import SearchFolder

    # An index knows of GPUs and of the CPU; a model can be elsewhere (mps).
    yield SearchFolder(config.index, config.verify, device if device.type == "cuda" else None)


def _read_queries(files: str) -> list[Query]:
    from ret_lightning.data.readers.row_files import RowFiles
    from ret_lightning.data.rows import parse_query
    from ret_lightning.search.passages import no_rows

    rows = RowFiles.named(Path(), files, "queries")
    queries = [parse_query(content, place, judged=False) for content, place in rows]
    if not queries:
        raise no_rows(rows)
    return queries
