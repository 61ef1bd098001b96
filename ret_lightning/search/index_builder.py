"""From passages to a search index in a folder."""

from __future__ import annotations

import errno
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import Any, NamedTuple

import torch
from filelock import FileLock, Timeout

from ret_lightning.data.images.missing_images import check_images
from ret_lightning.data.rows import CONTENT, Passage, hash_content
from ret_lightning.errors import ConfigError, DataError, UserError
from ret_lightning.inputs.truncated_texts import TextCount
from ret_lightning.models import RetRetriever
from ret_lightning.models.precision import device_named
from ret_lightning.retrieval import ExactIndex
from ret_lightning.retrieval.indexes.base import Index
from ret_lightning.retrieval.store.embedding_store import EmbeddingStore, StoreInProgress
from ret_lightning.retrieval.store.store_plan import MANIFEST as STORE_MANIFEST
from ret_lightning.retrieval.store.store_plan import PLAN, StoreMismatch
from ret_lightning.runtime.child_process import exit_with_parent
from ret_lightning.runtime.console import quiet_libraries
from ret_lightning.search.changed_rows import DIGESTS, drop_changed, write_digests
from ret_lightning.search.encoded_rows import encoded
from ret_lightning.search.index_folder import (
    EMBEDDINGS,
    LOCK,
    MANIFEST,
    SEARCH,
    VERSION,
    SearchFolder,
    finish_index,
    read_search_manifest,
)
from ret_lightning.search.model_identity import ModelIdentity, model_for
from ret_lightning.search.passages import PassageRecord, name_of, read_passages, refuse_known

log = logging.getLogger(__name__)

COPIED = 1024  # embeddings at a time that go from one version into the next


@dataclass(frozen=True)
class EncodingOptions:
    """How passages are encoded.

    Attributes:
        checkpoint: a run folder, a training checkpoint, a folder in the published layout, or a hub id; None: the one that the
            index was made with.
        image_root: what image paths are relative to, see `image_source`; None: no passage names an image file.
        batch_size: rows per batch.
        num_workers: processes that decode images while the model runs; 0: the encoding one does it.
        processes: that encode, each a share of the passages, spread over the GPUs where there are any.
        device: where to encode; None: a GPU, if there is one.
        dtype: what to compute in (autocast); None: as the weights are.
    """

    checkpoint: str | None = None
    image_root: str | None = None
    batch_size: int = 32
    num_workers: int = 0
    processes: int = 1
    device: str | None = None
    dtype: str | None = None

    @classmethod
    def from_paths(
        cls, checkpoint: str | Path | None, image_root: str | Path | None, **settings: Any
    ) -> EncodingOptions:
        """Create options from paths of type `str` or `Path`; `settings` are the other attributes."""
        return cls(
            checkpoint=None if checkpoint is None else str(checkpoint),
            image_root=None if image_root is None else str(image_root),
            **settings,
        )


def build_index(
    passages: str | Path | Sequence[Passage],
    index: str | Path,
    checkpoint: str | Path | None = None,
    *,
    method: Index | None = None,
    append: bool = False,
    discard: bool = False,
    image_root: str | Path | None = None,
    batch_size: int = 32,
    num_workers: int = 0,
    processes: int = 1,
    device: str | None = None,
    dtype: str | None = None,
) -> Path:
    """Encode passages and make them searchable, in a folder; an interrupted call continues where it stopped.

    Args:
        passages: a file (`.jsonl`, `.jsonl.gz`, `.jsonl.zst` or `.parquet`) or a pattern of files; or the passages.
        index: the folder to write.
        checkpoint: the model, see `EncodingOptions`.
        method: searches the vectors; None: exact search, or, with `append`, the method of the index that is there.
        append: add the passages to the index that is there; their ids must be new.
        discard: remove what an interrupted call wrote, if it was of other passages.
        image_root, batch_size, num_workers, processes, device, dtype: see `EncodingOptions`.

    Returns:
        The folder, which `search` and `SearchFolder` open.

    Raises:
        UserError: naming what to change; what was encoded until then is kept.
    """
    options = EncodingOptions.from_paths(
        checkpoint,
        image_root,
        batch_size=batch_size,
        num_workers=num_workers,
        processes=processes,
        device=device,
        dtype=dtype,
    )
    folder = Path(index)
    with _alone_in(folder):
        before = _before(folder, append)
        rows = read_passages(passages)
        named = name_of(passages)
        if before is not None:
            refuse_known(rows, before.embeddings.ids, named)
        check_images(rows, options.image_root)
        retriever, model = model_for(options.checkpoint, device, None if before is None else before.model)
        _build(folder, before, _Corpus(rows, named), retriever, model, options, method, discard)
    return folder


