"""The embedded corpus `glyphs`: a multimodal knowledge base that needs no download.

Images: Unicode characters as drawn by the fonts that ship with matplotlib (`glyph_fonts`). Texts: what `unicodedata`
says of them (`glyph_texts`). Subsets that ask about the one and are answered by the other, in M2KR's kinds
(`glyph_rows`). It is written to a cache folder in the ReT-M2KR layout, and read from there by what reads ReT-M2KR:

    jsonl/m2kr/train/m2kr_up_train.jsonl
    jsonl/m2kr/val/<subset>_val.jsonl
    jsonl/m2kr/test/<subset>_test.jsonl
    jsonl/m2kr/passages/<subset>_passages_test.jsonl     one pool for validation and test
    images/m2kr/images/<font>/U+0041.png
    manifest.json                                        settings, and every file's size and SHA-256

This module imports nothing heavy: Pillow and matplotlib are loaded by `prepare_glyphs`.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import shutil
import unicodedata
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from hashlib import sha256
from pathlib import Path
from typing import Any

from filelock import FileLock

from ret_lightning.data.glyphs import subsets
from ret_lightning.data.glyphs.fonts import (
    BASELINE,
    EM,
    FONTS,
    SUPERSAMPLING,
    Drawing,
    FontJob,
    draw_font,
    font_file,
    font_split,
    image_path,
    select_drawable,
)
from ret_lightning.data.glyphs.manifest import FileRecord, digest, find_fault, write_corpus_manifest
from ret_lightning.data.glyphs.passage_texts import CHARACTERS
from ret_lightning.errors import ConfigError, DataError
from ret_lightning.runtime.cache_dir import default_cache_dir
from ret_lightning.runtime.cpu_cores import usable_cores
from ret_lightning.runtime.progress import progress_bar

__all__ = ["CHARACTERS", "SPLITS", "SUBSETS", "default_cache_dir", "font_split", "prepare_glyphs"]

SUBSETS: tuple[str, ...] = tuple(subsets.KINDS)
SPLITS: tuple[str, ...] = tuple(FONTS)
# Part of the cache folder's name: to be raised by every change of the code that alters what is generated.
GENERATOR_VERSION = 1
IMAGE_SIZES = range(16, 513)  # below, accents melt into their letters

_JSONL = "jsonl/m2kr"
_IMAGES = "images/m2kr/images"
_logger = logging.getLogger(__name__)


def prepare_glyphs(
    cache_dir: str | Path | None = None,
    *,
    image_size: int = 40,
    seed: int = 0,
    workers: int | None = None,
    progress: bool = True,
) -> Path:
    """Makes the corpus, unless the cache holds it already, whole and unaltered.

    Same settings, fonts and library versions: the same bytes, whatever the number of workers. Safe to call from several
    processes at once: one makes it, the others wait. A cached corpus that is incomplete or altered is made again, with
    one warning that says what was wrong.

    Args:
        cache_dir: where corpora are kept, one folder each, named by a digest of what the content follows from; None is
            `default_cache_dir()`.
        image_size: side of the square images, in pixels.
        seed: draws training's phrasings and the held-out queries.
        workers: processes that draw; None is one a CPU.
        progress: whether to show a progress bar on stderr while drawing.

    Returns:
        The corpus's root folder, absolute: `data.root` for whoever reads the ReT-M2KR layout.

    Raises:
        ConfigError: an argument out of range.
        DataError: the cache folder cannot be written, or matplotlib's fonts are not there.
    """
    _check_arguments(image_size, seed, workers)
    settings = _settings(image_size, seed)
    cache = (default_cache_dir() if cache_dir is None else Path(cache_dir).expanduser()).absolute()
    root = cache / f"glyphs-{digest(settings)[:16]}"
    if find_fault(root, settings) is None:  # without the lock, so that a finished cache may be read-only
        return root
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        # A worker process is importing the main script, which calls this at its top level: it would wait for the lock
        # that its parent holds. It fails instead, and the parent draws without it.
        raise RuntimeError("the script that calls prepare_glyphs needs `if __name__ == '__main__':` around its code")
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(cache / f"{root.name}.lock"):
            fault = find_fault(root, settings)
            if fault is not None:
                if root.exists():
                    _logger.warning("glyphs corpus %s: %s; making it again", root, fault)
                _make(root, settings, workers or usable_cores(), progress)
    except OSError as error:
        raise DataError(
            f"{cache}: the glyphs corpus cannot be written there ({error.strerror or error}); name another folder with "
            "data.cache_dir, or with the environment variable XDG_CACHE_HOME",
            code="glyph-cache-not-written",
            path=cache,
        ) from error
    return root


def _check_arguments(image_size: int, seed: int, workers: int | None) -> None:
    # `type() is int`: True is an int to isinstance
    if type(image_size) is not int or image_size not in IMAGE_SIZES:
        sizes = f"from {IMAGE_SIZES[0]} to {IMAGE_SIZES[-1]}"
        raise ConfigError(
            f"image_size: {image_size!r} is not a whole number of pixels {sizes}",
            code="glyph-image-size",
            found=image_size,
            least=IMAGE_SIZES[0],
            most=IMAGE_SIZES[-1],
        )
    if type(seed) is not int:
        raise ConfigError(f"seed: {seed!r} is not a whole number", code="glyph-seed", found=seed)
    if workers is not None and (type(workers) is not int or workers < 1):
        raise ConfigError(
            f"workers: {workers!r} is not a whole number of at least 1, nor null for one a CPU",
            code="glyph-workers",
            found=workers,
        )


def _settings(image_size: int, seed: int) -> dict[str, Any]:
    """All that the corpus's bytes follow from."""
    import PIL
    from PIL import features

    return {
        "generator": GENERATOR_VERSION,
        "image_size": image_size,
        "em_baseline_supersampling": [EM, BASELINE, SUPERSAMPLING],
        "seed": seed,
        "characters": CHARACTERS,
        "fonts": {
            split: {font: sha256(font_file(font).read_bytes()).hexdigest() for font in fonts}
            for split, fonts in FONTS.items()
        },
        "pillow": PIL.__version__,
        "freetype": features.version("freetype2"),
        "unicode": unicodedata.unidata_version,
    }


