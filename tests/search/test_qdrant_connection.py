"""Connections to Qdrant: invalid folders and servers."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from ret_lightning.errors import ConfigError, UserError
from ret_lightning.search.qdrant_connection import _check_version, open_client
from tests.support.search_corpus import needs_qdrant
from tests.support.small_runs import Trained

needs_run = pytest.mark.slow  # uses the session run of ret-train


@needs_run
@needs_qdrant
@pytest.mark.parametrize("name", ["index", "search"])
def test_invalid_locations_are_rejected(trained: Trained, make, call, index, tmp_path: Path, capsys, name: str) -> None:
    (tmp_path / "file").write_text("")
    for target, expected, codes, location in (
        (("qdrant=file", "collection=c"), 1, ["qdrant-is-file"], "qdrant=file: "),
        (("qdrant=store", "collection=a/b"), 2, ["collection-bad-name"], "'a/b'"),
        (
            ("qdrant=/proc/missing", "collection=c"),
            1,
            ["qdrant-folder-unusable", "qdrant-folder-missing"],
            "qdrant=/proc/missing: ",
        ),
        ((f"qdrant={index}", "collection=c"), 1, ["qdrant-folder-not-empty"], "'manifest.json'"),
    ):
        if name == "index":
            exit_code = make("first.jsonl", f"checkpoint={trained.exported}", *target)
        else:
            exit_code = call("search", *target, "query=x")
        assert exit_code == expected
        captured = capsys.readouterr().err
        assert location in captured
        assert any(f"[{code}]\n" in captured for code in codes), captured
        assert len(captured.splitlines()) == expected  # one line more for a problem in the config
    assert not (tmp_path / "store").exists()
    assert not (index / "meta.json").exists()


def test_missing_qdrant_client_is_reported(call, capsys, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "qdrant_client", None)
    assert call("search", "qdrant=http://localhost:6333", "collection=c", "query=x") == 1
    error = capsys.readouterr().err
    assert "pip install 'ret_lightning[qdrant]'" in error
    assert error.endswith("[qdrant-not-installed]\n")


@pytest.mark.parametrize(
    ("version", "accepted"),
    [("1.16.0", True), ("1.16.2-dev", True), ("2.0.1", True), ("1.15.5", False), ("0.99", False)],
)
def test_old_servers_are_rejected(version: str, accepted: bool) -> None:
    if accepted:
        _check_version(version, "http://host")
        return
    with pytest.raises(UserError) as caught:
        _check_version(version, "http://host")
    assert (caught.value.code, caught.value.found, caught.value.least) == ("qdrant-server-too-old", version, "1.16")


@needs_qdrant
@pytest.mark.parametrize(
    ("files", "must_exist", "code"),
    [
        ("a file", False, "qdrant-is-file"),
        (None, True, "qdrant-folder-missing"),
        (["notes.txt", "zoo"], False, "qdrant-folder-not-empty"),
    ],
)
def test_other_folders_are_rejected(tmp_path: Path, files: object, must_exist: bool, code: str) -> None:
    place = tmp_path / "place"
    if files == "a file":
        place.touch()
    for name in files if isinstance(files, list) else ():
        place.mkdir(exist_ok=True)
        (place / name).touch()
    with pytest.raises(ConfigError) as caught, open_client(str(place), must_exist):
        pass
    assert (caught.value.code, caught.value.path) == (code, place)


@needs_qdrant
def test_new_folder_is_created_and_reopened(tmp_path: Path) -> None:
    for must_exist in (False, True):
        with open_client(str(tmp_path / "store"), must_exist) as client:
            assert client.get_collections().collections == []


@needs_qdrant
def test_qdrant_errors_become_user_errors(tmp_path: Path) -> None:
    from qdrant_client.http.exceptions import ResponseHandlingException

    with pytest.raises(UserError) as caught, open_client(str(tmp_path / "a")):
        raise ResponseHandlingException(ConnectionError("refused\nat length"))
    assert (caught.value.code, caught.value.place) == ("qdrant-request-failed", str(tmp_path / "a"))
    assert "\n" not in caught.value.message
    with pytest.raises(UserError) as caught, open_client(str(tmp_path / "b")):
        raise OSError(28, "No space left on device")
    assert (caught.value.code, caught.value.reason) == ("qdrant-folder-unusable", "No space left on device")
    with pytest.raises(RuntimeError, match="mine"), open_client(str(tmp_path / "c")):
        raise RuntimeError("mine")


@needs_qdrant
def test_folder_in_use_is_refused(tmp_path: Path) -> None:
    store = str(tmp_path / "store")
    with open_client(store), pytest.raises(ConfigError) as caught, open_client(store):
        pass
    assert (caught.value.code, caught.value.path) == ("qdrant-folder-locked", store)
    with open_client(store):  # the lock is released
        pass
