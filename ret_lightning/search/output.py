"""What was found, for people and for programs."""

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
    """A JSON object for each hit: data_id (where the query has one), rank, score, passage_id, text, image_path."""
    for data_id, hits in answers:
        for hit in hits:
            content = {} if data_id is None else {"data_id": data_id}
            yield json.dumps(content | hit._asdict() | {"score": round(hit.score, 6)}, ensure_ascii=False)


def refuse_existing_output(file: Path, overwrite: bool) -> None:
    """Raises ConfigError where a file stands that may not go, or what can be no file."""
    if file.is_dir():
        raise ConfigError(f"output={file}: is a folder; name a file in it", code="output-is-folder", path=file)
    if file.exists() and not file.is_file():  # what is written takes the place of what stands there: of a device, too
        raise ConfigError(
            f"output={file}: is no regular file; leave output out to print what is found, or name a file",
            code="output-not-regular",
            path=file,
        )
    if file.exists() and not overwrite:
        raise ConfigError(
            f"output={file}: is there already; choose another file, or set overwrite=true",
            code="output-exists",
            path=file,
        )


def write_lines(file: Path, lines: Iterable[str]) -> None:
    """Writes a text file, whole or not at all; raises ConfigError where that cannot be, and what `lines` raises as it is."""
    failed: list[OSError] = []

    def watched() -> Iterator[str]:
        try:
            for line in lines:
                yield f"{line}\n"
        except OSError as error:
            failed.append(error)
            raise

    try:
        with whole_file(file) as unfinished, unfinished.open("w", encoding="utf-8") as opened:
            opened.writelines(watched())
    except OSError as error:
        if error in failed:
            raise
        raise ConfigError(
            f"output={file}: cannot be written ({error.strerror or error})", code="output-not-written", path=file
        ) from error


def print_table(hits: list[Hit], title: str | None = None) -> None:
    """A table as wide as the terminal; texts are cut to fit."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=None if title is None else Text(_one_line(title)), expand=True)
    for name in ("rank", "score"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("passage", overflow="fold", max_width=24)
    table.add_column("text", no_wrap=True, overflow="ellipsis", ratio=1)
    table.add_column("image", overflow="fold", max_width=32)
    for hit in hits:
        # As Text: brackets in a passage are no markup of rich's.
        cells = [_one_line(value or "") for value in (hit.passage_id, hit.text, hit.image_path)]
        table.add_row(str(hit.rank), f"{hit.score:.4f}", *map(Text, cells))
    with printing():
        console().print(table)


def _one_line(text: str) -> str:
    """Without line breaks, and without control characters, which a terminal would obey."""
    return "".join(c if c.isprintable() else "?" for c in re.sub(r"\s+", " ", text))