def _make(root: Path, settings: dict[str, Any], workers: int, progress: bool) -> None:
    """Builds the corpus beside its place and moves it there. The caller holds the lock."""
    partial, stale = root.with_name(f".{root.name}.partial"), root.with_name(f".{root.name}.stale")
    _remove(partial)  # of a process that was killed
    try:
        jobs = {
            font: FontJob(
                font_file(font), select_drawable(font, CHARACTERS), partial / _IMAGES / font, settings["image_size"]
            )
            for fonts in FONTS.values()
            for font in fonts
        }
        drawn = _draw(jobs, workers, progress)
        files = {
            f"{_IMAGES}/{image_path(font, drawing.character)}": FileRecord(drawing.size, drawing.sha256)
            for font, drawings in drawn.items()
            for drawing in drawings
        }
        characters = {font: {drawing.character for drawing in drawings} for font, drawings in drawn.items()}
        for path, rows in _jsonl_files(characters, settings["seed"]):
            content = "".join(json.dumps(row) + "\n" for row in rows).encode()
            (partial / path).parent.mkdir(parents=True, exist_ok=True)
            (partial / path).write_bytes(content)
            files[path] = FileRecord.of(content)
        write_corpus_manifest(partial, settings, files)
        if root.exists():  # a folder with content cannot be replaced in one step
            _remove(stale)
            root.replace(stale)
        partial.replace(root)
    finally:
        _remove(partial)
        _remove(stale)


def _draw(jobs: dict[str, FontJob], workers: int, progress: bool) -> dict[str, list[Drawing]]:
    """Draws all jobs; the result's order is the jobs', whoever finished first."""
    total = sum(len(job.characters) for job in jobs.values())
    with progress_bar(total=total, desc="drawing glyphs", unit=" images", disable=not progress) as bar:
        drawn: dict[str, list[Drawing]] = {}
        if workers > 1 and not multiprocessing.current_process().daemon:  # daemons may not have children
            try:
                for font, drawings in _draw_in_processes(jobs, workers):
                    drawn[font] = drawings
                    bar.update(len(jobs[font].characters))
            except BrokenProcessPool:
                _logger.warning("the processes that draw the glyphs corpus died; drawing the rest in this one")
        for font, job in jobs.items():
            if font not in drawn:
                drawn[font] = draw_font(job)
                bar.update(len(job.characters))
    return {font: drawn[font] for font in jobs}


def _draw_in_processes(jobs: dict[str, FontJob], workers: int) -> Iterator[tuple[str, list[Drawing]]]:
    # Spawned, not forked: the caller may already run threads (torch's, a logger's), whose locks a fork would copy held.
    with ProcessPoolExecutor(min(workers, len(jobs)), mp_context=multiprocessing.get_context("spawn")) as pool:
        futures = {pool.submit(draw_font, job): font for font, job in jobs.items()}
        for future in as_completed(futures):
            yield futures[future], future.result()


def _jsonl_files(drawn: subsets.Drawn, seed: int) -> Iterator[tuple[str, Iterable[subsets.Row]]]:
    """Each JSONL file's path under the root, with its rows."""
    subsets.check_coverage(drawn)
    yield f"{_JSONL}/train/m2kr_up_train.jsonl", subsets.training_rows(drawn, seed)
    for subset in SUBSETS:
        for split in ("val", "test"):
            yield f"{_JSONL}/{split}/{subset}_{split}.jsonl", subsets.query_rows(subset, split, drawn, seed)
        yield f"{_JSONL}/passages/{subset}_passages_test.jsonl", subsets.passage_rows(subset)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
