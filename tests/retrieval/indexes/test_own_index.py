"""An index class outside the package: registered by subclassing, saved and loaded by its own methods."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest
import torch

from ret_lightning.config.targets.allowed_targets import OWN_PACKAGES
from ret_lightning.errors import ConfigError, DataError
from ret_lightning.retrieval import Embeddings, Index, search_replicated, search_sharded
from ret_lightning.retrieval.indexes import base
from tests.support.own_index import MODULE, write_own_index
from tests.support.random_pools import clustered


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of a user module that is importable but not imported."""
    write_own_index(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(base, "KINDS", dict(base.KINDS))
    yield tmp_path
    sys.modules.pop(MODULE, None)


def save_own_index(folder: Path) -> tuple[Index, torch.Tensor, Embeddings]:
    queries, passages = clustered(60, 5)
    index = import_module(MODULE).MeanIndex(scale=3.0)
    index.build(passages)
    index.save(folder / "saved")
    return index, queries, passages


def unload_own_module() -> None:
    del sys.modules[MODULE], base.KINDS[f"{MODULE}.MeanIndex"]


def test_own_index_round_trip(folder: Path) -> None:
    index, queries, passages = save_own_index(folder)
    assert sorted(json.loads((folder / "saved/index.json").read_text())["files"]) == ["parts/means.bin"]
    loaded = Index.load(folder / "saved", passages)
    assert loaded.scale == 3.0
    assert torch.equal(loaded.search(queries, 7).scores, index.search(queries, 7).scores)


def test_own_class_is_imported_if_allowed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index, queries, passages = save_own_index(folder)
    unload_own_module()
    monkeypatch.delenv(OWN_PACKAGES, raising=False)
    with pytest.raises(DataError) as caught:
        Index.load(folder / "saved", passages)
    assert caught.value.code == "saved-index-class-unknown"
    assert caught.value.found == f"{MODULE}.MeanIndex"
    assert f"{OWN_PACKAGES}={MODULE}" in caught.value.message
    assert MODULE not in sys.modules
    monkeypatch.setenv(OWN_PACKAGES, MODULE)
    assert torch.equal(Index.load(folder / "saved", passages).search(queries, 7).rows, index.search(queries, 7).rows)


def test_index_without_save_is_built_on_load(folder: Path) -> None:
    own = import_module(MODULE).MeanIndex

    class Rebuilt(own):
        _save, _restore = Index._save, Index._restore

    queries, passages = clustered(60, 5)
    index = Rebuilt()
    index.build(passages)
    index.save(folder / "saved")
    assert [path.name for path in (folder / "saved").iterdir()] == ["index.json"]
    assert torch.equal(Index.load(folder / "saved", passages).search(queries, 7).rows, index.search(queries, 7).rows)


@pytest.mark.parametrize("search", ["replicated", "candidates"])
def test_own_index_without_fallback(folder: Path, search: str) -> None:
    index, queries, _ = save_own_index(folder)
    if search == "replicated":
        found = search_replicated(index, queries, 4, torch.device("cpu"), fallback=False)
    else:
        found = index.search_candidates(queries, 4)
    assert torch.equal(found.rows, index.search(queries, 4).rows)


def test_own_index_can_be_sharded(folder: Path) -> None:
    index, queries, passages = save_own_index(folder)
    expected = index.search(queries, 4)
    found = search_sharded(index, passages, torch.arange(len(passages)), queries, 4, torch.device("cpu"))
    assert torch.equal(found.rows, expected.rows)


def test_unsavable_index_is_rejected(folder: Path) -> None:
    _, _, passages = save_own_index(folder)
    own = import_module(MODULE).MeanIndex

    class Forgetful(own):
        def __init__(self, device=None, width=3):
            super().__init__(device=device)

    for index, code in ((Forgetful(), "index-argument-not-kept"), (own(scale=torch.float32), "index-not-json")):
        index._passages = passages
        index.means = torch.zeros(1)
        with pytest.raises(ConfigError) as caught:
            index.save(folder / "new")
        assert caught.value.code == code
        assert not list((folder / "new").iterdir()) if (folder / "new").exists() else True
