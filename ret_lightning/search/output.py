"""Write search results as tables or as JSON Lines."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from ret_lightning.errors import ConfigError
from ret_lightning.runtime.atomic_files import whole_file
from ret_lightning.runtime.console import console, printing
from ret_lightning.search.hits import Hit


def json_lines(answers: Iterable[tuple[str | None, list[Hit]]]) -> Iterator[str]:
    """Yield a JSON object per hit: data_id (if the query has one), rank, score, passage_id, text, image_path."""
    for data_id, hits in answers:
        for hit in hits:
            content = {} if data_id is None else {"data_id": data_id}
            yield json.dumps(content | hit._asdict() | {"score": round(hit.score, 6)}, ensure_ascii=False)


def check_output_file(file: Path, overwrite: bool) -> None:
    """Check that an output file can be written.

    Args:
        file: the output file.
        overwrite: whether an existing file may be replaced.

    Raises:
        ConfigError: if the path is a folder or not a regular file, or exists and must not be replaced.
    """
    if file.is_dir():
        raise ConfigError(
            f"output={file}: expected a file, got a folder; append a file name", code="output-is-folder", path=file
        )
    if file.exists() and not file.is_file():  # renaming onto a device would replace it
        raise ConfigError(
            f"output={file}: not a regular file; choose another file, or unset output to print the results",
            code="output-not-regular",
            path=file,
        )
    if file.exists() and not overwrite:
        raise ConfigError(
            f"output={file}: file exists; choose another file, or set overwrite=true",
            code="output-exists",
            path=file,
        )


def write_lines(file: Path, lines: Iterable[str]) -> None:
    """Write lines to a text file, which is replaced only when it is complete.

    Args:
        file: file to write.
        lines: lines without line breaks; errors raised by the iterable are propagated.

    Raises:
        ConfigError: if the file cannot be written.
    """
    failed: list[OSError] = []

    def tracked() -> Iterator[str]:
        try:
            for line in lines:
                yield f"{line}\n"
        except OSError as error:
            failed.append(error)
            raise

    try:
        with whole_file(file) as unfinished, unfinished.open("w", encoding="utf-8") as opened:
            opened.writelines(tracked())
    except OSError as error:
        if error in failed:
            raise
        raise ConfigError(
            f"output={file}: not writable ({error.strerror or error}); choose another file",
            code="output-not-written",
            path=file,
        ) from error


def print_table(hits: list[Hit], title: str | None = None) -> None:
    """Print hits as a table of the width of the terminal; texts are truncated to fit."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=None if title is None else Text(_sanitize(title)), expand=True)
    for name in ("rank", "score"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("passage", overflow="fold", max_width=24)
    table.add_column("text", no_wrap=True, overflow="ellipsis", ratio=1)
    table.add_column("image", overflow="fold", max_width=32)
    for hit in hits:
        # Text objects, so that brackets are not parsed as markup of rich.
        cells = [_sanitize(value or "") for value in (hit.passage_id, hit.text, hit.image_path)]
        table.add_row(str(hit.rank), f"{hit.score:.4f}", *map(Text, cells))
    with printing():
        console().print(table)


def _sanitize(text: str) -> str:
    """Replace line breaks by spaces and control characters, which a terminal would interpret, by question marks."""
    return "".join(c if c.isprintable() else "?" for c in re.sub(r"\s+", " ", text))
