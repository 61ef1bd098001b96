"""The model of an index."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ret_lightning import RetRetriever
from ret_lightning.errors import ConfigError, DataError, UserError
from ret_lightning.search.model_identity import open_model, resolve_model
from tests.support.small_runs import Trained
from tests.support.tiny_models import BY_NAME

needs_run = pytest.mark.slow  # uses the session run of ret-train


@needs_run
def test_other_checkpoint_is_rejected(trained: Trained, index: Path, tmp_path: Path, call, capsys) -> None:
    retriever = RetRetriever.from_pretrained(trained.exported)
    with torch.no_grad():
        retriever.passage_tower.output.weight[0, 0] += 1e-3
    retriever.save_pretrained(tmp_path / "other")
    assert call("search", f"index={index}", "query=x", f"checkpoint={tmp_path / 'other'}") == 1
    assert capsys.readouterr().err.endswith("[index-other-checkpoint]\n")
    copy = Path(shutil.copytree(index, tmp_path / "copy"))
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["model"]["source"] = str(tmp_path / "moved.ckpt")
    (copy / "manifest.json").write_text(json.dumps(manifest))
    assert call("search", f"index={copy}", "query=x") == 1
    error = capsys.readouterr().err
    assert "moved.ckpt" in error
    assert error.endswith("[index-checkpoint-missing]\n")
    assert call("search", f"index={copy}", "query=x", f"checkpoint={trained.run}") == 0


def test_opened_model_stores_absolute_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    published = BY_NAME["clip_vit_l"]
    monkeypatch.chdir(published.parent)
    retriever, model = open_model(published.name)
    assert (model.source, model.kind) == (str(published), "published")
    monkeypatch.chdir(tmp_path)
    again = model.open()
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), retriever.parameters(), strict=True))


def test_moved_or_changed_checkpoint() -> None:
    published = BY_NAME["clip_vit_l"]
    _, model = open_model(str(published))
    moved = replace(model, source="/moved/model")
    with pytest.raises(UserError) as caught:
        moved.open()
    assert (caught.value.code, caught.value.path) == ("index-checkpoint-missing", "/moved/model")
    assert isinstance(moved.open(checkpoint=str(published)), RetRetriever)
    with pytest.raises(DataError) as caught:
        moved.open(checkpoint=str(BY_NAME["untied_backbones"]))
    assert (caught.value.code, caught.value.expected) == ("index-other-checkpoint", model.fingerprint)


def test_resolve_model_prefers_model_of_index() -> None:
    _, known = open_model(str(BY_NAME["clip_vit_l"]))
    _, model = resolve_model(None, "cpu", known)
    assert model is known
    _, model = resolve_model(str(BY_NAME["clip_vit_l"]), "cpu", None)
    assert model == known
    with pytest.raises(ConfigError) as caught:
        resolve_model(None, "cpu", None)
    assert caught.value.code == "checkpoint-not-given"
