"""Near matches of missing files in folders and archives, and limits of the search."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from unicodedata import normalize

import pytest

from ret_lightning.data.images.sources import image_source
from ret_lightning.errors import DataError
from ret_lightning.inputs import near_names, open_image
from ret_lightning.inputs.near_names import NearMatches, describe_difference
from tests.support.archives import error_of, write_tar, write_zip

FILES = ["sub/Deep Folder/1.jpg", "sub/10.jpeg", normalize("NFC", "ü/é.png"), normalize("NFD", "ö.webp"), "100%25.PNG"]


@pytest.fixture(autouse=True)
def fresh_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(near_names, "_seconds", 0.0)


def folder(root: Path) -> str:
    for name in FILES:
        (root / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "images" / name).write_bytes(name.encode())
    return "images"


def tar(root: Path) -> str:
    return write_tar(root / "images.tar", {f"./{name}": name.encode() for name in FILES}).name


def archive_list(root: Path) -> list[str]:
    write_zip(root / "b.zip", {name: name.encode() for name in FILES})
    return [write_tar(root / "a.tar", {"other.jpg": b""}).name, "?.zip"]


@pytest.mark.parametrize("source", [folder, tar, archive_list])
@pytest.mark.parametrize(
    ("asked", "near", "differs"),
    [
        ("sub/deep folder/1.jpg", FILES[0], "letter case"),
        ("Sub/Deep Folder/1.JPG", FILES[0], "letter case"),
        ("sub/Deep Folder/1.JPG", FILES[0], "suffix"),
        ("sub/Deep Folder/1.jpeg", FILES[0], "suffix"),
        ("sub/Deep Folder/1.png", FILES[0], "suffix"),
        ("sub/Deep Folder/1", FILES[0], "suffix"),
        ("sub/10.jpg", FILES[1], "suffix"),
        ("sub\\Deep Folder\\1.jpg", FILES[0], "backslashes"),
        (".\\sub\\10.jpeg", FILES[1], "backslashes"),
        ("sub/Deep%20Folder/1.jpg", FILES[0], "percent-encoding"),
        ("sub%2FDeep%20Folder/1.jpg", FILES[0], "percent-encoding"),
        ("%C3%BC/%C3%A9.png", FILES[2], "percent-encoding"),
        (normalize("NFD", "ü/é.png"), FILES[2], "Unicode normalisation"),
        (normalize("NFC", "ö.webp"), FILES[3], "Unicode normalisation"),
        ("Ö.webp", FILES[3], "letter case, Unicode normalisation"),
        ("100%.png", FILES[4], "percent-encoding"),
        ("images/sub/10.jpeg", FILES[1], "leading folder"),
        ("m2kr/images/sub/10.jpeg", FILES[1], "leading folder"),
        ("Deep Folder/1.jpg", FILES[0], "leading folder"),
        ("10.jpg", FILES[1], "suffix, leading folder"),
        (
            "IMAGES\\sub\\DEEP%20FOLDER\\1.JPEG",
            FILES[0],
            "percent-encoding, backslashes, suffix, letter case, leading folder",
        ),
    ],
)
def test_near_match_is_reported(
    tmp_path: Path, source: Callable[[Path], str | list[str]], asked: str, near: str, differs: str
) -> None:
    images = image_source(source(tmp_path), tmp_path)
    assert images.read(near) == near.encode()
    for action in (images.read, images.find):
        error = error_of(action, asked)
        assert (error.kind, error.near) == ("missing_image", (near,))
        assert describe_difference(asked, near) == differs
        assert error.message.endswith(NearMatches((near,)).hint(asked))


@pytest.mark.parametrize("source", [folder, tar, archive_list])
@pytest.mark.parametrize("asked", ["/sub/10.jpeg", "/data/images/sub/10.jpeg"])
def test_near_match_of_absolute_path(tmp_path: Path, source: Callable[[Path], str | list[str]], asked: str) -> None:
    error = error_of(image_source(source(tmp_path), tmp_path).read, asked)
    assert (error.kind, error.near) == ("path_outside", ("sub/10.jpeg",))
    assert "leading slash" in error.message


@pytest.mark.parametrize("source", [folder, tar, archive_list])
@pytest.mark.parametrize(
    "asked", ["sub/11.jpeg", "sub2/10.jpeg", "other/Deep Folder/1.jpg", "sub", "nu\0ll.jpg", "\ud800"]
)
def test_other_names_are_not_near_matches(
    tmp_path: Path, source: Callable[[Path], str | list[str]], asked: str
) -> None:
    error = error_of(image_source(source(tmp_path), tmp_path).read, asked)
    assert error.values.get("near", ()) == ()


def test_backslashes_in_stored_names(tmp_path: Path) -> None:
    """Some Windows programs write backslashes into zips, and some tools unpack them into file names."""
    (tmp_path / "images").mkdir()
    (tmp_path / "images/sub\\1.jpg").touch()
    write_zip(tmp_path / "images.zip", {"sub\\1.jpg": b""})
    for location in ("images", "images.zip"):
        assert error_of(image_source(location, tmp_path).read, "sub/1.jpg").near == ("sub\\1.jpg",)


def test_several_near_matches(tmp_path: Path) -> None:
    names = [f"{letters}.jpg" for letters in ("Ab", "aB", "AB", "ab")]
    write_tar(tmp_path / "images.tar", {f"{name}": b"" for name in names[:2]})
    for name in names[:2]:
        (tmp_path / name).touch()
    for location in ("images.tar", "."):
        assert set(error_of(image_source(location, tmp_path).read, "ab.jpg").near) == set(names[:2])


def test_near_match_of_whole_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The path of `ret-search image=...` has no root."""
    (tmp_path / "Photos").mkdir()
    (tmp_path / "Photos/Cat.jpg").touch()
    monkeypatch.chdir(tmp_path)
    for asked, near in (
        (tmp_path / "photos/cat.JPG", str(tmp_path / "Photos/Cat.jpg")),
        (Path("photos/cat.jpg"), "Photos/Cat.jpg"),
        (Path("Photos/cat.png"), "Photos/Cat.jpg"),
    ):
        with pytest.raises(DataError) as error:
            open_image(asked)
        assert (error.value.code, error.value.near) == ("image-missing", (near,))