class _Corpus(NamedTuple):
    """Passages, and what messages call them."""

    passages: list[Passage]
    name: str


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    if folder.is_file():
        raise ConfigError(f"index={folder}: a file of that name is in the way", code="index-is-file", path=folder)
    if folder.is_dir():
        others = {path.name for path in folder.iterdir()} - {MANIFEST, LOCK}
        strange = sorted(name for name in others if not (VERSION.fullmatch(name) or name.startswith(f".{MANIFEST}.")))
        if strange:
            raise ConfigError(
                f"index={folder}: holds {strange[0]!r}, which is no part of an index; choose another folder",
                code="index-folder-not-empty",
                path=folder,
                found=strange[0],
            )
    lock = FileLock(folder / LOCK, timeout=0)
    is_new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise ConfigError(
            f"index={folder}: another ret-index is writing into it", code="index-locked", path=folder
        ) from None
    except OSError as error:
        raise ConfigError(
            f"index={folder}: cannot be written ({error.strerror or error})", code="index-not-written", path=folder
        ) from error
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise UserError(
            f"index={folder}: the disk is full; what was encoded is kept, run it again when there is room",
            code="index-disk-full",
            path=folder,
        ) from error
    finally:
        if is_new and [path.name for path in folder.iterdir()] == [LOCK]:  # nothing came of it
            (folder / LOCK).unlink()
            folder.rmdir()
        lock.release()


def _before(folder: Path, append: bool) -> SearchFolder | None:
    """The index that passages are added to; None for a new one."""
    if not append:
        if (folder / MANIFEST).exists():
            count = read_search_manifest(folder).passages
            raise ConfigError(
                f"index={folder}: holds an index of {count} passages; append=true adds to it, or choose another folder",
                code="index-exists",
                path=folder,
                passages=count,
            )
        return None
    if not (folder / MANIFEST).exists():
        raise ConfigError(
            f"append=true: index={folder} holds no finished index to add to; leave append out to make one",
            code="index-to-append-missing",
            path=folder,
        )
    return SearchFolder(folder)


def _build(
    folder: Path,
    before: SearchFolder | None,
    corpus: _Corpus,
    retriever: RetRetriever,
    model: ModelIdentity,
    options: EncodingOptions,
    method: Index | None,
    discard: bool,
) -> None:
    passages = corpus.passages
    version = 1 if before is None else before.version + 1
    at = folder / f"v{version}"
    kept = () if before is None else before.embeddings.ids
    share = _Share(
        at / EMBEDDINGS,
        None if before is None else folder,
        [*kept, *(p.passage_id for p in passages)],
        retriever.passage_tower.row_shape,
        model,
        passages,
        hash_content(passages),
        options,
    )
    store = _begun(share, corpus.name, discard)
    unwritten = sum(row >= len(kept) for row in store.writer().rows)
    log.info(
        "%d passages%s, %d to encode with %s",
        *(len(passages), f" for the {len(kept)} that are there" if kept else "", unwritten, model.source),
    )
    if options.processes == 1:
        texts = share.write(0, retriever, before)
    else:
        with _processes(options.processes - 1) as pool:
            others = [pool.submit(_write, share, rank) for rank in range(1, options.processes)]
            texts = share.write(0, retriever, before, others)
            for other in others:
                texts.add(other.result())
    texts.warn(log, "passage texts")
    embeddings = store.finish().embeddings
    # What is added to keeps its method and settings.
    index = (
        (ExactIndex() if method is None else method)
        if before is None
        else before.index.clone(None if method is None else method.device)
    )
    index.build(embeddings)
    index.save(at / SEARCH)
    shown = [] if before is None else list(before.shown)
    finish_index(
        folder, version, model, [*shown, *(PassageRecord(p.passage_id, p.text, p.image_path) for p in passages)]
    )
    (at / DIGESTS).unlink(missing_ok=True)
    log.info("%s: %d passages, searched by %s", folder, len(embeddings), type(index).__name__)


