"""Index passages into a Qdrant collection of multi-vectors compared by MaxSim, on a server or in the local mode of the client.

A point is a passage. Its vectors are rounded to float16 as in an `EmbeddingStore`, so that both produce the same scores.
The payload holds the passage id, text and image path; the point id is derived from the passage id. Vectors are
L2-normalised, so dot products, the distance of the collection, are cosine similarities. The metadata of the collection
records the model that encoded it and whether it is complete.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Container, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor

from ret_lightning.data.images.missing_images import check_images
from ret_lightning.data.rows import Passage
from ret_lightning.errors import ConfigError, DataError, UserError
from ret_lightning.inputs.truncated_texts import TextCount
from ret_lightning.runtime.progress import progress_bar
from ret_lightning.search.encoded_rows import encode_batches
from ret_lightning.search.encoding_options import EncodingOptions
from ret_lightning.search.hits import Hit
from ret_lightning.search.model_identity import ModelIdentity, resolve_model
from ret_lightning.search.passages import check_ids_are_new, describe_source, read_passages
from ret_lightning.search.qdrant_connection import open_client

if TYPE_CHECKING:
    from qdrant_client import QdrantClient
    from qdrant_client.models import Filter, Record, ScoredPoint

log = logging.getLogger(__name__)

RECORD = "ret_lightning"  # key in the metadata of a collection
POINTS_PER_REQUEST = 64  # 5 MB of JSON for 32 vectors of width 128
IDS_PER_REQUEST = 1000
CONTENT_FIELDS = ("text", "image_path")  # payload keys that determine the vectors
ID_NAMESPACE = uuid.UUID("7c0d3f0e-52c5-5b0e-9f5e-2b7a1d6a4c11")


@dataclass(frozen=True)
class CollectionRecord:
    """The metadata of a collection.

    Attributes:
        model: model that encoded the passages.
        passages: number of passages after the last completed run of ret-index; points of later rows belong to an unfinished
            run.
        whole: whether there are no such points.
        run: random name of the run that wrote last.
    """

    model: ModelIdentity
    passages: int
    whole: bool
    run: str


class QdrantCollection:
    """A collection written by ret-index. Passages that are being added are not searched until the run is completed.

    Args:
        client: Qdrant client, see `open_client`.
        name: name of the collection.

    Attributes:
        model: model that encoded the passages.

    Raises:
        DataError: if the collection does not exist, was not created by ret-index, or is not finished.
    """

    def __init__(self, client: QdrantClient, name: str) -> None:
        from qdrant_client import models

        record = _read_record(client, name)
        if record is None:
            existing = ", ".join(sorted(found.name for found in client.get_collections().collections)) or "none"
            raise DataError(
                f"collection={name}: no such collection in Qdrant, expected one of: {existing}",
                code="qdrant-collection-missing",
                collection=name,
            )
        if not record.passages:
            raise DataError(
                f"collection={name}: not finished; run ret-index again to continue",
                code="qdrant-collection-unfinished",
                collection=name,
            )
        self.model = record.model
        self._client, self._name, self._passages = client, name, record.passages
        finished = models.FieldCondition(key="row", range=models.Range(lt=record.passages))
        self._filter = None if record.whole else models.Filter(must=[finished])

    def __len__(self) -> int:
        return self._passages

    def search(self, queries: Tensor, top_k: int) -> list[list[Hit]]:
        """Search the passages. Whether the search is exact depends on the index of the Qdrant collection.

        Args:
            queries: (Nq, k, d) tensor, L2-normalised.
            top_k: number of passages per query; all passages if there are fewer.

        Returns:
            The hits of each query, best first.
        """
        return [
            [
                Hit(rank, point.score, *(_payload(point)[name] for name in ("passage_id", "text", "image_path")))
                for rank, point in enumerate(self._best(query.tolist(), min(top_k, len(self))), start=1)
            ]
            for query in queries
        ]

    def _best(self, query: list[list[float]], top_k: int) -> list[ScoredPoint]:
        """Return the best points, equal scores ordered by row; Qdrant does not define their order."""
        limit = top_k + 1
        while True:
            points = self._client.query_points(
                self._name, query=query, limit=limit, query_filter=self._filter, with_payload=True
            ).points
            if len(points) < limit or points[-1].score < points[top_k - 1].score:
                return sorted(points, key=lambda point: (-point.score, _payload(point)["row"]))[:top_k]
            limit *= 2


def index_into_qdrant(
    passages: str | Path | Sequence[Passage],
    qdrant: str,
    collection: str,
    checkpoint: str | Path | None = None,
    *,
    append: bool = False,
    discard: bool = False,
    image_root: str | Path | None = None,
    batch_size: int = 32,
    num_workers: int = 0,
    device: str | None = None,
    dtype: str | None = None,
) -> None:
    """Encode passages into a Qdrant collection. An interrupted call continues when it is repeated.

    Args:
        passages: a file (`.jsonl`, `.jsonl.gz`, `.jsonl.zst` or `.parquet`), a pattern of files, or the passages.
        qdrant: URL of a server, or folder for the local mode of the client; see `open_client`.
        collection: name of the collection.
        checkpoint: checkpoint of the model, see `EncodingOptions`. None: the checkpoint of the existing collection.
        append: whether to add the passages to an existing collection; their ids must be new.
        discard: whether to remove the output of an interrupted call with other passages.
        image_root: folder or archive that contains the image paths, see `image_source`. None: no passage has an image.
        batch_size: number of rows per batch.
        num_workers: number of processes that decode images while the model runs; 0: the calling process.
        device: device to encode on. None: a GPU if there is one.
        dtype: dtype of autocast. None: the dtype of the weights.

    Raises:
        UserError: if an argument, the passages or the checkpoint are invalid, or Qdrant fails. Written points are kept.
    """
    rows = read_passages(passages)
    named = describe_source(passages)
    options = EncodingOptions.from_paths(
        checkpoint, image_root, batch_size=batch_size, num_workers=num_workers, device=device, dtype=dtype
    )
    with open_client(qdrant) as client:
        count = _index(client, collection, rows, named, options, append, discard)
    log.info("%s: %d passages in collection %s", qdrant, count, collection)


def _index(
    client: QdrantClient,
    name: str,
    passages: list[Passage],
    named: str,
    options: EncodingOptions,
    append: bool,
    discard: bool,
) -> int:
    """Write the passages; return the resulting number of passages in the collection."""
    record = _read_record(client, name)
    _check_append(record, name, append)
    before = 0 if record is None else record.passages
    unfinished = {} if record is None or record.whole else _unfinished_points(client, name, before)
    ids = [_point_id(passage) for passage in passages]
    if before:
        of_points = list(zip(ids, passages, strict=True))
        check_ids_are_new(passages, _find_existing_ids(client, name, of_points, unfinished), named)
    check_images(passages, options.image_root)
    others = unfinished.keys() - set(ids)
    if others and not discard:
        first = unfinished[min(others, key=lambda point: unfinished[point]["row"])]["passage_id"]
        raise ConfigError(
            f"collection={name}: an interrupted run wrote {len(others)} passages that are not in {named}, the first is "
            f"{first!r}; repeat that run, or set discard=true to remove them",
            code="qdrant-begun-otherwise",
            collection=name,
            count=len(others),
            found=first,
        )
    retriever, model = resolve_model(options.checkpoint, options.device, None if record is None else record.model)
    ours = CollectionRecord(model, before, False, uuid.uuid4().hex)
    if record is None:
        _create_collection(client, name, retriever.passage_tower.output_size, ours)
    else:
        _write_record(client, name, ours)
    if others:
        client.delete(name, sorted(others), wait=True)
        log.info("%d passages of an interrupted run removed", len(others))
    # `row` is the position among all passages in the order of addition; it orders equal scores.
    rows = {point: row for row, point in enumerate(ids, start=before)}
    written_before = rows.keys() & unfinished.keys()
    _set_rows(client, name, {point: rows[point] for point in written_before if rows[point] != unfinished[point]["row"]})
    new = [(rows[id_], p) for id_, p in zip(ids, passages, strict=True) if not _is_current(p, unfinished.get(id_))]
    log.info("%d passages, %d to encode with %s", len(passages), len(new), model.source)
    remaining = iter(new)
    to_encode = [passage for _, passage in new]
    texts = TextCount()
    for vectors in encode_batches(
        retriever, to_encode, options.image_root, options.batch_size, options.num_workers, options.dtype, texts=texts
    ):
        for part in vectors.cpu().half().float().split(POINTS_PER_REQUEST):
            _check_sole_writer(client, name, ours)
            _upsert(client, name, [(*next(remaining), vector) for vector in part])
    texts.warn(log, "passage texts")
    _check_sole_writer(client, name, ours)
    if (written := client.count(name, _rows_from(before), exact=True).count) != len(passages):
        raise UserError(
            f"collection={name}: expected {len(passages)} written passages, got {written}, because another ret-index wrote at "
            "the same time; run it again with discard=true",
            code="qdrant-count-differs",
            collection=name,
            found=written,
            expected=len(passages),
        )
    _write_record(client, name, replace(ours, passages=before + len(passages), whole=True))
    return before + len(passages)


def _check_sole_writer(client: QdrantClient, name: str, ours: CollectionRecord) -> None:
    """Raise UserError if another run has started to write; the later run continues."""
    if _read_record(client, name) != ours:
        raise UserError(
            f"collection={name}: another ret-index started writing to it; this run stops",
            code="qdrant-another-writer",
            collection=name,
        )


def _check_append(record: CollectionRecord | None, name: str, append: bool) -> None:
    """Raise ConfigError if the collection exists without `append`, or is missing or unfinished with it."""
    if append and record is None:
        raise ConfigError(
            f"append=true: collection={name} does not exist in Qdrant; set append=false to create it",
            code="qdrant-append-without-collection",
            collection=name,
        )
    if append and record is not None and not record.passages:
        raise ConfigError(
            f"append=true: collection={name} is not finished; set append=false to continue it first",
            code="qdrant-append-to-unfinished",
            collection=name,
        )
    if not append and record is not None and record.passages:
        raise ConfigError(
            f"collection={name}: already exists; set append=true to add to it, or choose another name",
            code="qdrant-collection-exists",
            collection=name,
        )


def _create_collection(client: QdrantClient, name: str, width: int, record: CollectionRecord) -> None:
    from qdrant_client import models

    vectors = models.VectorParams(
        size=width,
        distance=models.Distance.DOT,
        datatype=models.Datatype.FLOAT16,
        multivector_config=models.MultiVectorConfig(comparator=models.MultiVectorComparator.MAX_SIM),
        # No HNSW graph: it is slow to build over multi-vectors, and MaxSim would be approximate.
        hnsw_config=models.HnswConfigDiff(m=0),
    )
    client.create_collection(name, vectors_config=vectors, metadata={RECORD: asdict(record)})


def _read_record(client: QdrantClient, name: str) -> CollectionRecord | None:
    """Read the metadata of a collection.

    Returns:
        The metadata; None if the collection does not exist.

    Raises:
        DataError: if the collection was not created by ret-index.
    """
    if not client.collection_exists(name):
        return None
    content: Any = (client.get_collection(name).config.metadata or {}).get(RECORD)
    try:
        return CollectionRecord(**{**content, "model": ModelIdentity(**content["model"])})
    except (TypeError, KeyError):
        raise DataError(
            f"collection={name}: not created by ret-index, its metadata has no record of the model; choose another name",
            code="qdrant-collection-foreign",
            collection=name,
        ) from None


def _write_record(client: QdrantClient, name: str, record: CollectionRecord) -> None:
    client.update_collection(name, metadata={RECORD: asdict(record)})


def _payload(point: ScoredPoint | Record) -> dict[str, Any]:
    """Return the payload of a point that was requested with its payload."""
    return cast("dict[str, Any]", point.payload)


def _rows_from(row: int) -> Filter:
    """Return a filter for points from a row on."""
    from qdrant_client import models

    return models.Filter(must=[models.FieldCondition(key="row", range=models.Range(gte=row))])


def _unfinished_points(client: QdrantClient, name: str, before: int) -> dict[str, dict[str, Any]]:
    """Return point ids and payloads written by a run that did not complete."""
    found: dict[str, dict[str, Any]] = {}
    offset = None
    while True:
        points, offset = client.scroll(
            name,
            _rows_from(before),
            limit=IDS_PER_REQUEST,
            offset=offset,
            with_payload=["row", "passage_id", *CONTENT_FIELDS],
        )
        found |= {str(point.id): _payload(point) for point in points}
        if offset is None:
            return found


def _find_existing_ids(
    client: QdrantClient, name: str, points: Sequence[tuple[str, Passage]], unfinished: Container[str]
) -> tuple[str, ...]:
    """Return the ids of passages that the collection held after its last completed run.

    Args:
        client: Qdrant client.
        name: name of the collection.
        points: point ids and passages to look up.
        unfinished: ids of points written by an unfinished run.
    """
    known: list[str] = []
    for start in progress_bar(range(0, len(points), IDS_PER_REQUEST), desc="looking up ids", delay=1):
        block = {point: passage.passage_id for point, passage in points[start : start + IDS_PER_REQUEST]}
        found = client.retrieve(name, list(block), with_payload=False, with_vectors=False)
        known += [block[str(point.id)] for point in found if str(point.id) not in unfinished]
    return tuple(known)


def _is_current(passage: Passage, payload: dict[str, Any] | None) -> bool:
    """Return whether a point was encoded from the current text and image path of a passage."""
    return payload is not None and all(payload.get(key) == getattr(passage, key) for key in CONTENT_FIELDS)


def _set_rows(client: QdrantClient, name: str, rows: dict[str, int]) -> None:
    """Set the row of points in their payload."""
    from qdrant_client import models

    moved = list(rows.items())
    for start in range(0, len(moved), IDS_PER_REQUEST):
        client.batch_update_points(
            name,
            [
                models.SetPayloadOperation(set_payload=models.SetPayload(payload={"row": row}, points=[point]))
                for point, row in moved[start : start + IDS_PER_REQUEST]
            ],
            wait=True,
        )


def _upsert(client: QdrantClient, name: str, rows: list[tuple[int, Passage, Tensor]]) -> None:
    from qdrant_client import models

    points = [
        models.PointStruct(
            id=_point_id(passage),
            vector=vector.tolist(),
            payload={
                "row": row,
                "passage_id": passage.passage_id,
                "text": passage.text,
                "image_path": passage.image_path,
            },
        )
        for row, passage, vector in rows
    ]
    client.upsert(name, points, wait=True)


def _point_id(passage: Passage) -> str:
    """Return the UUID of a passage, derived from its id; Qdrant accepts integers and UUIDs only."""
    return str(uuid.uuid5(ID_NAMESPACE, passage.passage_id))
