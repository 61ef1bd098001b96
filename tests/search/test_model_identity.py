"""Which model made an index."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ret_lightning import RetRetriever
from ret_lightning.errors import ConfigError, DataError, UserError
from ret_lightning.search.model_identity import model_for, open_model
from tests.support.small_runs import Trained
from tests.support.tiny_models import BY_NAME

needs_run = pytest.mark.slow  # of ret-train, which all of them share


@needs_run
def test_an_index_of_another_checkpoint_is_told(trained: Trained, index: Path, tmp_path: Path, call, capsys) -> None:
    retriever = RetRetriever.from_pretrained(trained.exported)
    with torch.no_grad():
        retriever.passage_tower.output.weight[0, 0] += 1e-3
    retriever.save_pretrained(tmp_path / "other")
    assert call("search", f"index={index}", "query=x", f"checkpoint={tmp_path / 'other'}") == 1
    assert "the index is of another checkpoint than" in capsys.readouterr().err
    copy = Path(shutil.copytree(index, tmp_path / "copy"))
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["model"]["source"] = str(tmp_path / "gone.ckpt")
    (copy / "manifest.json").write_text(json.dumps(manifest))
    assert call("search", f"index={copy}", "query=x") == 1
    assert "gone.ckpt, which is not there any more; checkpoint=... tells where it is now" in capsys.readouterr().err
    assert call("search", f"index={copy}", "query=x", f"checkpoint={trained.run}") == 0


def test_opened_model_is_known_by_its_absolute_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    published = BY_NAME["clip_vit_l"]
    monkeypatch.chdir(published.parent)
    retriever, model = open_model(published.name)
    assert (model.source, model.kind) == (str(published), "published")
    monkeypatch.chdir(tmp_path)
    again = model.open()
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), retriever.parameters(), strict=True))


def test_model_that_moved_or_changed() -> None:
    published = BY_NAME["clip_vit_l"]
    _, model = open_model(str(published))
    gone = replace(model, source="/gone/model")
    with pytest.raises(UserError) as caught:
        gone.open()
    assert (caught.value.code, caught.value.path) == ("index-checkpoint-missing", "/gone/model")
    assert isinstance(gone.open(moved_to=str(published)), RetRetriever)
    with pytest.raises(DataError) as caught:
        gone.open(moved_to=str(BY_NAME["untied_backbones"]))
    assert (caught.value.code, caught.value.expected) == ("index-other-checkpoint", model.fingerprint)


def test_encoding_model_is_that_of_the_index_unless_it_is_new() -> None:
    _, known = open_model(str(BY_NAME["clip_vit_l"]))
    _, model = model_for(None, "cpu", known)
    assert model is known
    _, model = model_for(str(BY_NAME["clip_vit_l"]), "cpu", None)
    assert model == known
    with pytest.raises(ConfigError) as caught:
        model_for(None, "cpu", None)
    assert caught.value.code == "checkpoint-not-given"
