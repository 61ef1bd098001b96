"""A cache of the hub that cannot be written is named with its variable."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from ret_lightning import RetRetriever
from ret_lightning.errors import UserError
from ret_lightning.models.backbones.missing_weights import no_weights


@pytest.fixture
def denied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PermissionError:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    return PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "hub/models--a--b"))


def test_checkpoint(denied: PermissionError, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(*_: object, **__: object) -> None:
        raise denied

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    with pytest.raises(UserError) as caught:
        RetRetriever.from_pretrained("a/b")
    assert (caught.value.code, caught.value.variable) == ("cache-not-writable", "HF_HUB_CACHE")


def test_backbone_weights(denied: PermissionError) -> None:
    wrapped = OSError("Can't load the model for 'a/b'")
    wrapped.__cause__ = denied
    error = no_weights("backbone.text.source=a/b", "a/b", wrapped, "a folder")
    assert (error.code, error.variable) == ("cache-not-writable", "HF_HUB_CACHE")
