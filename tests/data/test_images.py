"""Images from folders, archives and rows: the bytes that went in, in any process, and refusals in one line."""

from __future__ import annotations

import io
import logging
import multiprocessing
import os
import pickle
import tarfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from ret_lightning import M2KRDataModule
from ret_lightning.data.archive_index import index_file
from ret_lightning.data.images import OPEN_ARCHIVES, ImageArchives, ImageFolder, ImageReader, image_source
from ret_lightning.data.rows import Place
from ret_lightning.errors import DataError
from ret_lightning.inputs import ClipTokenizer, ImageTransform
from tests.data.folder import write_folder

LONG = "d" * 90 + "/" + "é" * 120 + ".jpg"  # more than a tar header's 100 characters
MEMBERS = {f"sub/{i}.jpg": bytes([i]) * (i * 37) for i in range(1, 40)} | {
    LONG: b"long",
    "empty.jpg": b"",
    "ü ñ.jpg": b"u",
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/ret_lightning/image_archives"


def write_tar(path: Path, members: dict[str, bytes], form: int = tarfile.PAX_FORMAT, mode: str = "w") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode, format=form) as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def write_zip(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def error_of(action, *arguments) -> DataError:
    with pytest.raises(DataError) as error:
        action(*arguments)
    assert "\n" not in str(error.value)
    return error.value


# Archives.


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_tar_members_are_read_in_place(tmp_path: Path, form: int) -> None:
    members = {name: content for name, content in MEMBERS.items() if name != LONG or form != tarfile.USTAR_FORMAT}
    archives = ImageArchives([write_tar(tmp_path / "images.tar", members, form)])
    assert len(archives) == len(members)
    assert {name: archives.read(name) for name in members} == members


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_zip_members_are_read_in_place(tmp_path: Path, method: int) -> None:
    archives = ImageArchives([write_zip(tmp_path / "images.ZIP", MEMBERS, method)])
    assert {name: archives.read(name) for name in MEMBERS} == MEMBERS


def test_a_zip_that_was_written_as_a_stream(tmp_path: Path) -> None:
    """Its local headers do not tell the sizes; they follow the contents."""

    class Stream(io.RawIOBase):
        def __init__(self) -> None:
            self.content = b""

        def writable(self) -> bool:
            return True

        def write(self, content) -> int:
            self.content += bytes(content)
            return len(content)

    stream = Stream()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in MEMBERS.items():
            archive.writestr(name, content)
    (tmp_path / "images.zip").write_bytes(stream.content)
    archives = ImageArchives([tmp_path / "images.zip"])
    assert {name: archives.read(name) for name in MEMBERS} == MEMBERS


def test_names_with_a_leading_dot_and_links_and_folders_in_an_archive(tmp_path: Path) -> None:
    folder = tmp_path / "tree"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub/1.jpg").write_bytes(b"one")
    (folder / "link.jpg").symlink_to("sub/1.jpg")
    with tarfile.open(tmp_path / "images.tar", "w") as archive:
        archive.add(folder, ".")
        assert "./sub/1.jpg" in archive.getnames()
    archives = ImageArchives([tmp_path / "images.tar"])
    for path in ("sub/1.jpg", "./sub/1.jpg", "sub//1.jpg", "other/../sub/1.jpg"):
        assert archives.read(path) == b"one"
    assert len(archives) == 1
    assert error_of(archives.read, "link.jpg").kind == "missing_image"
    assert error_of(archives.read, "sub").kind == "missing_image"


def test_of_equal_names_the_last_in_an_archive_and_the_first_archive_count(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_tar(tmp_path / "b.tar", {"x.jpg": b"old", "y.jpg": b"y"})
    write_tar(tmp_path / "b.tar", {"./x.jpg": b"new"}, mode="a")
    with tarfile.open(tmp_path / "b.tar") as archive:
        assert archive.extractfile(archive.getmember("./x.jpg")).read() == b"new"
    write_zip(tmp_path / "a.zip", {"x.jpg": b"other", "z.jpg": b"z"})
    with caplog.at_level(logging.WARNING):
        archives = ImageArchives([tmp_path / "b.tar", tmp_path / "a.zip"])
    assert [archives.read(name) for name in ("x.jpg", "y.jpg", "z.jpg")] == [b"new", b"y", b"z"]
    assert len(archives) == 3
    assert "1 images stand in another archive already, and the first counts; one in" in caplog.text
    assert ImageArchives([tmp_path / "a.zip", tmp_path / "b.tar"]).read("x.jpg") == b"other"


def test_more_archives_than_are_kept_open_are_read_by_threads_at_once(tmp_path: Path) -> None:
    count = OPEN_ARCHIVES + 20
    archives = ImageArchives([write_tar(tmp_path / f"{i}.tar", {f"{i}.jpg": str(i).encode()}) for i in range(count)])
    names = [str(i) for i in np.random.default_rng(0).integers(0, count, 2000)]
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(lambda name: archives.read(f"{name}.jpg"), names)) == [n.encode() for n in names]
    opened = [link for link in Path("/proc/self/fd").iterdir() if os.path.realpath(link).startswith(str(tmp_path))]
    assert len(opened) <= OPEN_ARCHIVES + 9  # the index is mapped, and threads may overshoot by one each


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_archives_are_read_in_other_processes(tmp_path: Path, method: str) -> None:
    archives = ImageArchives(
        [write_tar(tmp_path / "a.tar", MEMBERS), write_zip(tmp_path / "b.zip", {"zip.jpg": b"zip"})]
    )
    assert archives.read("zip.jpg") == b"zip"  # opens a file, whose position a forked process shares
    names = [*MEMBERS, "zip.jpg"] * 20
    with multiprocessing.get_context(method).Pool(2) as pool:
        read = pool.map(archives.read, names, chunksize=7)
    assert read == [(MEMBERS | {"zip.jpg": b"zip"})[name] for name in names]
    assert len(pickle.dumps(archives)) < 1000


# The index.


def test_the_index_is_made_once_and_again_when_an_archive_changes(tmp_path: Path, cache: Path) -> None:
    archive = write_tar(tmp_path / "images.tar", {"a.jpg": b"a"})
    first = index_file([archive])
    made = first.stat().st_mtime_ns
    assert index_file([archive]) == first
    assert first.stat().st_mtime_ns == made
    write_tar(archive, {"a.jpg": b"A", "b.jpg": b"b"})
    assert ImageArchives([archive]).read("a.jpg") == b"A"
    assert not first.exists()
    changed = index_file([archive])
    os.utime(archive, ns=(0, 0))
    assert index_file([archive]) != changed
    assert len(list(cache.glob("*.npy"))) == 1
    assert not [path for path in cache.iterdir() if path.suffix not in (".npy", ".lock")]


def test_an_index_takes_40_bytes_a_member_and_is_mapped(tmp_path: Path) -> None:
    members = {f"{i}.jpg": b"" for i in range(1000)}
    archives = ImageArchives([write_zip(tmp_path / "images.zip", members)])
    assert archives._index_file.stat().st_size < 40 * 1000 + 200
    assert isinstance(archives._index.base, np.memmap)


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    archive = write_tar(tmp_path / "images.tar", {"a.jpg": b"a"})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    error = error_of(ImageArchives, [archive])
    assert "cannot be written there (Not a directory): name another folder with the environment variable" in str(error)


# Refusals.


@pytest.mark.parametrize(
    "path", ["../a.jpg", "..", "sub/../../a.jpg", "/etc/passwd", "/a.jpg", "./../a.jpg", "//a.jpg"]
)
def test_a_path_that_leaves_the_root_is_refused(tmp_path: Path, path: str) -> None:
    (tmp_path / "a.jpg").write_bytes(b"outside")
    (tmp_path / "images").mkdir()
    archive = write_tar(tmp_path / "images.tar", {"../a.jpg": b"a", "a.jpg": b"a", "/etc/passwd": b"a"})
    for source in (ImageFolder(tmp_path / "images"), ImageArchives([archive])):
        error = error_of(source.read, path)
        assert error.kind == "path_outside"
        assert str(error).startswith(f"image path {path!r} leads out of ")


def test_paths_within_a_folder(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/a.jpg").write_bytes(b"a")
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    (folder / "..a.jpg").write_bytes(b"dots")
    source = ImageFolder(folder)
    assert source.read("linked/a.jpg") == b"a"  # who made the folder made the link
    assert source.read("linked/../..a.jpg") == b"dots"
    assert error_of(source.read, "none.jpg").kind == "missing_image"
    assert error_of(source.read, "linked").kind == "unreadable_image"
    for path in ("", ".", "a\0.jpg"):
        assert error_of(source.read, path).kind == "missing_image"


def test_a_truncated_or_wrong_archive_is_refused(tmp_path: Path) -> None:
    contents = {f"{i}.jpg": np.random.default_rng(i).bytes(3000) for i in range(9)}
    for write, name in ((write_tar, "a.tar"), (write_zip, "a.zip")):
        whole = write(tmp_path / name, contents).read_bytes()
        for cut in (0, 10, 600, len(whole) // 2):
            torn = tmp_path / f"torn{cut}{name}"
            torn.write_bytes(whole[:cut])
            error = error_of(ImageArchives, [torn])
            assert error.kind == "broken_archive"
            assert str(error).startswith(f"image archive {torn}: ")
    (tmp_path / "gzip.tar").write_bytes(write_tar(tmp_path / "b.tar.gz", contents, mode="w:gz").read_bytes())
    for name, message in (
        ("gzip.tar", "not whole, or no archive"),
        ("b.tar.gz", "a compressed archive cannot be read in place; unpack it to a .tar"),
        ("none.tar", "No such file or directory"),
        ("a.rar", "a compressed archive cannot be read in place"),
        ("a.iso", r"its name must end in .tar or .zip"),
    ):
        assert message in str(error_of(ImageArchives, [tmp_path / name]))
    write_tar(tmp_path / "nothing.tar", {})
    assert "there is no file in it" in str(error_of(ImageArchives, [tmp_path / "nothing.tar"]))
    write_zip(tmp_path / "bz.zip", contents, zipfile.ZIP_BZIP2)
    assert "'0.jpg' is compressed by bzip2" in str(error_of(ImageArchives, [tmp_path / "bz.zip"]))


def test_a_tar_that_ends_between_two_members_is_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole = write_tar(tmp_path / "whole.tar", {f"{i}.jpg": bytes(512) for i in range(4)}, tarfile.USTAR_FORMAT)
    (tmp_path / "cut.tar").write_bytes(whole.read_bytes()[: 2 * 1024])
    with caplog.at_level(logging.WARNING):
        assert len(ImageArchives([whole])) == 4
        assert not caplog.messages
        assert len(ImageArchives([tmp_path / "cut.tar"])) == 2
    message = (
        f"image archive {tmp_path}/cut.tar: a tar ends with two empty blocks and this one does not; was it cut off?"
    )
    assert caplog.messages == [message]


def test_an_archive_that_changes_under_a_reader(tmp_path: Path) -> None:
    for write, name, options in ((write_tar, "a.tar", {}), (write_zip, "a.zip", {"method": zipfile.ZIP_DEFLATED})):
        archives = ImageArchives([write(tmp_path / name, {"a.jpg": bytes(range(256)) * 40}, **options)])
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content[:60])
        error = error_of(archives.read, "a.jpg")
        assert error.kind == "unreadable_image"
        assert str(tmp_path / name) in str(error)
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        content = write_zip(tmp_path / "a.zip", {"a.jpg": bytes(range(256)) * 40}, method).read_bytes()
        archives = ImageArchives([tmp_path / "a.zip"])
        assert archives.read("a.jpg") == bytes(range(256)) * 40
        (tmp_path / "a.zip").write_bytes(content[:45] + bytes(100) + content[145:])
        assert error_of(archives.read, "a.jpg").kind == "unreadable_image"
    archives = ImageArchives([tmp_path / "a.zip"])
    (tmp_path / "a.zip").unlink()
    assert error_of(archives.read, "a.jpg").kind == "unreadable_image"


def test_a_name_that_is_nowhere(tmp_path: Path) -> None:
    archives = ImageArchives(
        [write_tar(tmp_path / "a.tar", {"a.jpg": b"a"}), write_tar(tmp_path / "b.tar", {"b": b"b"})]
    )
    for name in ("c.jpg", "A.jpg", "\ud800.jpg"):
        error = error_of(archives.read, name)
        assert error.kind == "missing_image"
        assert str(error) == f"image {name!r} is not in {tmp_path}/a.tar nor in 1 other archives"


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.booleans(),
    st.lists(st.tuples(st.integers(0, 20_000), st.binary(min_size=1, max_size=6)), max_size=5),
    st.floats(0, 1),
)
def test_broken_archives_are_read_or_a_data_error(tmp_path: Path, tar: bool, changes, share: float) -> None:
    path = (
        write_tar(tmp_path / "a.tar", MEMBERS) if tar else write_zip(tmp_path / "a.zip", MEMBERS, zipfile.ZIP_DEFLATED)
    )
    data = bytearray(path.read_bytes())
    for position, new in changes:
        position %= len(data)
        data[position : position + len(new)] = new
    path.write_bytes(data[: round(share * len(data))] if share > 0.7 else data)
    try:
        archives = ImageArchives([path])
    except DataError as error:
        assert error.kind == "broken_archive"
        return
    for name in MEMBERS:
        try:
            archives.read(name)
        except DataError as error:
            assert error.kind in ("missing_image", "unreadable_image")


# Names in a config.


def test_folders_archives_patterns_and_lists(tmp_path: Path) -> None:
    for name in ("shards/b.tar", "shards/a.tar", "shards/deep/c.tar"):
        write_tar(tmp_path / name, {f"{name}.jpg": name.encode()})
    write_zip(tmp_path / "d.zip", {"d.jpg": b"d"})
    (tmp_path / "folder.tar").mkdir()
    (tmp_path / "[odd]").mkdir()
    for folder in ("images", "folder.tar", "[odd]", "."):
        source = image_source(folder, tmp_path)
        assert isinstance(source, ImageFolder)
        assert source.folder == tmp_path / folder

    def names(location) -> list[str]:
        return [str(path.relative_to(tmp_path)) for path in image_source(location, tmp_path).archives]

    assert names("d.zip") == ["d.zip"]
    assert names(str(tmp_path / "d.zip")) == ["d.zip"]
    assert names("shards/*.tar") == ["shards/a.tar", "shards/b.tar"]
    assert names("shards/**/*.tar") == ["shards/a.tar", "shards/b.tar", "shards/deep/c.tar"]
    assert names(["shards/b.tar", "d.zip", "shards/?.tar"]) == ["shards/b.tar", "d.zip", "shards/a.tar"]
    for location, message in (
        ("shards/*.zip", "data.image_folder: no file matches"),
        ([], "data.image_folder is an empty list"),
        (["d.zip", "shards"], "is a folder; a list names archives"),
        ("none.tar", "No such file"),
        ("none.tar.gz", "a compressed archive cannot be read in place"),
    ):
        assert message in str(error_of(image_source, location, tmp_path))


# The reader.


def test_the_reader_takes_paths_and_bytes_and_names_the_row(tmp_path: Path) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 70, 3), dtype=np.uint8))
    image.save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no image")
    transform, place = ImageTransform(32), Place(tmp_path / "rows.jsonl", 3)
    expected = transform(image)
    archive = write_tar(tmp_path / "a.tar", {"a.png": (tmp_path / "a.png").read_bytes()})
    for source in (tmp_path, str(tmp_path), ImageArchives([archive])):
        assert torch.equal(ImageReader(source, transform)("a.png", place, "wit"), expected)
    read = ImageReader(tmp_path, transform)
    assert torch.equal(read((tmp_path / "a.png").read_bytes(), place, "wit"), expected)
    turned = read("a.png", place, "wit", augment=lambda picture: picture.rotate(180))
    assert torch.equal(turned, transform(image.rotate(180)))
    for given_image, kind, named in (
        ("none.png", "missing_image", "none.png"),
        ("b.png", "unreadable_image", "image b.png"),
        ("../b.png", "path_outside", "'../b.png'"),
        (b"no image", "unreadable_image", "image in the row"),
        (b"", "unreadable_image", "image in the row"),
    ):
        error = error_of(read, given_image, place, "wit")
        assert error.kind == kind
        assert str(error).startswith(f"{place} (subset wit): ")
        assert named in str(error)
    too_large = error_of(ImageReader(tmp_path, transform, max_pixels=6299), "a.png", place, "wit")
    assert too_large.kind == "image_too_large"


