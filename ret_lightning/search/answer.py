"""Answer queries from an index."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, cast

import torch
from torch import Tensor

from ret_lightning.errors import DataError
from ret_lightning.inputs import open_image
from ret_lightning.inputs.truncated_texts import TextCount, count_texts
from ret_lightning.models.precision import device_named
from ret_lightning.runtime.console import print_lines
from ret_lightning.search.hits import Hit
from ret_lightning.search.model_identity import ModelIdentity
from ret_lightning.search.output import check_output_file, json_lines, print_table, write_lines

if TYPE_CHECKING:
    from PIL import Image

    from ret_lightning.data.readers.row_files import RowFiles
    from ret_lightning.data.rows import Query


log = logging.getLogger(__name__)

Answer: TypeAlias = tuple[str | None, list[Hit]]  # data_id of the query, if any, and its hits


class Searchable(Protocol):
    """An index that can be searched: `SearchFolder` or `QdrantCollection`."""

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
    """Answer one query or many from an index written by `build_index` or `index_into_qdrant`.

        for data_id, hits in search("corpus", "a red bird"):
            print(hits[0].passage_id)

    Args:
        index: index folder; alternatively pass `qdrant` and `collection`.
        query: text of the query; None for a query without text.
        image: image file or image of the query; None for a query without image.
        queries: many queries instead of one: a file of rows in the format of ReT-M2KR queries, a pattern of such files, or
            the queries.
        image_root: folder or archive that contains the image paths of `queries`, see `image_source`.
        qdrant: URL of a Qdrant server, or folder for the local mode of the client.
        collection: name of the Qdrant collection.
        top_k: number of passages per query; all passages if there are fewer.
        checkpoint: current path of the checkpoint. None: the path at the time of indexing.
        verify: whether to compare the files of the index with their checksums, which reads them once.
        batch_size: number of queries per batch.
        num_workers: number of processes that decode the images of `queries`; 0: the calling process.
        device: device for encoding and scoring. None: a GPU if there is one.

    Yields:
        The data_id of a query (None for `query` and `image`) and its hits, best first.

    Raises:
        UserError: if the index, the checkpoint or a query is invalid.
    """
    # Read queries first, so that errors in them are reported immediately.
    picture = open_image(image) if isinstance(image, str | Path) else image
    rows = None if queries is None else _read_queries(queries)
    where = device_named(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    with _open_index(index, qdrant, collection, verify, where) as pool:
        retriever = pool.model.open(None if checkpoint is None else str(checkpoint), where)
        texts = TextCount()
        if rows is None:
            vectors = iter([retriever.encode_queries([(query, picture)])])
            texts = count_texts(retriever.query_tower.tokenizer, [query] if query else [])
            ids: list[str | None] = [None]
        else:
            from ret_lightning.data.images.missing_images import check_images
            from ret_lightning.data.types import distinct_ids
            from ret_lightning.search.encoded_rows import encode_batches

            root = None if image_root is None else str(image_root)
            check_images(rows, root)
            vectors = encode_batches(retriever, rows, root, batch_size, num_workers, texts=texts)
            ids = [*distinct_ids(rows)]
        yield from _with_short_warning(pool, _search_batches(pool, vectors, ids, top_k), len(ids), top_k)
        texts.warn(log, "query texts")


def write_answers(answers: Iterator[Answer], output: str | Path | None = None, overwrite: bool = False) -> None:
    """Write answers as JSON Lines to a file or to standard output; as tables if standard output is a terminal.

    Args:
        answers: answers yielded by `search`.
        output: file to write, replaced only when it is complete. None: standard output.
        overwrite: whether an existing file may be replaced.

    Raises:
        ConfigError: if the file cannot be written; raised before any query is answered.
    """
    if output is not None:
        check_output_file(Path(output), overwrite)
        write_lines(Path(output), json_lines(answers))
    elif sys.stdout.isatty():
        for data_id, hits in answers:
            print_table(hits, data_id)
    else:
        print_lines(json_lines(answers))


def _search_batches(pool: Searchable, vectors: Iterator[Tensor], ids: list[str | None], top_k: int) -> Iterator[Answer]:
    remaining_ids = iter(ids)
    for batch in vectors:
        if not batch.isfinite().all():
            raise DataError(
                f"checkpoint {pool.model.source}: the vectors of the query are not finite; index the passages with another "
                "checkpoint",
                code="query-not-finite",
                path=pool.model.source,
            )
        for hits in pool.search(batch.cpu(), top_k):
            yield next(remaining_ids), hits


def _with_short_warning(pool: Searchable, answers: Iterator[Answer], queries: int, top_k: int) -> Iterator[Answer]:
    """Yield the answers, then log a warning if queries had too few candidates from an approximate index."""
    yield from answers
    if short := getattr(pool, "short_queries", 0):
        log.warning(
            "fewer than top_k=%d candidates for %d of %d queries, %s; increase retrieval.nprobe, retrieval.hits or "
            "retrieval.candidates of ret-index",
            *(top_k, short, queries),
            "which were ranked exactly" if cast(Any, pool).index.exact_fallback else "whose answers are shorter",
        )


@contextmanager
def _open_index(
    index: str | Path | None, qdrant: str | None, collection: str | None, verify: bool, device: torch.device
) -> Iterator[Searchable]:
    if qdrant is not None:
        from ret_lightning.search.qdrant import QdrantCollection
        from ret_lightning.search.qdrant_connection import open_client

        with open_client(qdrant, must_exist=True) as client:
            yield QdrantCollection(client, cast(str, collection))
        return
    from ret_lightning.search.index_folder import SearchFolder

    # An index supports CPU and CUDA; the model may be on another device (mps).
    yield SearchFolder(cast("str | Path", index), verify, device if device.type == "cuda" else None)


def _read_queries(files: str | Path | Sequence[Query]) -> list[Query]:
    from ret_lightning.data.readers import row_files
    from ret_lightning.data.rows import parse_query
    from ret_lightning.search.passages import no_rows_error

    source: RowFiles | str = "queries"
    if isinstance(files, str | Path):
        source = row_files.RowFiles.named(Path(), str(files), "queries")
        queries = [parse_query(content, location, with_positives=False) for content, location in source]
    else:
        queries = list(files)
    if not queries:
        raise no_rows_error(source)
    return queries
