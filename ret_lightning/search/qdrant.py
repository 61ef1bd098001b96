"""Passages in Qdrant: a collection of multi-vectors compared by MaxSim, on a server or in a folder of the client's local mode.

A point is a passage: its vectors, rounded to half precision as an `EmbeddingStore` has them, so that scores are the same;
its id, text and image path as payload; and an id made of the passage's. The vectors are of length 1, so their dot products,
which Qdrant is told to take, are their cosines. The collection's own metadata say which model made it and whether it is whole.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Container, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ret_lightning.data.images.missing_images import check_images
from ret_lightning.data.rows import Passage
from ret_lightning.errors import ConfigError, DataError, UserError
from ret_lightning.inputs.truncated_texts import TextCount
from ret_lightning.runtime.progress import progress_bar
from ret_lightning.search.encoded_rows import encoded
from ret_lightning.search.hits import Hit
from ret_lightning.search.index_builder import EncodingOptions
from ret_lightning.search.model_identity import ModelIdentity, model_for
from ret_lightning.search.passages import name_of, read_passages, refuse_known
from ret_lightning.search.qdrant_connection import connected

if TYPE_CHECKING:
    from qdrant_client import QdrantClient
    from qdrant_client.models import Filter, ScoredPoint

log = logging.getLogger(__name__)

RECORD = "ret_lightning"  # the key of a collection's metadata
POINTS_A_REQUEST = 64  # of 32 x 128 numbers: 5 MB of JSON
IDS_A_REQUEST = 1000
SHOWN = ("text", "image_path")  # of a passage, as the payload has them
IDS = uuid.UUID("7c0d3f0e-52c5-5b0e-9f5e-2b7a1d6a4c11")


@dataclass(frozen=True)
class Record:
    """What a collection's metadata say.

    Attributes:
        model: that encoded the passages.
        passages: how many there are since the last run of ret-index that came to its end; points of later rows are of a run
            that did not yet.
        whole: whether there are no such points.
        run: a name, by chance, of the run that wrote last.
    """

    model: ModelIdentity
    passages: int
    whole: bool
    run: str


class QdrantCollection:
    """A collection that ret-index made; while passages are added to it, it answers as before.

    Args:
        client: see `connected`.
        name: of the collection.

    Attributes:
        model: that encoded the passages.

    Raises:
        DataError: if there is no such collection, or it is of others or not finished.
    """

    def __init__(self, client: QdrantClient, name: str) -> None:
        from qdrant_client import models

        record = _record(client, name)
        if record is None:
            there = ", ".join(sorted(found.name for found in client.get_collections().collections)) or "none"
            raise DataError(
                f"collection={name}: Qdrant has no such collection; there are: {there}",
                code="qdrant-collection-missing",
                collection=name,
            )
        if not record.passages:
            raise DataError(
                f"collection={name}: is not finished; run ret-index again, it goes on where it stopped",
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
        """As `SearchFolder.search`; Qdrant's own index decides what is compared, exactly or not."""
        return [
            [
                Hit(rank, point.score, *(point.payload[name] for name in ("passage_id", "text", "image_path")))
                for rank, point in enumerate(self._best(query.tolist(), min(top_k, len(self))), start=1)
            ]
            for query in queries
        ]

    def _best(self, query: list[list[float]], top_k: int) -> list[ScoredPoint]:
        """The best points; of equal ones those of earlier rows, while Qdrant's own order among them is any."""
        limit = top_k + 1
        while True:
            points = self._client.query_points(
                self._name, query=query, limit=limit, query_filter=self._filter, with_payload=True
            ).points
            if len(points) < limit or points[-1].score < points[top_k - 1].score:
                return sorted(points, key=lambda point: (-point.score, point.payload["row"]))[:top_k]
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
    """Encode passages into a collection of Qdrant; an interrupted call continues where it stopped.

    Args:
        passages: a file (`.jsonl`, `.jsonl.gz`, `.jsonl.zst` or `.parquet`) or a pattern of files; or the passages.
        qdrant: the URL of a server, or a folder for the client's local mode; see `connected`.
        collection: its name.
        checkpoint: the model; see `EncodingOptions`, as for `image_root` and the arguments after it.
        append: add the passages to the collection that is there; their ids must be new.
        discard: remove what an interrupted call wrote, if it was of other passages.

    Raises:
        UserError: naming what to change; what was written until then is kept.
    """
    rows = read_passages(passages)
    named = name_of(passages)
    options = EncodingOptions.from_paths(
        checkpoint, image_root, batch_size=batch_size, num_workers=num_workers, device=device, dtype=dtype
    )
    with connected(qdrant) as client:
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
    """Write the passages; return how many the collection has then."""
    record = _record(client, name)
    _check_append(record, name, append)
    before = 0 if record is None else record.passages
    unfinished = {} if record is None or record.whole else _unfinished(client, name, before)
    ids = [_point_id(passage) for passage in passages]
    if before:
        of_points = list(zip(ids, passages, strict=True))
        refuse_known(passages, _known(client, name, of_points, unfinished), named)
    check_images(passages, options.image_root)
    others = unfinished.keys() - set(ids)
    if others and not discard:
        first = unfinished[min(others, key=lambda point: unfinished[point]["row"])]["passage_id"]
        raise ConfigError(
            f"collection={name}: an interrupted run wrote {len(others)} passages that {named} does not have, the "
            f"first is {first!r}; run that one again, or remove what it wrote by discard=true",
            code="qdrant-begun-otherwise",
            collection=name,
            count=len(others),
            found=first,
        )
    retriever, model = model_for(options.checkpoint, options.device, None if record is None else record.model)
    ours = Record(model, before, False, uuid.uuid4().hex)
    if record is None:
        _create(client, name, retriever.passage_tower.output_size, ours)
    else:
        _set_record(client, name, ours)
    if others:
        client.delete(name, sorted(others), wait=True)
        log.info("%d passages of an interrupted run removed", len(others))
    # Equal scores go by `row`: the place among all passages, in the order in which files were added.
    rows = {point: row for row, point in enumerate(ids, start=before)}
    there = rows.keys() & unfinished.keys()
    _move(client, name, {point: rows[point] for point in there if rows[point] != unfinished[point]["row"]})
    new = [(rows[id_], p) for id_, p in zip(ids, passages, strict=True) if not _is_of(p, unfinished.get(id_))]
    log.info("%d passages, %d to encode with %s", len(passages), len(new), model.source)
    waiting = iter(new)
    to_encode = [passage for _, passage in new]
    texts = TextCount()
    for vectors in encoded(
        retriever, to_encode, options.image_root, options.batch_size, options.num_workers, options.dtype, texts=texts
    ):
        for part in vectors.cpu().half().float().split(POINTS_A_REQUEST):
            _check_alone(client, name, ours)
            _upsert(client, name, [(*next(waiting), vector) for vector in part])
    texts.warn(log, "passage texts")
    _check_alone(client, name, ours)
    if (written := client.count(name, _later(before), exact=True).count) != len(passages):
        raise UserError(
            f"collection={name}: {written} passages were written instead of {len(passages)}, since another ret-index wrote "
            "beside this one; run it again with discard=true",
            code="qdrant-count-differs",
            collection=name,
            found=written,
            expected=len(passages),
        )
    _set_record(client, name, replace(ours, passages=before + len(passages), whole=True))
    return before + len(passages)


