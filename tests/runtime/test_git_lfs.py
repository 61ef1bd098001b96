"""A Git LFS pointer in place of any file is reported with the command that downloads the file."""

from __future__ import annotations

import io
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from ret_lightning import RetRetriever
from ret_lightning.data.images.sources import ImageReader, image_source
from ret_lightning.data.readers.row_files import SUFFIXES, RowFiles
from ret_lightning.data.readers.source_location import SourceLocation
from ret_lightning.errors import DataError
from ret_lightning.inputs import ImageTransform, decode_image, open_image
from ret_lightning.models.backbones.clip_open import _read
from ret_lightning.models.backbones.clip_transformers import ClipTextStack
from ret_lightning.runtime.git_lfs import refuse_lfs_pointer
from tests.support.archives import error_of
from tests.support.paths import REFERENCE

SIZE = 32_123_456_789
POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'4d7a' * 16}\nsize {SIZE}\n".encode()


def checkpoint(folder: Path, name: str, sharded: bool = False) -> Path:
    """Create a checkpoint in which one file is a pointer; return the path of that file."""
    shutil.copytree(REFERENCE / "clip_vit_l/checkpoint", folder)
    if sharded:
        (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
        (folder / "model.safetensors.index.json").write_text(
            '{"weight_map": {"a": "model-00001-of-00001.safetensors"}}'
        )
    (folder / name).write_bytes(POINTER)
    return folder / name


@pytest.mark.parametrize(
    ("name", "action"),
    [
        *((f"rows{suffix}", lambda path: RowFiles([path])) for suffix in SUFFIXES),
        ("images.tar", image_source),
        ("images.zip", image_source),
        ("image.jpg", open_image),
        ("weights.pt", _read),
        ("weights.safetensors", _read),
    ],
)
def test_pointer_in_place_of_file_is_refused(tmp_path: Path, name: str, action: Callable[[Path], object]) -> None:
    (tmp_path / name).write_bytes(POINTER)
    error = error_of(action, tmp_path / name)
    assert (error.code, error.kind, error.size) == ("git-lfs-pointer", "lfs_pointer", SIZE)
    assert str(tmp_path / name) in error.message
    assert "git lfs pull" in error.message


def test_pointer_in_place_of_row_image_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(POINTER)
    with tarfile.open(tmp_path / "images.tar", "w") as archive:
        member = tarfile.TarInfo("a.jpg")
        member.size = len(POINTER)
        archive.addfile(member, io.BytesIO(POINTER))
    location = SourceLocation(tmp_path / "rows.jsonl", 3)
    for source, image in ((tmp_path, "a.jpg"), (image_source("images.tar", tmp_path), "a.jpg"), (tmp_path, POINTER)):
        error = error_of(ImageReader(source, ImageTransform(16)), image, location, "wit")
        assert (error.code, error.kind, error.size) == ("git-lfs-pointer", "lfs_pointer", SIZE)
        assert error.message.startswith(f"{location} (subset wit): image ")


@pytest.mark.parametrize(
    ("name", "sharded"),
    [
        ("config.json", False),
        ("model.safetensors", False),
        ("model.safetensors.index.json", True),
        ("model-00001-of-00001.safetensors", True),
    ],
)
def test_pointer_in_checkpoint_is_refused(tmp_path: Path, name: str, sharded: bool) -> None:
    path = checkpoint(tmp_path / "checkpoint", name, sharded)
    error = error_of(RetRetriever.from_pretrained, path.parent)
    assert (error.code, error.path) == ("git-lfs-pointer", str(path))


def test_pointer_in_backbone_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    (tmp_path / "model.safetensors").write_bytes(POINTER)
    error = error_of(ClipTextStack.from_hub, str(tmp_path), "backbone.pretrained=DIR")
    assert (error.code, error.path) == ("git-lfs-pointer", str(tmp_path / "model.safetensors"))


def test_other_files_are_accepted(tmp_path: Path) -> None:
    refuse_lfs_pointer(tmp_path / "none")
    refuse_lfs_pointer(tmp_path)
    refuse_lfs_pointer("nu\0ll")
    for content in (b"", b"version 1", POINTER[1:]):
        (tmp_path / "file").write_bytes(content)
        refuse_lfs_pointer(tmp_path / "file")
    with pytest.raises(DataError) as error:
        refuse_lfs_pointer("torn", POINTER[:60])
    assert error.value.size is None


def test_pointer_without_path_is_refused() -> None:
    with pytest.raises(DataError) as error:
        decode_image(POINTER)
    assert (error.value.code, error.value.path, error.value.size) == ("git-lfs-pointer", "image", 32_123_456_789)
    assert "32,123,456,789 bytes" in error.value.message
