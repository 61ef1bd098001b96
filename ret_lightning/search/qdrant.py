"""Passages in Qdrant: a collection of multi-vectors compared by MaxSim, on a server or in a folder of the client's local mode.

A point is a passage: its vectors, rounded to half precision as an `EmbeddingStore` has them, so that scores are the same;
its id, text and image path as payload; and an id made of the passage's. The vectors are of length 1, so their dot products,
which Qdrant is told to take, are their cosines. The collection's own metadata say which model made it and whether it is whole.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig
from torch import Tensor

from ret_lightning.data.rows import Passage
from ret_lightning.errors import ConfigError, DataError, UserError
from ret_lightning.progress import progress_bar
from ret_lightning.search.building import model_for, refuse_known
from ret_lightning.search.encoding import encoded
from ret_lightning.search.hits import Hit
from ret_lightning.search.identity import ModelIdentity
from ret_lightning.search.passages import read_passages

if TYPE_CHECKING:
    from qdrant_client import QdrantClient

log = logging.getLogger(__name__)

RECORD = "ret_lightning"  # the key of a collection's metadata
KEY_VARIABLE = "QDRANT_API_KEY"
OLDEST_SERVER = (1, 16)  # the first with metadata of a collection; multi-vectors are there from 1.10 on
TIMEOUT = 60  # seconds a request
POINTS_A_REQUEST = 64  # of 32 x 128 numbers: 5 MB of JSON
IDS_A_REQUEST = 1000
SHOWN = ("text", "image_path")  # of a passage, as the payload has them
IDS = uuid.UUID("7c0d3f0e-52c5-5b0e-9f5e-2b7a1d6a4c11")


@dataclass(frozen=True)
class Record:
    """What a collection's metadata say.

    Attributes:
        model: that encoded the passages.
        whole: whether the last run of ret-index came to its end.
        ids_sha256: checksum of the ids that it wrote or was writing.
    """

    model: ModelIdentity
    whole: bool
    ids_sha256: str


class QdrantCollection:
    """A whole collection that ret-index made.

    Args:
        client: see `connected`.
        name: of the collection.

    Attributes:
        model: that encoded the passages.

    Raises:
        DataError: if there is no such collection, or it is of others or not finished.
    """

    def __init__(self, client: QdrantClient, name: str) -> None:
        record = _record(client, name)
        if record is None:
            there = ", ".join(sorted(found.name for found in client.get_collections().collections)) or "none"
            raise DataError(f"collection={name}: Qdrant has no such collection; there are: {there}")
        if not record.whole:
            raise DataError(f"collection={name}: is not finished; run ret-index again, it goes on where it stopped")
        self.model = record.model
        self._client, self._name = client, name

    def __len__(self) -> int:
        return self._client.count(self._name, exact=True).count

    def search(self, queries: Tensor, top_k: int) -> list[list[Hit]]:
        """As `SearchFolder.search`; Qdrant's own index decides what is compared, exactly or not."""
        answers = []
        for query in queries:
            points = self._client.query_points(self._name, query=query.tolist(), limit=top_k, with_payload=True).points
            best = sorted(points, key=lambda point: (-point.score, point.payload["row"]))
            answers.append(
                [
                    Hit(rank, point.score, *(point.payload[name] for name in ("passage_id", "text", "image_path")))
                    for rank, point in enumerate(best, start=1)
                ]
            )
        return answers


@contextmanager
def connected(place: str, must_exist: bool = False) -> Iterator[QdrantClient]:
    """A client of a Qdrant server or of a folder; what Qdrant complains of becomes a UserError.

    Args:
        place: a URL, whose key is in the environment variable QDRANT_API_KEY, if it needs one; or a folder, in which the
            client keeps collections by itself, for up to some ten thousand passages.
        must_exist: a folder that is not there is an error; otherwise it is made.

    Raises:
        ConfigError: if qdrant-client is not installed, or there is no such folder.
        UserError: if the server cannot be reached, is too old, or refuses something.
    """
    try:
        from qdrant_client import QdrantClient
        from qdrant_client.common.client_exceptions import QdrantException
        from qdrant_client.http.exceptions import ApiException
    except ImportError:
        raise ConfigError(
            f"qdrant={place}: needs the package qdrant-client: pip install 'ret_lightning[qdrant]'"
        ) from None
    remote = "://" in place
    if not remote and must_exist and not Path(place).is_dir():
        raise ConfigError(f"qdrant={place}: no such folder (the URL of a server would begin with http://)")
    try:
        if remote:
            client = QdrantClient(
                url=place, api_key=os.environ.get(KEY_VARIABLE), timeout=TIMEOUT, check_compatibility=False
            )
        else:
            client = QdrantClient(path=place)
        try:
            if remote:
                _check_version(client.info().version, place)
            yield client
        finally:
            client.close()
    except (ApiException, QdrantException) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(f"qdrant={place}: {lines[0]}") from error
    except RuntimeError as error:
        if "already accessed by another instance" not in str(error):
            raise
        raise ConfigError(f"qdrant={place}: another process has the folder open; a server takes many") from error