def _check_alone(client: QdrantClient, name: str, ours: Record) -> None:
    """Raises UserError where another run has begun to write meanwhile; the later one goes on."""
    if _record(client, name) != ours:
        raise UserError(
            f"collection={name}: another ret-index has begun to write into it, so this one stops",
            code="qdrant-another-writer",
            collection=name,
        )


def _check_append(record: Record | None, name: str, append: bool) -> None:
    """Raises ConfigError where a collection is there that should not be, or the reverse."""
    if append and record is None:
        raise ConfigError(
            f"append=true: Qdrant has no collection={name} to add to; leave append out to make one",
            code="qdrant-append-without-collection",
            collection=name,
        )
    if append and not record.passages:
        raise ConfigError(
            f"append=true: collection={name} is not finished, so nothing can be added to it; leave append out to go on",
            code="qdrant-append-to-unfinished",
            collection=name,
        )
    if not append and record is not None and record.passages:
        raise ConfigError(
            f"collection={name}: is there already; append=true adds to it, or choose another name",
            code="qdrant-collection-exists",
            collection=name,
        )


def _create(client: QdrantClient, name: str, width: int, record: Record) -> None:
    from qdrant_client import models

    vectors = models.VectorParams(
        size=width,
        distance=models.Distance.DOT,
        datatype=models.Datatype.FLOAT16,
        multivector_config=models.MultiVectorConfig(comparator=models.MultiVectorComparator.MAX_SIM),
        # No graph: over multi-vectors it is slow to build, and MaxSim would be approximated.
        hnsw_config=models.HnswConfigDiff(m=0),
    )
    client.create_collection(name, vectors_config=vectors, metadata={RECORD: asdict(record)})


