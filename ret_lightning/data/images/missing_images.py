"""Images that rows name, looked for before any of them is needed."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from ret_lightning.data.images.sources import ImageSource, image_source
from ret_lightning.data.rows import Passage, Query
from ret_lightning.errors import ConfigError, DataError
from ret_lightning.runtime.progress import progress_bar

CHECKED = 1000  # images that a thread looks for at a time
CHECKING_THREADS = 16


def check_images(rows: Sequence[Query] | Sequence[Passage], image_root: str | None) -> None:
    """Look for the images of rows before any of them is encoded, with a bar on a terminal.

    Args:
        rows: queries, or passages.
        image_root: a folder or an archive, see `image_source`; None: there are no images.

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
