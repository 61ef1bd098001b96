"""Connecting to Qdrant: folders and servers that cannot be used."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from ret_lightning.errors import ConfigError, UserError
from ret_lightning.search.qdrant_connection import _check_version, connected
from tests.support.search_corpus import needs_qdrant
from tests.support.small_runs import Trained

needs_run = pytest.mark.slow  # of ret-train, which all of them share


@needs_run
@needs_qdrant
@pytest.mark.parametrize("name", ["index", "search"])
def test_what_can_be_no_collection_is_told(
    trained: Trained, make, call, index, tmp_path: Path, capsys, name: str
) -> None:
    (tmp_path / "file").write_text("")
    for place, expected, message in (
        (("qdrant=file", "collection=c"), 1, "qdrant=file: is a file; name a folder, or the URL of a server"),
        (("qdrant=store", "collection=a/b"), 2, "is no name that Qdrant takes: at most 255 letters, none of < >"),
        (("qdrant=/proc/nowhere", "collection=c"), 1, "qdrant=/proc/nowhere: "),
        ((f"qdrant={index}", "collection=c"), 1, "'manifest.json', and nothing of Qdrant; choose another folder"),
    ):
        if name == "index":
            code = make("first.jsonl", f"checkpoint={trained.exported}", *place)
        else:
            code = call("search", *place, "query=x")
        assert code == expected
        said = capsys.readouterr().err
        assert message in said
        assert len(said.splitlines()) == expected  # one line more for a problem in the config
    assert not (tmp_path / "store").exists()
    assert not (index / "meta.json").exists()


def test_qdrant_that_is_not_installed_is_told(call, capsys, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "qdrant_client", None)
    assert call("search", "qdrant=http://localhost:6333", "collection=c", "query=x") == 1
    assert "needs the package qdrant-client: pip install 'ret_lightning[qdrant]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("version", "accepted"),
    [("1.16.0", True), ("1.16.2-dev", True), ("2.0.1", True), ("1.15.5", False), ("0.99", False)],
)
def test_servers_that_are_too_old_are_refused(version: str, accepted: bool) -> None:
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
def test_folders_that_are_none_of_qdrants(tmp_path: Path, files: object, must_exist: bool, code: str) -> None:
    place = tmp_path / "place"
    if files == "a file":
        place.touch()
    for name in files if isinstance(files, list) else ():
        place.mkdir(exist_ok=True)
        (place / name).touch()
    with pytest.raises(ConfigError) as caught, connected(str(place), must_exist):
        pass
    assert (caught.value.code, caught.value.path) == (code, place)


@needs_qdrant
def test_a_new_folder_is_made_and_opened_again(tmp_path: Path) -> None:
    for must_exist in (False, True):
        with connected(str(tmp_path / "store"), must_exist) as client:
            assert client.get_collections().collections == []


@needs_qdrant
def test_what_qdrant_refuses_is_one_line_and_other_errors_stay(tmp_path: Path) -> None:
    from qdrant_client.http.exceptions import ResponseHandlingException

    with pytest.raises(UserError) as caught, connected(str(tmp_path / "a")):
        raise ResponseHandlingException(ConnectionError("refused\nat length"))
    assert (caught.value.code, caught.value.place) == ("qdrant-request-failed", str(tmp_path / "a"))
    assert "\n" not in caught.value.message
    with pytest.raises(UserError) as caught, connected(str(tmp_path / "b")):
        raise OSError(28, "No space left on device")
    assert (caught.value.code, caught.value.reason) == ("qdrant-folder-unusable", "No space left on device")
    with pytest.raises(RuntimeError, match="mine"), connected(str(tmp_path / "c")):
        raise RuntimeError("mine")
