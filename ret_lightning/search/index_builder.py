"""Build a search index of passages in a folder."""

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
from ret_lightning.search.encoded_rows import encode_batches
from ret_lightning.search.encoding_options import EncodingOptions
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
from ret_lightning.search.model_identity import ModelIdentity, resolve_model
from ret_lightning.search.passages import PassageRecord, check_ids_are_new, describe_source, read_passages

log = logging.getLogger(__name__)

COPY_BLOCK = 1024  # embeddings copied at a time from one version to the next


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
    """Encode passages and build a search index in a folder. An interrupted call continues when it is repeated.

    Args:
        passages: a file (`.jsonl`, `.jsonl.gz`, `.jsonl.zst` or `.parquet`), a pattern of files, or the passages.
        index: folder to write.
        checkpoint: checkpoint of the model, see `EncodingOptions`.
        method: index that searches the vectors. None: exact search, or the method of the existing index if `append` is set.
        append: whether to add the passages to an existing index; their ids must be new.
        discard: whether to remove the output of an interrupted call with other passages.
        image_root: folder or archive that contains the image paths, see `image_source`. None: no passage has an image.
        batch_size: number of rows per batch.
        num_workers: number of processes that decode images while the model runs; 0: the encoding process.
        processes: number of processes that encode, each a part of the passages.
        device: device to encode on. None: a GPU if there is one.
        dtype: dtype of autocast. None: the dtype of the weights.

    Returns:
        The folder, which `search` and `SearchFolder` open.

    Raises:
        UserError: if an argument, the passages or the checkpoint are invalid. Vectors encoded so far are kept.
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
    with _locked_folder(folder):
        existing = _open_existing(folder, append)
        rows = read_passages(passages)
        named = describe_source(passages)
        if existing is not None:
            check_ids_are_new(rows, existing.embeddings.ids, named)
        check_images(rows, options.image_root)
        retriever, model = resolve_model(options.checkpoint, device, None if existing is None else existing.model)
        _build_version(folder, existing, _Corpus(rows, named), retriever, model, options, method, discard)
    return folder


class _Corpus(NamedTuple):
    """Passages and their name in messages."""

    passages: list[Passage]
    name: str


@contextmanager
def _locked_folder(folder: Path) -> Iterator[None]:
    if folder.is_file():
        raise ConfigError(
            f"index={folder}: expected a folder, got a file; choose another folder", code="index-is-file", path=folder
        )
    if folder.is_dir():
        others = {path.name for path in folder.iterdir()} - {MANIFEST, LOCK}
        unexpected = sorted(
            name for name in others if not (VERSION.fullmatch(name) or name.startswith(f".{MANIFEST}."))
        )
        if unexpected:
            raise ConfigError(
                f"index={folder}: unexpected file {unexpected[0]!r}, not part of an index; choose another folder",
                code="index-folder-not-empty",
                path=folder,
                found=unexpected[0],
            )
    lock = FileLock(folder / LOCK, timeout=0)
    is_new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise ConfigError(
            f"index={folder}: locked by another ret-index; wait until it has finished", code="index-locked", path=folder
        ) from None
    except OSError as error:
        raise ConfigError(
            f"index={folder}: not writable ({error.strerror or error}); choose another folder",
            code="index-not-written",
            path=folder,
        ) from error
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(
            f"index={folder}: the disk is full or a quota is exceeded; free space and run the same command again to continue",
            code="index-disk-full",
            path=folder,
        ) from error
    finally:
        if is_new and [path.name for path in folder.iterdir()] == [LOCK]:  # remove a new folder without an index
            (folder / LOCK).unlink()
            folder.rmdir()
        lock.release()


def _open_existing(folder: Path, append: bool) -> SearchFolder | None:
    """Open the index to which passages are added; None for a new index."""
    if not append:
        if (folder / MANIFEST).exists():
            count = read_search_manifest(folder).passages
            raise ConfigError(
                f"index={folder}: index of {count} passages exists; set append=true to add to it, or choose another folder",
                code="index-exists",
                path=folder,
                passages=count,
            )
        return None
    if not (folder / MANIFEST).exists():
        raise ConfigError(
            f"append=true: index={folder} is not a finished index; set append=false to create one",
            code="index-to-append-missing",
            path=folder,
        )
    return SearchFolder(folder)


def _build_version(
    folder: Path,
    existing: SearchFolder | None,
    corpus: _Corpus,
    retriever: RetRetriever,
    model: ModelIdentity,
    options: EncodingOptions,
    method: Index | None,
    discard: bool,
) -> None:
    passages = corpus.passages
    version = 1 if existing is None else existing.version + 1
    version_folder = folder / f"v{version}"
    kept = () if existing is None else existing.embeddings.ids
    job = _EncodingJob(
        version_folder / EMBEDDINGS,
        None if existing is None else folder,
        [*kept, *(p.passage_id for p in passages)],
        retriever.passage_tower.row_shape,
        model,
        passages,
        hash_content(passages),
        options,
    )
    store = _open_store(job, corpus.name, discard)
    unwritten = sum(row >= len(kept) for row in store.writer().rows)
    log.info(
        "%d passages%s, %d to encode with %s",
        *(len(passages), f" to add to {len(kept)}" if kept else "", unwritten, model.source),
    )
    if options.processes == 1:
        texts = job.write(0, retriever, existing)
    else:
        with _worker_pool(options.processes - 1) as pool:
            others = [pool.submit(_write_in_worker, job, rank) for rank in range(1, options.processes)]
            texts = job.write(0, retriever, existing, others)
            for other in others:
                texts.add(other.result())
    texts.warn(log, "passage texts")
    embeddings = store.finish().embeddings
    # An existing index keeps its method and settings.
    index = (
        (ExactIndex() if method is None else method)
        if existing is None
        else existing.index.clone(None if method is None else method.device)
    )
    index.build(embeddings)
    index.save(version_folder / SEARCH)
    records = [] if existing is None else list(existing.records)
    finish_index(
        folder, version, model, [*records, *(PassageRecord(p.passage_id, p.text, p.image_path) for p in passages)]
    )
    (version_folder / DIGESTS).unlink(missing_ok=True)
    log.info("%s: %d passages, index %s", folder, len(embeddings), type(index).__name__)


def _open_store(job: _EncodingJob, passages: str, discard: bool) -> StoreInProgress:
    """Open the store of a job.

    If an interrupted run started another store, remove it if `discard` is set, encode only edited passages again if just
    their content differs, and raise DataError otherwise.
    """
    version = job.folder.parent
    if not any((job.folder / name).exists() for name in (STORE_MANIFEST, PLAN)):
        write_digests(version, job.passages)
    try:
        return job.store()
    except StoreMismatch as error:
        if discard:
            shutil.rmtree(version)
            log.info("%s of an interrupted run removed", version)
            write_digests(version, job.passages)
            return job.store()
        edited = error.difference.startswith(CONTENT)
        changed = drop_changed(version, job.folder, job.first_new, job.passages, job.store_config) if edited else None
        if changed is not None:
            log.info("%d passages were edited since %s was started; their parts are encoded again", changed, version)
            return job.store()
        difference = "other texts or image paths" if edited else error.difference
        raise DataError(
            f"passages={passages}: an interrupted run started {version} with {difference}; finish it with its own passages "
            "and options (then add others with append=true), or set discard=true to encode everything again",
            code="index-begun-otherwise",
            path=version,
            difference=difference,
        ) from None


@contextmanager
def _worker_pool(count: int) -> Iterator[ProcessPoolExecutor]:
    """Processes that end with this process, and immediately if the block raises. Written vectors are kept."""
    # The lock on the folder ends with this process, so its children must end, too.
    pool = ProcessPoolExecutor(count, get_context("spawn"), initializer=exit_with_parent, initargs=(os.getpid(),))
    try:
        yield pool
    except BaseException:
        for process in active_children():
            process.kill()
        raise
    finally:
        pool.shutdown()


def _write_in_worker(job: _EncodingJob, rank: int) -> TextCount:
    with quiet_libraries():  # not inherited from the command
        return job.write(rank)


@dataclass(frozen=True)
class _EncodingJob:
    """Everything that a process needs to write its part of an `EmbeddingStore`."""

    folder: Path  # folder of the store
    base_index: Path | None  # index folder whose embeddings come first
    ids: list[str]
    shape: tuple[int, int]
    model: ModelIdentity
    passages: list[Passage]
    content: str  # `hash_content` of the passages
    options: EncodingOptions

    def store(self) -> StoreInProgress:
        """Create the store or continue an interrupted one."""
        return EmbeddingStore.create(self.folder, self.ids, self.shape, self.model.fingerprint, self.store_config)

    @property
    def store_config(self) -> dict[str, Any]:
        """Settings that determine the vectors, besides the model and the ids."""
        # Includes the content, so that vectors are never paired with texts that were edited later.
        return {"dtype": self.options.dtype, CONTENT: self.content}

    @property
    def first_new(self) -> int:
        """Row of the first passage that is not in the existing index."""
        return len(self.ids) - len(self.passages)

    def write(
        self,
        rank: int,
        retriever: RetRetriever | None = None,
        existing: SearchFolder | None = None,
        others: Sequence[Future[TextCount]] = (),
    ) -> TextCount:
        """Write the remaining rows of one rank.

        Args:
            rank: rank of this process.
            retriever: the model; None: it is opened from its checkpoint.
            existing: the existing index; None: it is opened if there is one.
            others: results of the other ranks; if one of them raises, so does this method, as soon as possible.

        Returns:
            Counts of the encoded texts.
        """
        options = self.options
        if existing is None and self.base_index is not None:
            existing = SearchFolder(self.base_index, verify=False)
        writer = self.store().writer(rank, options.processes)
        first_new = self.first_new
        copied = torch.tensor([row for row in writer.rows if row < first_new], dtype=torch.int64)
        new = [self.passages[row - first_new] for row in writer.rows if row >= first_new]
        for rows in copied.split(COPY_BLOCK) if len(copied) else ():
            writer.add(existing.embeddings.take(rows))
        texts = TextCount()
        if not new:
            return texts
        with self.limited_threads():
            retriever = retriever or self.model.open(options.checkpoint, self._device(rank))
            for vectors in encode_batches(
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
    def limited_threads(self) -> Iterator[None]:
        """Divide the CPU threads between the processes; oversubscription is much slower."""
        threads = torch.get_num_threads()
        torch.set_num_threads(max(1, threads // self.options.processes))
        try:
            yield
        finally:
            torch.set_num_threads(threads)

    def _device(self, rank: int) -> torch.device:
        device = device_named(self.options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
        return torch.device("cuda", rank % torch.cuda.device_count()) if device.type == "cuda" else device
