"""User-defined backbones: training, saving, and checks of their states."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from ret_lightning import RetRetriever
from ret_lightning.errors import ConfigError, UserError
from ret_lightning.models import LSTMGate, build_retriever
from ret_lightning.models.backbones.base import STACKS
from ret_lightning.models.backbones.clip_transformers import clip_backbone
from tests.support.hashed_text import HashedText, StoredText, make
from tests.support.tiny_models import assert_same_function, batch


def test_user_backbone_can_be_trained() -> None:
    retriever = make(HashedText(), train_text=1)
    query, passage = retriever.train()(batch([1, 0, 1], [1, 1, 0]), batch([1, 1, 1], [0, 0, 1], seed=1))
    (query[:, :, None] * passage[:, None]).square().sum().backward()
    text = retriever.query_tower.text_backbone
    assert [i for i in range(3) if text.layers[i].weight.grad is not None] == [2]
    assert text.embedding.weight.grad is None


def test_user_backbone_is_saved_and_loaded(tmp_path: Path) -> None:
    retriever = make(StoredText()).eval()
    retriever.save_pretrained(tmp_path)
    again = RetRetriever.from_pretrained(tmp_path)
    assert type(again.query_tower.text_backbone) is StoredText
    assert_same_function(again, retriever)


def test_backbone_without_layout_is_not_saved() -> None:
    with pytest.raises(ConfigError) as error:
        make(HashedText()).save_pretrained("never")
    assert (error.value.code, error.value.backbone, error.value.method) == (
        "backbone-not-storable",
        "HashedText",
        "layout_config",
    )
    assert not Path("never").exists()


def test_backbone_that_is_not_imported_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(StoredText()).save_pretrained(tmp_path)
    monkeypatch.delitem(STACKS, StoredText.model_type)
    with pytest.raises(UserError) as raised:
        RetRetriever.from_pretrained(tmp_path)
    assert (raised.value.code, raised.value.found) == ("checkpoint-backbone-unknown", "tests_stored_text")
    assert "import tests.support.hashed_text first" in raised.value.message


class ChangedText(HashedText):
    change: Callable[[Tensor], Tensor]

    def run_block(self, index: int, states: Tensor, attention_mask: Tensor | None) -> Tensor:
        states = super().run_block(index, states, attention_mask)
        return type(self).change(states) if index == 2 else states


class FewerStates(HashedText):
    def forward(self, inputs: Tensor, blocks: Sequence[int], attention_mask: Tensor | None = None) -> list[Tensor]:
        return super().forward(inputs, blocks, attention_mask)[1:]


@pytest.mark.parametrize("one_tower", [True, False], ids=["one tower", "both towers"])
@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda states: states[..., :-1], "backbone-states-shape"),
        (lambda states: states[:, 1:], "backbone-states-shape"),
        (lambda states: states[1:], "backbone-states-shape"),
        (lambda states: states.mean(1), "backbone-states-shape"),
        (None, "backbone-states-missing"),
    ],
)
def test_user_states_are_checked(change: Any, code: str, one_tower: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ChangedText, "change", staticmethod(change), raising=False)
    retriever = make(FewerStates() if change is None else ChangedText())
    rows = batch([1, 1, 1], [1, 1, 0])
    with pytest.raises(ConfigError) as raised:
        retriever.query_tower(rows) if one_tower else retriever(rows, batch([1, 0, 1], [1, 1, 1], seed=1))
    assert raised.value.code == code
    assert raised.value.backbone in ("ChangedText", "FewerStates")


@pytest.mark.parametrize("gate", [LSTMGate(32), None])
def test_gate_instance_is_refused(gate: Any) -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
    with pytest.raises(ConfigError) as raised:
        build_retriever(clip_backbone(text=sizes, vision={**sizes, "image_size": 16, "patch_size": 8}), gate)
    assert raised.value.code == "gate-not-a-factory"


def test_backbone_without_reader_is_not_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(StoredText()).save_pretrained(tmp_path)
    monkeypatch.delattr(StoredText, "from_layout_config")
    with pytest.raises(UserError) as raised:
        RetRetriever.from_pretrained(tmp_path)
    assert (raised.value.code, raised.value.backbone) == ("backbone-not-readable", "StoredText")
    assert raised.value.path == tmp_path / "config.json"
