"""The errors for backbone weights that cannot be loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from ret_lightning.errors import DataError
from ret_lightning.models.backbones.missing_weights import no_weights


def test_unwritable_cache_names_variable(denied: PermissionError) -> None:
    wrapped = OSError("Can't load the model for 'a/b'")
    wrapped.__cause__ = denied
    error = no_weights("backbone.text.source=a/b", "a/b", wrapped, "a folder")
    assert (error.code, error.variable) == ("cache-not-writable", "HF_HUB_CACHE")


@pytest.mark.parametrize(
    ("source", "code"),
    [
        ("/nowhere/clip", "weights-folder-missing"),
        ("./nowhere", "weights-folder-missing"),
        ("{folder}", "weights-not-in-folder"),
        ("a/b/c", "weights-not-in-folder"),
        ("clip", "weights-not-in-folder"),
        ("owner/clip", "weights-not-downloaded"),
    ],
)
def test_error_depends_on_kind_of_source(tmp_path: Path, source: str, code: str) -> None:
    source = source.format(folder=tmp_path)
    error = no_weights(f"backbone.pretrained={source}", source, OSError("No file.\nat length"), "a folder")
    assert (error.code, error.found) == (code, source)
    assert error.message.startswith(f"backbone.pretrained={source}: ")
    assert "\n" not in error.message
    if code != "weights-folder-missing":
        assert error.reason == "No file"


def test_git_lfs_pointer_is_reported(tmp_path: Path) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 605\n"
    (tmp_path / "model.safetensors").write_text(pointer)
    with pytest.raises(DataError) as caught:
        no_weights("backbone.pretrained=x", str(tmp_path), OSError("not safetensors"), "a folder")
    assert caught.value.code == "git-lfs-pointer"