def _record(client: QdrantClient, name: str) -> Record | None:
    """What is known of a collection; None where there is none, and DataError where it is somebody else's."""
    if not client.collection_exists(name):
        return None
    content: Any = (client.get_collection(name).config.metadata or {}).get(RECORD)
    try:
        return Record(**{**content, "model": ModelIdentity(**content["model"])})
    except (TypeError, KeyError):
        raise DataError(
            f"collection={name}: is there, but not made by ret-index; choose another name",
            code="qdrant-collection-foreign",
            collection=name,
        ) from None


def _set_record(client: QdrantClient, name: str, record: Record) -> None:
    client.update_collection(name, metadata={RECORD: asdict(record)})


def _later(row: int) -> Filter:
    """Points from a row on."""
    from qdrant_client import models

    return models.Filter(must=[models.FieldCondition(key="row", range=models.Range(gte=row))])


def _unfinished(client: QdrantClient, name: str, before: int) -> dict[str, dict[str, Any]]:
    """Point ids and payloads of what a run wrote that did not come to its end."""
    found: dict[str, dict[str, Any]] = {}
    offset = None
    while True:
        points, offset = client.scroll(
            name, _later(before), limit=IDS_A_REQUEST, offset=offset, with_payload=["row", "passage_id", *SHOWN]
        )
        found |= {point.id: point.payload for point in points}
        if offset is None:
            return found


def _known(
    client: QdrantClient, name: str, points: Sequence[tuple[str, Passage]], unfinished: Container[str]
) -> tuple[str, ...]:
    """Of the passages, each with the id of its point, the ids of those that the collection had when it was last whole."""
    known: list[str] = []
    for start in progress_bar(range(0, len(points), IDS_A_REQUEST), desc="looking up ids", delay=1):
        block = {point: passage.passage_id for point, passage in points[start : start + IDS_A_REQUEST]}
        found = client.retrieve(name, list(block), with_payload=False, with_vectors=False)
        known += [block[point.id] for point in found if point.id not in unfinished]
    return tuple(known)


def _is_of(passage: Passage, payload: dict[str, Any] | None) -> bool:
    """Whether a point was made of what the row says now; if its text or image is another, its vectors would be the old ones."""
    return payload is not None and all(payload.get(key) == getattr(passage, key) for key in SHOWN)


def _move(client: QdrantClient, name: str, rows: dict[str, int]) -> None:
    """Gives points other rows."""
    from qdrant_client import models

    moved = list(rows.items())
    for start in range(0, len(moved), IDS_A_REQUEST):
        client.batch_update_points(
            name,
            [
                models.SetPayloadOperation(set_payload=models.SetPayload(payload={"row": row}, points=[point]))
                for point, row in moved[start : start + IDS_A_REQUEST]
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
    """Qdrant takes whole numbers and UUIDs only; the same passage gets the same one in every run."""
    return str(uuid.uuid5(IDS, passage.passage_id))
