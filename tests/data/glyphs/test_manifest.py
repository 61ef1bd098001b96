"""Tests of the manifest of a generated folder: missing and modified files are found."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from ret_lightning.data.glyphs.manifest import FileRecord, digest, find_fault, write_corpus_manifest
from tests.support.damage import rewrite

CONTENTS = {"a": b"", "b/c/d": b"12345", "ü/U+0041.png": bytes(range(256))}


SETTINGS = {"seed": 0, "nested": {"list": [1, "x"], "none": None}}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Create a folder with a manifest, nested folders, an empty file and a name that is not ASCII."""
    for path, content in CONTENTS.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(content)
    write_corpus_manifest(tmp_path, SETTINGS, {path: FileRecord.of(content) for path, content in CONTENTS.items()})
    return tmp_path


def _with_other_settings(content: bytes) -> bytes:
    """Return a valid manifest with another seed."""
    manifest = json.loads(content)
    manifest["settings"]["seed"] = 7
    manifest["digest"] = digest({"settings": manifest["settings"], "files": manifest["files"]})
    return json.dumps(manifest).encode()


def _without_a_file(content: bytes) -> bytes:
    manifest = json.loads(content)
    del manifest["files"]["b/c/d"]
    return json.dumps(manifest).encode()


def test_complete_folder_has_no_fault(folder: Path):
    assert find_fault(folder, SETTINGS) is None
    assert find_fault(folder, {**SETTINGS, "seed": 1}) == "manifest.json has different settings"
    assert find_fault(folder / "nowhere", SETTINGS) == "manifest.json is missing"


@pytest.mark.parametrize("path", CONTENTS)
def test_missing_file_is_a_fault(folder: Path, path: str):
    (folder / path).unlink()
    assert find_fault(folder, SETTINGS) == f"{path} is missing"
    (folder / path).mkdir()
    assert find_fault(folder, SETTINGS) == f"{path} cannot be read (Is a directory)"


@pytest.mark.parametrize(
    ("path", "change", "fault"),
    [
        ("b/c/d", lambda _: b"12346", "b/c/d was modified"),
        ("b/c/d", lambda _: b"", "b/c/d has 0 bytes, expected 5"),
        ("a", lambda _: b"x", "a has 1 bytes, expected 0"),
        ("manifest.json", lambda _: b"", "manifest.json is not a valid manifest"),
        ("manifest.json", lambda _: b"[]", "manifest.json is not a valid manifest"),
        ("manifest.json", lambda _: b"{}", "manifest.json is not a valid manifest"),
        ("manifest.json", lambda _: b"\xff\xfe\x00", "manifest.json is not a valid manifest"),
        ("manifest.json", lambda old: old[:-20], "manifest.json is not a valid manifest"),
        ("manifest.json", _without_a_file, "manifest.json was modified"),
        ("manifest.json", _with_other_settings, "manifest.json has different settings"),
    ],
)
def test_modified_file_is_a_fault(folder: Path, path: str, change: Callable[[bytes], bytes], fault: str):
    rewrite(path, change)(folder)
    assert find_fault(folder, SETTINGS) == fault