def test_the_reader_decodes_at_a_reduced_size_where_the_transform_allows_it(tmp_path: Path) -> None:
    Image.new("RGB", (640, 480)).save(tmp_path / "a.jpg")
    sizes = []
    for reduce in (False, True):
        reader = ImageReader(tmp_path, ImageTransform(40, reduce=reduce))
        reader("a.jpg", Place(tmp_path, 1), "wit", augment=lambda picture: sizes.append(picture.size) or picture)
    assert sizes == [(640, 480), (160, 120)]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_data_module_reads_the_same_from_archives(tmp_path: Path, workers: int) -> None:
    root = write_folder(tmp_path / "m2kr")
    images = root / "images/m2kr/images"
    files = {str(path.relative_to(images)): path.read_bytes() for path in images.rglob("*.png")}
    write_tar(root / "images/even.tar", {name: content for i, (name, content) in enumerate(files.items()) if i % 2})
    write_zip(root / "images/odd.zip", {"./" + name: c for i, (name, c) in enumerate(files.items()) if i % 2 == 0})

    def batches(image_folder, **options) -> list:
        data = M2KRDataModule(
            root, ClipTokenizer(), ImageTransform(16), batch_size=8, image_folder=image_folder, **options
        )
        data.prepare_data()
        data.setup("fit")
        return [*data.train_dataloader(), *data.val_dataloader()[0]]

    expected = batches("images/m2kr/images")
    for image_folder in ("images/*.*", ["images/odd.zip", "images/even.tar"]):
        got = batches(image_folder, num_workers=workers)
        assert len(got) == len(expected)
        for one, other in zip(got, expected, strict=True):
            ours, theirs = (b.queries if hasattr(b, "queries") else b.inputs for b in (one, other))
            assert torch.equal(ours.pixel_values, theirs.pixel_values)
    with pytest.raises(DataError, match=r"image sub/\d+\.png is too large: it has 576 pixels \(24 by 24\)"):
        batches("images/m2kr/images", max_image_pixels=575)