def _begun(share: _Share, passages: str, discard: bool) -> StoreInProgress:
    """The store of `share`; raises DataError if an interrupted run began another one, unless that is to be discarded."""
    version = share.folder.parent
    if not any((share.folder / name).exists() for name in (STORE_MANIFEST, PLAN)):
        write_digests(version, share.passages)
    try:
        return share.store()
    except StoreMismatch as error:
        if discard:
            shutil.rmtree(version)
            log.info("%s, of an interrupted run, removed", version)
            write_digests(version, share.passages)
            return share.store()
        edited = error.difference.startswith(CONTENT)
        changed = (
            drop_changed(version, share.folder, share.first_new, share.passages, share.made_with) if edited else None
        )
        if changed is not None:
            log.info(
                "%d passages were edited since %s was begun; the parts with them are encoded again", changed, version
            )
            return share.store()
        difference = "other texts or image paths than it has now" if edited else error.difference
        raise DataError(
            f"passages={passages}: an interrupted run began {version} with {difference}; finish it with the "
            "passages and options that it began with (append=true adds others then), or encode all again with discard=true",
            code="index-begun-otherwise",
            path=version,
            difference=difference,
        ) from None


@contextmanager
def _processes(count: int) -> Iterator[ProcessPoolExecutor]:
    """Processes that end with this one, however it ends, and at once where the block raises; what is written is kept."""
    # With their parent the lock on the folder is gone.
    pool = ProcessPoolExecutor(count, get_context("spawn"), initializer=exit_with_parent, initargs=(os.getpid(),))
    try:
        yield pool
    except BaseException:
        for process in active_children():
            process.kill()
        raise
    finally:
        pool.shutdown()


def _write(share: _Share, rank: int) -> TextCount:
    """What another process of the pool does."""
    with quiet_libraries():  # of its own, since it does not inherit what the command has set
        return share.write(rank)


@dataclass(frozen=True)
class _Share:
    """What each of several processes has to know to write its share of an `EmbeddingStore`."""

    folder: Path  # of the store
    added_to: Path | None  # the index folder whose embeddings come first
    ids: list[str]
    shape: tuple[int, int]
    model: ModelIdentity
    passages: list[Passage]
    content: str  # see `hash_content`
    options: EncodingOptions

    def store(self) -> StoreInProgress:
        """New, or one that was interrupted."""
        return EmbeddingStore.create(self.folder, self.ids, self.shape, self.model.fingerprint, self.made_with)

    @property
    def made_with(self) -> dict[str, Any]:
        """What decides the vectors besides the model and the ids."""
        # The content, too: what an interrupted run encoded would otherwise be paired with texts that were edited since.
        return {"dtype": self.options.dtype, CONTENT: self.content}

    @property
    def first_new(self) -> int:
        """The row of the first passage that is not of the index that is added to."""
        return len(self.ids) - len(self.passages)

    def write(
        self,
        rank: int,
        retriever: RetRetriever | None = None,
        before: SearchFolder | None = None,
        others: Sequence[Future[TextCount]] = (),
    ) -> TextCount:
        """Writes what is left of one rank's share; a process of its own opens the model and the index by itself.

        Raises what another rank raised as soon as that is known.

        Returns:
            The texts that it encoded.
        """
        options = self.options
        if before is None and self.added_to is not None:
            before = SearchFolder(self.added_to, verify=False)
        writer = self.store().writer(rank, options.processes)
        first_new = self.first_new
        copied = torch.tensor([row for row in writer.rows if row < first_new], dtype=torch.int64)
        new = [self.passages[row - first_new] for row in writer.rows if row >= first_new]
        for rows in copied.split(COPIED) if len(copied) else ():
            writer.add(before.embeddings.take(rows))
        texts = TextCount()
        if not new:
            return texts
        with self.fewer_threads():
            retriever = retriever or self.model.open(options.checkpoint, self._device(rank))
            for vectors in encoded(
                retriever,
                new,
                options.image_root,
                options.batch_size,
                options.num_workers,
                options.dtype,
                rank == 0,
                texts,
            ):
                writer.add(vectors)
                for other in others:
                    if other.done():
                        other.result()
        return texts

    @contextmanager
    def fewer_threads(self) -> Iterator[None]:
        """Several processes share the cores; more threads than these are much slower than one."""
        threads = torch.get_num_threads()
        torch.set_num_threads(max(1, threads // self.options.processes))
        try:
            yield
        finally:
            torch.set_num_threads(threads)

    def _device(self, rank: int) -> torch.device:
        device = device_named(self.options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
        return torch.device("cuda", rank % torch.cuda.device_count()) if device.type == "cuda" else device
