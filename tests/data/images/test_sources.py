"""Image sources and the image reader; errors name image and row in one line."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ret_lightning import M2KRDataModule
from ret_lightning.data.images.sources import ImageArchives, ImageFolder, ImageReader, image_source
from ret_lightning.data.readers.source_location import SourceLocation
from ret_lightning.errors import DataError
from ret_lightning.inputs import ClipTokenizer, ImageTransform
from tests.support.archives import error_of, write_tar, write_zip
from tests.support.m2kr_folder import write_folder


@pytest.mark.parametrize(
    "path", ["../a.jpg", "..", "sub/../../a.jpg", "/etc/passwd", "/a.jpg", "./../a.jpg", "//a.jpg"]
)
def test_path_outside_source_is_refused(tmp_path: Path, path: str) -> None:
    (tmp_path / "a.jpg").write_bytes(b"outside")
    (tmp_path / "images").mkdir()
    archive = write_tar(tmp_path / "images.tar", {"../a.jpg": b"a", "a.jpg": b"a", "/etc/passwd": b"a"})
    for source in (ImageFolder(tmp_path / "images"), ImageArchives([archive])):
        error = error_of(source.read, path)
        assert (error.kind, error.code, error.image) == ("path_outside", "image-path-outside", path)


def test_missing_folder_is_reported_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    error = error_of(ImageFolder(tmp_path / "images").read, "sub/a.png")
    assert (error.kind, error.code, error.path) == ("missing_image", "image-folder-missing", str(tmp_path / "images"))
    (tmp_path / "images").mkdir()
    assert error_of(ImageFolder(tmp_path / "images").read, "sub/a.png").code == "image-missing"
    (tmp_path / "file").touch()
    assert error_of(ImageFolder(tmp_path / "file").find, "a.png").code == "image-folder-is-file"
    monkeypatch.setattr("os.access", lambda path, mode: False)  # root can open every folder
    with pytest.raises(DataError) as refused:
        ImageFolder(tmp_path / "images").check()
    assert refused.value.code == "image-folder-not-readable"


def test_paths_within_folder(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/a.jpg").write_bytes(b"a")
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    (folder / "..a.jpg").write_bytes(b"dots")
    source = ImageFolder(folder)
    assert source.read("linked/a.jpg") == b"a"  # links in the folder are trusted
    assert source.read("linked/../..a.jpg") == b"dots"
    assert error_of(source.read, "none.jpg").kind == "missing_image"
    assert error_of(source.read, "linked").kind == "unreadable_image"
    for path, code in (("", "image-path-empty"), (".", "image-path-empty"), ("a\0.jpg", "image-path-null-character")):
        error = error_of(source.read, path)
        assert (error.kind, error.code) == ("missing_image", code)


def test_names_keep_surrounding_spaces(tmp_path: Path) -> None:
    members = {" lead.png": b"lead", "sub/trail.png ": b"trail", "plain.png": b"plain"}
    (tmp_path / "images/sub").mkdir(parents=True)
    for name, content in members.items():
        (tmp_path / "images" / name).write_bytes(content)
    archives = [write_tar(tmp_path / "a.tar", members)], [write_zip(tmp_path / "a.zip", members)]
    for source in (ImageFolder(tmp_path / "images"), *map(ImageArchives, archives)):
        assert [source.read(name) for name in members] == list(members.values())
        for asked, near, code in (
            ("lead.png", " lead.png", "missing"),
            ("sub/trail.png", "sub/trail.png ", "missing"),
            ("plain.png ", "plain.png", "missing"),
            (" sub/trail.png ", "sub/trail.png ", "missing"),
            ("plain.png/", "plain.png", "image-path-of-folder"),
            ("plain.png/.", "plain.png", "image-path-of-folder"),
        ):
            for action in (source.read, source.find):
                error = error_of(action, asked)
                assert (error.kind, error.near) == ("missing_image", (near,)), asked
                assert error.code.endswith(code)


# Names in a config.


def test_image_source_of_folders_archives_and_patterns(tmp_path: Path) -> None:
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
    for location, code in (
        ("shards/*.zip", "archive-pattern-without-match"),
        ([], "image-folder-empty-list"),
        (["d.zip", "shards"], "image-folder-in-list"),
        ("none.tar", "archive-missing"),
        ("none.tar.gz", "archive-compressed"),
    ):
        assert error_of(image_source, location, tmp_path).code == code


# The reader.


def test_reader_accepts_paths_and_bytes(tmp_path: Path) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 70, 3), dtype=np.uint8))
    image.save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no image")
    transform, location = ImageTransform(32), SourceLocation(tmp_path / "rows.jsonl", 3)
    expected = transform(image)
    archive = write_tar(tmp_path / "a.tar", {"a.png": (tmp_path / "a.png").read_bytes()})
    for source in (tmp_path, str(tmp_path), ImageArchives([archive])):
        assert torch.equal(ImageReader(source, transform)("a.png", location, "wit"), expected)
    read = ImageReader(tmp_path, transform)
    assert torch.equal(read((tmp_path / "a.png").read_bytes(), location, "wit"), expected)
    turned = read("a.png", location, "wit", augment=lambda picture: picture.rotate(180))
    assert torch.equal(turned, transform(image.rotate(180)))
    for given_image, kind, code, named in (
        ("none.png", "missing_image", "image-missing", "none.png"),
        ("b.png", "unreadable_image", "image-format-unknown", "image b.png"),
        ("../b.png", "path_outside", "image-path-outside", "'../b.png'"),
        (b"no image", "unreadable_image", "image-format-unknown", "image in the row"),
        (b"", "unreadable_image", "image-empty", "image in the row"),
    ):
        error = error_of(read, given_image, location, "wit")
        assert (error.kind, error.code) == (kind, code)
        assert error.message.startswith(f"{location} (subset wit): ")
        assert named in error.message
    too_large = error_of(ImageReader(tmp_path, transform, max_pixels=6299), "a.png", location, "wit")
    assert (too_large.kind, too_large.code, too_large.allowed) == ("image_too_large", "image-too-large", 6299)


def test_reader_decodes_at_reduced_scale(tmp_path: Path) -> None:
    Image.new("RGB", (640, 480)).save(tmp_path / "a.jpg")
    sizes = []
    for reduce in (False, True):
        reader = ImageReader(tmp_path, ImageTransform(40, reduce=reduce))
        reader(
            "a.jpg", SourceLocation(tmp_path, 1), "wit", augment=lambda picture: sizes.append(picture.size) or picture
        )
    assert sizes == [(640, 480), (160, 120)]


@pytest.mark.parametrize("workers", [0, 2])
def test_data_module_reads_same_pixels_from_archives(tmp_path: Path, workers: int) -> None:
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
    with pytest.raises(DataError) as error:
        batches("images/m2kr/images", max_image_pixels=575)
    assert (error.value.code, error.value.found, error.value.allowed) == (
        "image-too-large",
        "576 pixels (24 x 24)",
        575,
    )
    assert re.search(r"image sub/\d+\.png ", error.value.message)
