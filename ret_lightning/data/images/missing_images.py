"""Check for missing images, before rows are encoded."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from ret_lightning.data.images.sources import ImageSource, image_source
from ret_lightning.data.rows import Passage, Query
from ret_lightning.errors import ConfigError, DataError
from ret_lightning.runtime.progress import progress_bar

IMAGES_PER_CHUNK = 1000  # per task of a thread
CHECK_THREADS = 16


def check_images(rows: Sequence[Query] | Sequence[Passage], image_root: str | None) -> None:
    """Check that the images of rows exist, with a progress bar on a terminal.

    Args:
        rows: queries or passages.
        image_root: image folder or archive that image paths are relative to; None: there is none.

    Raises:
        DataError: if images are missing or cannot be opened; the message names the first one and the number of others.
        ConfigError: if a row names an image and `image_root` is None.
    """
    firsts: dict[str, Query | Passage] = {}
    for row in rows:
        if row.image_path is not None:
            firsts.setdefault(row.image_path, row)
    if not firsts:
        return
    if image_root is None:
        row = next(iter(firsts.values()))
        raise ConfigError(
            f"{row.location} names the image {row.image_path}, but image_root is not set; set image_root=DIR",
            code="image-root-not-given",
            path=row.location.file,
            line=row.location.line,
            found=row.image_path,
        )
    source, names = image_source(image_root), list(firsts)
    chunks = [names[at : at + IMAGES_PER_CHUNK] for at in range(0, len(names), IMAGES_PER_CHUNK)]
    first: DataError | None = None
    count = 0
    # Threads, because each lookup on a network file system takes a round trip.
    with (
        progress_bar(total=len(names), desc="checking images", unit="image", delay=1) as progress,
        ThreadPoolExecutor(CHECK_THREADS) as pool,
    ):
        for chunk, errors in zip(chunks, pool.map(partial(_find_errors, source), chunks), strict=True):
            for name, error in errors.items():
                message = f"{firsts[name].location}: {error.message}"
                first = first or DataError(message, error.kind, code=error.code, **error.values)
            count += len(errors)
            progress.update(len(chunk))
    if first is not None:
        more = f"; {count - 1} more of {len(names)} images are missing or cannot be opened" if count > 1 else ""
        raise DataError(first.message + more, first.kind, code=first.code, **first.values, missing=count)


def _find_errors(source: ImageSource, names: Sequence[str]) -> dict[str, DataError]:
    """Return the errors of images that are missing or cannot be opened, by image path."""
    errors = {}
    for name in names:
        try:
            source.find(name)
        except DataError as error:
            errors[name] = error
    return errors
