"""A backbone of somebody else: one file against the interface, and everything else works with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from ret_lightning import RetRetriever
from ret_lightning.errors import ConfigError, UserError
from tests.support.hashed_text import HashedText, StoredText, make
from tests.support.tiny_models import assert_same_function, batch


def test_it_trains_without_knowing_of_anything_else() -> None:
    retriever = make(HashedText(), train_text=1)
    query, passage = retriever.train()(batch([1, 0, 1], [1, 1, 0]), batch([1, 1, 1], [0, 0, 1], seed=1))
    (query[:, :, None] * passage[:, None]).square().sum().backward()
    text = retriever.query_tower.text_backbone
    assert [i for i in range(3) if text.layers[i].weight.grad is not None] == [2]
    assert text.embedding.weight.grad is None


def test_it_is_saved_once_it_says_how(tmp_path: Path) -> None:
    retriever = make(StoredText()).eval()
    retriever.save_pretrained(tmp_path)
    again = RetRetriever.from_pretrained(tmp_path)
    assert type(again.query_tower.text_backbone) is StoredText
    assert_same_function(again, retriever)


def test_it_is_not_saved_before() -> None:
    with pytest.raises(
        ConfigError, match=r"HashedText does not say how it is stored in a checkpoint \(layout_config\)"
    ):
        make(HashedText()).save_pretrained("never")
    assert not Path("never").exists()


def test_a_checkpoint_whose_backbone_is_not_imported_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(StoredText()).save_pretrained(tmp_path)
    monkeypatch.delattr(StoredText, "model_type")
    with pytest.raises(UserError) as raised:
        RetRetriever.from_pretrained(tmp_path)
    assert (raised.value.code, raised.value.found) == ("checkpoint-backbone-unknown", "tests_stored_text")
    assert "import tests.models.backbones.test_base first" in raised.value.message
