"""From queries to what was found."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeAlias

import torch
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


def search(
    index: str | Path | None = None,
    query: str | None = None,
    image: str | Path | Image.Image | None = None,
    *,
    queries: str | Path | Sequence[Query] | None = None,
    image_root: str | Path | None = None,
    qdrant: str | None = None,
    collection: str | None = None,
    top_k: int = 10,
    checkpoint: str | Path | None = None,
    verify: bool = True,
    batch_size: int = 32,
    num_workers: int = 0,
    device: str | None = None,
) -> Iterator[Answer]:
    """Answer one query, or many, from what `build_index` or `index_into_qdrant` made.

        for data_id, hits in search("corpus", "a red bird"):
            print(hits[0].passage_id)

    Args:
        index: the folder; or, instead, qdrant and collection.
        query: the text of a query; None: a query without text.
        image: an image file, or an image, of the query; None: a query without image.
        queries: many queries instead: a file of rows as ReT-M2KR's queries or a pattern of files; or the queries.
        image_root: what the image paths of `queries` are relative to, see `image_source`.
        qdrant: the URL of a server, or a folder of the client's local mode.
        collection: its name in Qdrant.
        top_k: passages per query; all of them, if there are not more.
        checkpoint: where the checkpoint is now; None: where it was when the passages were indexed.
        verify: whether the files of the index are compared with their checksums first, which reads them once.
        batch_size: queries per batch.
        num_workers: processes that decode the images of `queries`; 0: the calling one does it.
        device: where to encode and to score; None: a GPU, if there is one.

    Yields:
        The data_id of a query, None for `query` and `image`, and its hits, best first.

    Raises:
        UserError: naming what to change.
    """
    # What can be wrong with a query is reported before anything that takes long.
    picture = open_image(image) if isinstance(image, str | Path) else image
    rows = None if queries is None else _read_queries(queries)
    where = device_named(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    with _open_pool(index, qdrant, collection, verify, where) as pool:
        retriever = pool.model.open(None if checkpoint is None else str(checkpoint), where)
        texts = TextCount()
        if rows is None:
            vectors = iter([retriever.encode_queries([(query, picture)])])
            texts = count_texts(retriever.query_tower.tokenizer, [query] if query else [])
            ids: list[str | None] = [None]
        else:
            from ret_lightning.data.images.missing_images import check_images
            from ret_lightning.data.types import distinct_ids
            from ret_lightning.search.encoded_rows import encoded

            root = None if image_root is None else str(image_root)
            check_images(rows, root)
            vectors = encoded(retriever, rows, root, batch_size, num_workers, texts=texts)
            ids = [*distinct_ids(rows)]
        yield from _counted(pool, _answers(pool, vectors, ids, top_k), len(ids), top_k)
        texts.warn(log, "query texts")


def write_answers(answers: Iterator[Answer], output: str | Path | None = None, overwrite: bool = False) -> None:
    """Write answers as JSON Lines into a file, or to standard output; as tables where that is a terminal.

    Args:
        answers: of `search`.
        output: a file, written whole or not at all; None: standard output.
        overwrite: whether a file of that name may be replaced.

    Raises:
        ConfigError: if the file cannot be written, before any query is answered.
    """
    if output is not None:
        refuse_existing_output(Path(output), overwrite)
        write_lines(Path(output), json_lines(answers))
    elif sys.stdout.isatty():
        for data_id, hits in answers:
            print_table(hits, data_id)
    else:
        print_lines(json_lines(answers))


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
def _open_pool(
    index: str | Path | None, qdrant: str | None, collection: str | None, verify: bool, device: torch.device
) -> Iterator[Pool]:
    if qdrant is not None:
        from ret_lightning.search.qdrant import QdrantCollection
        from ret_lightning.search.qdrant_connection import connected

        with connected(qdrant, must_exist=True) as client:
            yield QdrantCollection(client, collection)
        return
    from ret_lightning.search.index_folder import SearchFolder

    # An index knows of GPUs and of the CPU; a model can be elsewhere (mps).
    yield SearchFolder(index, verify, device if device.type == "cuda" else None)


def _read_queries(files: str | Path | Sequence[Query]) -> list[Query]:
    from ret_lightning.data.readers.row_files import RowFiles
    from ret_lightning.data.rows import parse_query
    from ret_lightning.search.passages import no_rows

    if isinstance(files, str | Path):
        rows = RowFiles.named(Path(), str(files), "queries")
        queries = [parse_query(content, location, with_positives=False) for content, location in rows]
    else:
        rows, queries = "queries", list(files)
    if not queries:
        raise no_rows(rows)
    return queries