def index_into_qdrant(config: DictConfig) -> None:
    """See `building.index_passages`."""
    passages = read_passages(config.passages)
    with connected(config.qdrant) as client:
        _index(client, config.collection, passages, config)


def _index(client: QdrantClient, name: str, passages: list[Passage], config: DictConfig) -> None:
    record = _record(client, name)
    checksum = hashlib.sha256(json.dumps([passage.passage_id for passage in passages]).encode()).hexdigest()
    if record is None and config.append:
        raise ConfigError(f"append=true: Qdrant has no collection={name} to add to; leave append out to make one")
    if record is not None and record.whole and not config.append:
        raise ConfigError(f"collection={name}: is there already; append=true adds to it, or choose another name")
    if record is not None and not record.whole and record.ids_sha256 != checksum:
        raise ConfigError(
            f"collection={name}: an earlier run with other passages than {config.passages} is not finished; run that one "
            "again, or delete the collection"
        )
    known = [] if record is None else _known(client, name, passages, unfinished=not record.whole)
    if record is not None and record.whole:
        refuse_known(passages, tuple(passage.passage_id for passage in known), config.passages)
    retriever, model = model_for(config, None if record is None else record.model)
    if record is None:
        _create(client, name, retriever.passage_tower.output_size, Record(model, False, checksum))
    else:
        _set_record(client, name, Record(model, False, checksum))
    there = {passage.passage_id for passage in known}
    rows = [row for row, passage in enumerate(passages) if passage.passage_id not in there]
    # Equal scores go by `row`: the place among all passages, in the order in which files were added.
    first = client.count(name, exact=True).count - len(known)
    log.info("%d passages, %d to encode with %s", len(passages), len(rows), model.source)
    new = [passages[row] for row in rows]
    waiting = iter([(first + row, passages[row]) for row in rows])
    for vectors in encoded(retriever, new, config.image_root, config.batch_size, config.num_workers, config.dtype):
        for part in vectors.cpu().half().float().split(POINTS_A_REQUEST):
            _upsert(client, name, [(*next(waiting), vector) for vector in part])
    _set_record(client, name, Record(model, True, checksum))
    log.info("%s: %d passages in collection %s", config.qdrant, client.count(name, exact=True).count, name)


def _create(client: QdrantClient, name: str, width: int, record: Record) -> None:
    from qdrant_client import models

    vectors = models.VectorParams(
        size=width,
        distance=models.Distance.DOT,
        datatype=models.Datatype.FLOAT16,
        multivector_config=models.MultiVectorConfig(comparator=models.MultiVectorComparator.MAX_SIM),
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
        raise DataError(f"collection={name}: is there, but not made by ret-index; choose another name") from None


def _set_record(client: QdrantClient, name: str, record: Record) -> None:
    client.update_collection(name, metadata={RECORD: asdict(record)})


def _known(client: QdrantClient, name: str, passages: Sequence[Passage], unfinished: bool) -> list[Passage]:
    """Those of the passages that the collection has.

    Raises:
        DataError: if what an interrupted run wrote of one is not what its row says now, whose vectors would be the old ones.
    """
    known = []
    for start in progress_bar(range(0, len(passages), IDS_A_REQUEST), desc="looking up ids", delay=1):
        block = {_point_id(passage): passage for passage in passages[start : start + IDS_A_REQUEST]}
        found = client.retrieve(name, list(block), with_payload=list(SHOWN), with_vectors=False)
        payloads = {point.id: point.payload or {} for point in found}
        there = [(passage, payloads[point_id]) for point_id, passage in block.items() if point_id in payloads]
        for passage, payload in there if unfinished else ():
            if changed := [key for key in SHOWN if payload.get(key) != getattr(passage, key)]:
                raise DataError(
                    f"{passage.place}: passage {passage.passage_id!r} has another {changed[0]} than the interrupted run wrote "
                    f"into collection={name}; make the row what it was, or delete the collection to begin anew"
                )
        known += [passage for passage, _ in there]
    return known


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


def _check_version(version: str, place: str) -> None:
    numbers = tuple(int(part) for part in version.split(".")[:2])
    if numbers < OLDEST_SERVER:
        wanted = ".".join(map(str, OLDEST_SERVER))
        raise UserError(f"qdrant={place}: the server is version {version}; {wanted} or later is needed")