def test_missing_folder_is_not_searched(tmp_path: Path) -> None:
    error = error_of(image_source("images", tmp_path).read, "a.jpg")
    assert (error.code, error.kind) == ("image-folder-missing", "missing_image")
    assert error.values.get("near", ()) == ()


def test_large_folder_is_listed_up_to_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near_names, "MAX_LISTED", 10)
    for i in range(40):
        (tmp_path / f"{i}.jpg").touch()
    error = error_of(image_source(tmp_path).read, "none.jpg")
    assert error.near == ()
    matches = near_names.find_near_names(tmp_path, "none.jpg")
    assert matches == NearMatches((), is_partial=True)
    assert error.message.endswith(matches.hint("none.jpg"))
    assert error_of(image_source(tmp_path).read, "39.JPEG").near == ("39.jpg",)  # without a listing


def test_only_folders_of_path_are_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a/b/1.jpg", "a/c/2.jpg", "d/e/3.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    listed = []

    def scandir(path: Path) -> os.ScandirIterator:
        listed.append(path)
        return os_scandir(path)

    os_scandir = os.scandir
    monkeypatch.setattr(os, "scandir", scandir)
    assert error_of(image_source(tmp_path).read, "a/B/none.jpg").near == ()
    assert listed == [tmp_path / "a", tmp_path / "a/b", tmp_path]


def test_searches_stop_after_time_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.jpg").touch()
    write_tar(tmp_path / "images.tar", {"a.jpg": b""})
    for location in (".", "images.tar"):
        images = image_source(location, tmp_path)
        monkeypatch.setattr(near_names, "_seconds", 0.0)
        assert error_of(images.read, "A.jpg").near == ("a.jpg",)
        assert near_names._seconds > 0
        monkeypatch.setattr(near_names, "_seconds", near_names.MAX_SECONDS + 1)
        assert error_of(images.read, "A.jpg").near == ()


@pytest.mark.parametrize("source", [folder, tar])
def test_very_deep_path_is_not_searched(tmp_path: Path, source: Callable[[Path], str | list[str]]) -> None:
    error = error_of(image_source(source(tmp_path), tmp_path).read, "a/" * 1_000_000 + "1.jpg")
    assert error.kind in ("missing_image", "unreadable_image")
    assert error.values.get("near", ()) == ()


def test_describe_difference() -> None:
    assert describe_difference("a/B.JPG", "x/a/b.jpg") == "letter case, leading folder"
    assert describe_difference("/a.jpg", "a.jpg") == "leading slash"
