"""Links in tar and zip archives resolve to the same files as after unpacking."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from ret_lightning.data.images.archives import ImageArchives
from ret_lightning.errors import DataError
from tests.support.archives import error_of, write_tar

HARD, SYMBOLIC = tarfile.LNKTYPE, tarfile.SYMTYPE


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A folder of files with links of all kinds."""
    tree = tmp_path / "tree"
    (tree / "sub/deep").mkdir(parents=True)
    (tree / "sub/1.jpg").write_bytes(b"one")
    (tree / "ü.jpg").write_bytes(b"two")
    with (tree / "sparse.bmp").open("wb") as file:
        file.write(b"begin")
        file.truncate(1 << 20)
        file.seek(0, os.SEEK_END)
        file.write(b"end")
    (tree / "a_hard.jpg").hardlink_to(tree / "sub/1.jpg")  # sorts before and after its other name
    (tree / "z_hard.jpg").hardlink_to(tree / "sub/1.jpg")
    (tree / "symbolic.jpg").symlink_to("sub/1.jpg")
    (tree / "sub/deep/up.jpg").symlink_to("../../ü.jpg")
    (tree / "sub/deep/chain.jpg").symlink_to("../../symbolic.jpg")
    (tree / "sub/deep/around.jpg").symlink_to("../deep/./chain.jpg")
    (tree / "to_hard.jpg").symlink_to("z_hard.jpg")
    (tree / "to_sparse.bmp").symlink_to("sparse.bmp")
    (tree / "folder").symlink_to("sub")
    (tree / "folder_chain").symlink_to("./folder/deep")
    return tree


def pack(tree: Path, way: str) -> Path:
    """Pack the folder with tar or zip."""
    if shutil.which(way.split()[0]) is None:
        pytest.skip(f"{way.split()[0]} is not installed")
    archive = tree.parent / ("images.zip" if way.startswith("zip") else "images.tar")
    command = [*way.split(), archive, "."] if way.startswith("zip") else [*way.split(), "-cf", archive, "."]
    subprocess.run(command, cwd=tree, check=True)
    return archive


@pytest.mark.parametrize("sort", ["name", "none"])
@pytest.mark.parametrize(
    "way",
    ["tar", "tar --sparse", "tar --format=ustar", "tar --format=posix", "tar --format=posix --sparse", "zip -qry"],
)
def test_links_resolve_as_when_unpack(tree: Path, way: str, sort: str) -> None:
    if "ustar" not in way:  # the format is limited to targets of 100 characters
        (tree / ("d" * 90)).mkdir()
        (tree / ("d" * 90) / ("long" * 20)).hardlink_to(tree / "ü.jpg")
    archive = pack(tree, f"{way} --sort={sort}" if way.startswith("tar") else way)
    archives = ImageArchives([archive])
    files = [Path(folder) / name for folder, _, names in os.walk(tree, followlinks=True) for name in names]
    assert len(files) >= 18  # including those in linked folders
    for file in files:
        assert archives.read(str(file.relative_to(tree))) == file.read_bytes(), file
        archives.find(str(file.relative_to(tree)))


def write_links(path: Path, members: list[tuple[str, bytes | str, bytes]]) -> Path:
    """Write a tar with the members (name, content, b"") for files and (name, target, type) for links, in order."""
    with tarfile.open(path, "w") as archive:
        for name, content, kind in members:
            member = tarfile.TarInfo(name)
            if kind:
                member.type, member.linkname = kind, content
                archive.addfile(member)
            else:
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return path


def unpack(archive: Path) -> Path:
    """Unpack with GNU tar, which continues after a link whose target does not exist yet."""
    folder = archive.with_suffix("")
    folder.mkdir()
    subprocess.run(["tar", "-xf", archive, "-C", folder], check=False, capture_output=True)
    return folder


@pytest.mark.skipif(shutil.which("tar") is None, reason="tar is not installed")
@pytest.mark.parametrize(
    "members",
    [
        pytest.param([("a", b"1", b""), ("b", "a", HARD), ("a", b"2", b"")], id="target replaced after hard link"),
        pytest.param([("a", b"1", b""), ("b", "a", SYMBOLIC), ("a", b"2", b"")], id="target replaced after symlink"),
        pytest.param([("a", b"1", b""), ("a", b"2", b""), ("b", "./a", HARD)], id="target replaced before hard link"),
        pytest.param([("a", b"1", b""), ("a", "a", HARD), ("b", "a", HARD)], id="one file packed twice"),
        pytest.param([("a", b"1", b""), ("b", b"2", b""), ("b", "a", HARD)], id="file replaced by hard link"),
        pytest.param([("a", b"1", b""), ("b", "a", SYMBOLIC), ("b", b"2", b"")], id="symlink replaced by file"),
        pytest.param([("b", "a", SYMBOLIC), ("a", b"1", b"")], id="symlink before target"),
        pytest.param([("a", b"1", b""), ("b", "a", HARD), ("c", "b", HARD), ("d", "c", HARD)], id="chain"),
        pytest.param([("s/a", b"1", b""), ("s/b", "a", SYMBOLIC), ("s/c", "s/b", HARD)], id="hard link to a symlink"),
        pytest.param([("d/a", b"1", b""), ("e", "d", SYMBOLIC), ("b", "e/a", SYMBOLIC)], id="through linked folder"),
    ],
)
def test_links_of_repeated_members(tmp_path: Path, members: list[tuple[str, bytes | str, bytes]]) -> None:
    archive = write_links(tmp_path / "images.tar", members)
    folder, archives = unpack(archive), ImageArchives([archive])
    names = [name for name, _, _ in members if not (folder / name).is_dir()]
    assert {name: archives.read(name) for name in names} == {name: (folder / name).read_bytes() for name in names}


