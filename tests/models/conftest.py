"""Fixtures for tiny models."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import pytest

from ret_lightning.models import LSTMGate, RetRetriever, build_retriever
from ret_lightning.models.backbones.clip_transformers import clip_backbone
from tests.support.tiny_models import TEXT, VISION


@pytest.fixture
def make_retriever() -> Callable[..., RetRetriever]:
    """Return a function that builds a tiny retriever with random weights."""

    def make(gate=LSTMGate, **options) -> RetRetriever:
        options = {"num_tokens": 4, "hidden_size": 32, "num_heads": 2, "output_size": 8, **options}
        return build_retriever(clip_backbone(text=TEXT, vision=VISION), gate=gate, **options)

    return make


@pytest.fixture
def denied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PermissionError:
    """Return the error of a hub cache that is not writable."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    return PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "hub/models--a--b"))
