"""The manifest of a generated folder: what was made, with which settings, and whether it is all still there."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

MANIFEST = "manifest.json"


class FileRecord(NamedTuple):
    """What a file must be: its size in bytes and the SHA-256 of its bytes (hex)."""

    size: int
    sha256: str

    @classmethod
    def of(cls, content: bytes) -> FileRecord:
        return cls(len(content), hashlib.sha256(content).hexdigest())


def digest(value: Any) -> str:
    """SHA-256 (hex) of a JSON value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def write_corpus_manifest(folder: Path, settings: Mapping[str, Any], files: Mapping[str, FileRecord]) -> None:
    """Writes `folder/manifest.json`: the last file to be written, so that a folder without it is unfinished.

    Args:
        settings: JSON values that the content follows from.
        files: every other file's path relative to the folder, with `/`.
    """
    content = {"settings": settings, "files": {path: files[path]._asdict() for path in sorted(files)}}
    manifest = {**content, "digest": digest(content)}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


def find_fault(folder: Path, settings: Mapping[str, Any]) -> str | None:
    """The first thing wrong with a generated folder, in words; None if it is whole, unaltered and of these settings.

    Reads every file once: sizes alone would not notice an altered byte.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        content = {"settings": manifest["settings"], "files": manifest["files"]}
        if manifest["digest"] != digest(content):
            return f"{MANIFEST} was altered"
        if manifest["settings"] != settings:
            return f"{MANIFEST} is of other settings"
        expected = {path: FileRecord(**record) for path, record in manifest["files"].items()}
    except FileNotFoundError:
        return f"{MANIFEST} is missing"
    except OSError as error:
        return f"{MANIFEST} cannot be read ({error.strerror})"
    except (ValueError, TypeError, KeyError, AttributeError):  # not UTF-8, not JSON, or JSON of another shape
        return f"{MANIFEST} is broken"
    for path, record in expected.items():
        try:
            found = FileRecord.of((folder / path).read_bytes())
        except FileNotFoundError:
            return f"{path} is missing"
        except OSError as error:
            return f"{path} cannot be read ({error.strerror})"
        if found.size != record.size:
            return f"{path} has {found.size} bytes where {record.size} were written"
        if found.sha256 != record.sha256:
            return f"{path} was altered"
    return None