def test_hard_link_before_target(tmp_path: Path) -> None:
    """Tar cannot unpack such an archive."""
    members = [("c", "b", HARD), ("b", "a", HARD), ("a", b"1", b"")]
    archives = ImageArchives([write_links(tmp_path / "images.tar", members)])
    assert [archives.read(name) for name in "abc"] == [b"1"] * 3


def test_link_to_other_archive(tmp_path: Path) -> None:
    first = write_links(tmp_path / "a.tar", [("sub/b.jpg", "../a.jpg", SYMBOLIC), ("sub/c.jpg", "x.jpg", SYMBOLIC)])
    archives = ImageArchives([first, write_tar(tmp_path / "b.tar", {"a.jpg": b"a"})])
    assert archives.read("sub/b.jpg") == b"a"
    assert error_of(archives.read, "sub/c.jpg").target == "x.jpg"


REFUSED = [
    ("none", "no.jpg", SYMBOLIC, "missing_image", "archive-link-dangling"),
    ("none_hard", "no.jpg", HARD, "missing_image", "archive-link-dangling"),
    ("to_none", "none", SYMBOLIC, "missing_image", "archive-link-dangling"),
    ("to_folder", "sub", SYMBOLIC, "missing_image", "archive-link-dangling"),
    ("itself", "itself", SYMBOLIC, "unreadable_image", "archive-link-circular"),
    ("itself_hard", "./itself_hard", HARD, "unreadable_image", "archive-link-circular"),
    ("circle", "circle_2", SYMBOLIC, "unreadable_image", "archive-link-circular"),
    ("circle_2", "circle", SYMBOLIC, "unreadable_image", "archive-link-circular"),
    ("absolute", "/etc/passwd", SYMBOLIC, "path_outside", "archive-link-outside"),
    ("out", "../out.jpg", SYMBOLIC, "path_outside", "archive-link-outside"),
    ("out_hard", "../out.jpg", HARD, "path_outside", "archive-link-outside"),
    ("sub/out", "../../1.jpg", SYMBOLIC, "path_outside", "archive-link-outside"),
]


@pytest.mark.parametrize(("name", "target", "kind", "error_kind", "code"), REFUSED)
def test_invalid_links_are_refused(
    tmp_path: Path, name: str, target: str, kind: bytes, error_kind: str, code: str
) -> None:
    members = [("sub/1.jpg", b"1", b""), *((name, target, kind) for name, target, kind, *_ in REFUSED)]
    archives = ImageArchives([write_links(tmp_path / "images.tar", members)])
    for action in (archives.read, archives.find):
        error = error_of(action, name)
        assert (error.kind, error.code) == (error_kind, code)
        assert repr(name) in error.message
        assert repr(error.target) in error.message
        if name != "to_none" and code != "archive-link-circular":
            assert (error.link, error.target) == (name, target)


def test_missing_file_in_linked_folder(tmp_path: Path) -> None:
    members = [("sub/1.jpg", b"1", b""), ("folder", "sub", SYMBOLIC), ("out", "..", SYMBOLIC)]
    archives = ImageArchives([write_links(tmp_path / "images.tar", members)])
    error = error_of(archives.read, "folder/1.JPEG")
    assert (error.code, error.link, error.target, error.near) == (
        "archive-link-dangling",
        "folder",
        "sub",
        ("sub/1.jpg",),
    )
    assert error_of(archives.read, "out/1.jpg").code == "archive-link-outside"


def test_link_in_changed_archive_is_refused(tmp_path: Path) -> None:
    archives = ImageArchives([write_links(tmp_path / "images.tar", [("a", b"1", b""), ("b", "a", SYMBOLIC)])])
    for content in (b"", bytes(10_000), b"x" * 10_000):
        (tmp_path / "images.tar").write_bytes(content)
        assert error_of(archives.read, "b").code == "archive-member-broken"


def test_sparse_member_above_size_limit_is_refused(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ret_lightning.data.images.archives.MAX_INFLATED_BYTES", 1000)
    archives = ImageArchives([pack(tree, "tar --sparse")])
    assert archives.read("sub/1.jpg") == b"one"
    with pytest.raises(DataError) as error:
        archives.read("sparse.bmp")
    assert error.value.reason == "it is larger than 1,000 bytes"
