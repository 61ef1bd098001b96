"""Rows to vectors, for an index and for a file of queries."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ret_lightning.data.images.sources import ImageReader, ImageSource, image_source
from ret_lightning.data.rows import Passage, Query
from ret_lightning.data.torch_datasets import Collator, EvaluationRows
from ret_lightning.errors import ConfigError, DataError
from ret_lightning.inputs.truncated_texts import TextCount
from ret_lightning.models import RetRetriever
from ret_lightning.models.precision import dtype_named
from ret_lightning.runtime.fork_context import fork_context
from ret_lightning.runtime.progress import progress_bar

CHECKED = 1000  # images that a thread looks for at a time
CHECKING_THREADS = 16
PLURAL = {"query": "queries", "passage": "passages"}


def check_images(rows: Sequence[Query] | Sequence[Passage], image_root: str | None) -> None:
    """Look for the images of rows before any of them is encoded, with a bar on a terminal.

    Args:
        rows: queries, or passages.
        image_root: as for `encoded`.

    Raises:
        DataError: naming the first row whose image is missing or cannot be opened, and how many others are.
        ConfigError: if there are images and no `image_root`.
    """
    firsts: dict[str, Query | Passage] = {}
    for row in rows:
        if row.image_path is not None:
            firsts.setdefault(row.image_path, row)
    if not firsts:
        return
    if image_root is None:
        lost = next(iter(firsts.values()))
        raise ConfigError(
            f"{lost.place} names the image {lost.image_path}; image_root=DIR tells where images are",
            code="image-root-not-given",
            path=lost.place.file,
            line=lost.place.line,
            found=lost.image_path,
        )
    source, names = image_source(image_root), list(firsts)
    chunks = [names[at : at + CHECKED] for at in range(0, len(names), CHECKED)]
    first: DataError | None = None
    count = 0
    # Threads for network file systems, where each look takes a round trip.
    with (
        progress_bar(total=len(names), desc="looking for images", unit="image", delay=1) as progress,
        ThreadPoolExecutor(CHECKING_THREADS) as pool,
    ):
        for chunk, errors in zip(chunks, pool.map(partial(_errors, source), chunks), strict=True):
            for name, error in errors.items():
                message = f"{firsts[name].place}: {error.message}"
                first = first or DataError(message, error.kind, code=error.code, **error.values)
            count += len(errors)
            progress.update(len(chunk))
    if first is not None:
        more = f"; {count - 1} more of {len(names)} images cannot be found or opened" if count > 1 else ""
        raise DataError(first.message + more, first.kind, code=first.code, **first.values, missing=count)


def _errors(source: ImageSource, names: Sequence[str]) -> dict[str, DataError]:
    """The images that cannot be found or opened, by name."""
    errors = {}
    for name in names:
        try:
            source.find(name)
        except DataError as error:
            errors[name] = error
    return errors


def encoded(
    retriever: RetRetriever,
    rows: Sequence[Query] | Sequence[Passage],
    image_root: str | None,
    batch_size: int,
    num_workers: int,
    dtype: str | None = None,
    bar: bool = True,
    texts: TextCount | None = None,
) -> Iterator[Tensor]:
    """The vectors of rows, a batch at a time, with a bar on a terminal.

    Args:
        retriever: in eval mode, on the device to encode on.
        rows: queries, or passages.
        image_root: a folder or an archive of images, see `data.images.sources`; `check_images` looks for all of them.
        batch_size: rows a pass of the model.
        num_workers: processes that decode images while the model runs; 0: this one does it.
        dtype: what to compute in (autocast); None: float32, or as the weights are.
        bar: whether to show one.
        texts: the texts of the rows are added to it, and how many of them the tokenizer cuts.

    Yields:
        (B, k, d) float32 of length 1, on the model's device.

    Raises:
        DataError: naming the row, and its image if that is missing or cannot be decoded, or the vectors are not finite.
    """
    if not rows:
        return
    side = "query" if isinstance(rows[0], Query) else "passage"
    tower = getattr(retriever, f"{side}_tower")
    device = tower.start.device
    read_image = ImageReader(image_source(image_root or ""), tower.image_transform)
    loader = DataLoader(
        EvaluationRows(rows, read_image, subset=""),
        batch_size=batch_size,
        collate_fn=Collator(tower.tokenizer, tower.image_transform.size).evaluation,
        num_workers=num_workers,
        multiprocessing_context=fork_context() if num_workers else None,
        pin_memory=device.type == "cuda",
    )
    precision = torch.autocast(device.type, None if dtype is None else dtype_named(dtype), enabled=dtype is not None)
    with progress_bar(
        total=len(rows), desc=f"encoding {PLURAL[side]}", unit="row", delay=1, disable=not bar
    ) as progress:
        for batch in loader:
            with torch.inference_mode(), precision:
                vectors = retriever.encode(side, batch.inputs.to(device))
            finite = vectors.isfinite().flatten(1).all(dim=1).tolist()
            if not all(finite):
                place = rows[int(batch.rows[finite.index(False)])].place
                raise DataError(
                    f"{place}: the model encodes this {side} to numbers that are not finite; give another checkpoint"
                    + (f", or leave dtype={dtype} out" if dtype is not None else ""),
                    code="row-vectors-not-finite",
                    path=place.file,
                    line=place.line,
                )
            if texts is not None:
                texts.add(batch.texts)
            yield vectors
            progress.update(len(batch))
