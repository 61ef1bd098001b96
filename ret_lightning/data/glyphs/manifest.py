"""The manifest of a generated folder: its settings, and the size and SHA-256 of each file, to detect damage."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

MANIFEST = "manifest.json"


class FileRecord(NamedTuple):
    """The expected size of a file in bytes, and its SHA-256 (hex)."""

    size: int
    sha256: str

    @classmethod
    def of(cls, content: bytes) -> FileRecord:
        return cls(len(content), hashlib.sha256(content).hexdigest())


def digest(value: object) -> str:
    """Return the SHA-256 (hex) of a JSON value; the order of keys does not matter."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def write_corpus_manifest(folder: Path, settings: Mapping[str, Any], files: Mapping[str, FileRecord]) -> None:
    """Write `manifest.json` to a folder; write it last, because a folder without it counts as incomplete.

    Args:
        folder: the generated folder.
        settings: settings that determine the content, as JSON values.
        files: record of every other file, by its path relative to the folder, with `/`.
    """
    content = {"settings": settings, "files": {path: files[path]._asdict() for path in sorted(files)}}
    manifest = {**content, "digest": digest(content)}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


def find_fault(folder: Path, settings: Mapping[str, Any]) -> str | None:
    """Check a generated folder; every file is read once.

    Args:
        folder: the generated folder.
        settings: expected settings, as JSON values.

    Returns:
        A description of the first problem; None if the folder is complete, unmodified and has these settings.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        content = {"settings": manifest["settings"], "files": manifest["files"]}
        if manifest["digest"] != digest(content):
            return f"{MANIFEST} was modified"
        if manifest["settings"] != settings:
            return f"{MANIFEST} has different settings"
        expected = {path: FileRecord(**record) for path, record in manifest["files"].items()}
    except FileNotFoundError:
        return f"{MANIFEST} is missing"
    except OSError as error:
        return f"{MANIFEST} cannot be read ({error.strerror})"
    except (ValueError, TypeError, KeyError, AttributeError):  # not UTF-8, not JSON, or JSON of another shape
        return f"{MANIFEST} is not a valid manifest"
    for path, record in expected.items():
        try:
            found = FileRecord.of((folder / path).read_bytes())
        except FileNotFoundError:
            return f"{path} is missing"
        except OSError as error:
            return f"{path} cannot be read ({error.strerror})"
        if found.size != record.size:
            return f"{path} has {found.size} bytes, expected {record.size}"
        if found.sha256 != record.sha256:
            return f"{path} was modified"
    return None
