"""The generated corpus `glyphs`: a small multimodal knowledge base that needs no download.

The images are Unicode characters drawn with the fonts of matplotlib (`fonts.py`). The texts describe the characters with the
data of `unicodedata` (`passage_texts.py`). The subsets ask about images and have texts as answers, like the subsets of M2KR
(`subsets.py`). The corpus is written to a cache folder in the ReT-M2KR layout:

    jsonl/m2kr/train/m2kr_up_train.jsonl
    jsonl/m2kr/val/<subset>_val.jsonl
    jsonl/m2kr/test/<subset>_test.jsonl
    jsonl/m2kr/passages/<subset>_passages_test.jsonl     candidate pool of validation and test
    images/m2kr/images/<font>/U+0041.png
    manifest.json                                        settings, and size and SHA-256 of each file

Importing this module is fast: `prepare_glyphs` imports Pillow and matplotlib.
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
# Part of the name of the cache folder. Increase it with every change that alters the generated files.
GENERATOR_VERSION = 1
IMAGE_SIZES = range(16, 513)  # in smaller images, accents merge with their letters

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
    """Generate the corpus unless a complete, unmodified copy is in the cache.

    The same settings, fonts and library versions produce the same bytes, for any number of workers. Several processes may
    call this function at the same time: one generates the corpus, and the others wait. An incomplete or modified corpus is
    generated again, with a warning that states what was found.

    Args:
        cache_dir: folder of the generated corpora; each is in a subfolder named by a hash of its settings. None:
            `default_cache_dir()`.
        image_size: side of the square images in pixels, from 16 to 512.
        seed: seed that samples the phrasings of the training rows and the validation and test queries.
        workers: number of processes that draw images; None: one per CPU.
        progress: whether to display a progress bar on stderr while drawing.

    Returns:
        The absolute path of the corpus, a root folder in the ReT-M2KR layout.

    Raises:
        ConfigError: if an argument is out of range.
        DataError: if the cache folder cannot be written, or a font of matplotlib is missing.
    """
    _check_arguments(image_size, seed, workers)
    settings = _settings(image_size, seed)
    cache = (default_cache_dir() if cache_dir is None else Path(cache_dir).expanduser()).absolute()
    root = cache / f"glyphs-{digest(settings)[:16]}"
    if find_fault(root, settings) is None:  # without the lock, so that a complete cache may be read-only
        return root
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        # A spawned worker imports a main script that calls this at its top level, and would wait for its parent's lock.
        # The worker fails instead, and the parent draws the images itself.
        raise RuntimeError("the script that calls prepare_glyphs needs `if __name__ == '__main__':` around its code")
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(cache / f"{root.name}.lock"):
            fault = find_fault(root, settings)
            if fault is not None:
                if root.exists():
                    _logger.warning("glyphs corpus %s: %s; generating it again", root, fault)
                _generate(root, settings, workers or usable_cores(), progress)
    except OSError as error:
        raise DataError(
            f"{cache}: cannot write the glyphs corpus ({error.strerror or error}); set data.cache_dir or the environment "
            "variable XDG_CACHE_HOME to a writable folder",
            code="glyph-cache-not-written",
            path=cache,
        ) from error
    return root


def _check_arguments(image_size: int, seed: int, workers: int | None) -> None:
    # Not isinstance: True is an instance of int.
    if type(image_size) is not int or image_size not in IMAGE_SIZES:
        sizes = f"from {IMAGE_SIZES[0]} to {IMAGE_SIZES[-1]}"
        raise ConfigError(
            f"image_size={image_size!r}: expected an integer {sizes}, in pixels",
            code="glyph-image-size",
            found=image_size,
            least=IMAGE_SIZES[0],
            most=IMAGE_SIZES[-1],
        )
    if type(seed) is not int:
        raise ConfigError(f"seed={seed!r}: expected an integer", code="glyph-seed", found=seed)
    if workers is not None and (type(workers) is not int or workers < 1):
        raise ConfigError(
            f"workers={workers!r}: expected an integer of at least 1, or null for one per CPU",
            code="glyph-workers",
            found=workers,
        )


def _settings(image_size: int, seed: int) -> dict[str, Any]:
    """Return everything that determines the bytes of the corpus."""
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


def _generate(root: Path, settings: dict[str, Any], workers: int, progress: bool) -> None:
    """Generate the corpus in a temporary folder next to `root`, and move it to `root`. The caller holds the lock."""
    partial, stale = root.with_name(f".{root.name}.partial"), root.with_name(f".{root.name}.stale")
    _remove(partial)  # left by a killed process
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
        if root.exists():  # a folder with files cannot be replaced atomically
            _remove(stale)
            root.replace(stale)
        partial.replace(root)
    finally:
        _remove(partial)
        _remove(stale)


def _draw(jobs: dict[str, FontJob], workers: int, progress: bool) -> dict[str, list[Drawing]]:
    """Draw all jobs, and return the drawings of each font in the order of the jobs."""
    total = sum(len(job.characters) for job in jobs.values())
    with progress_bar(total=total, desc="drawing glyphs", unit=" images", disable=not progress) as bar:
        drawn: dict[str, list[Drawing]] = {}
        if workers > 1 and not multiprocessing.current_process().daemon:  # daemonic processes cannot have children
            try:
                for font, drawings in _draw_in_processes(jobs, workers):
                    drawn[font] = drawings
                    bar.update(len(jobs[font].characters))
            except BrokenProcessPool:
                _logger.warning(
                    "glyphs corpus: a drawing process died; drawing the remaining fonts in the main process"
                )
        for font, job in jobs.items():
            if font not in drawn:
                drawn[font] = draw_font(job)
                bar.update(len(job.characters))
    return {font: drawn[font] for font in jobs}


def _draw_in_processes(jobs: dict[str, FontJob], workers: int) -> Iterator[tuple[str, list[Drawing]]]:
    # Spawned, not forked: the caller may run threads, and a fork would copy the locks that they hold.
    with ProcessPoolExecutor(min(workers, len(jobs)), mp_context=multiprocessing.get_context("spawn")) as executor:
        futures = {executor.submit(draw_font, job): font for font, job in jobs.items()}
        for future in as_completed(futures):
            yield futures[future], future.result()


def _jsonl_files(drawn: subsets.Drawn, seed: int) -> Iterator[tuple[str, Iterable[subsets.Row]]]:
    """Yield the path of each JSON Lines file, relative to the root, and its rows."""
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
