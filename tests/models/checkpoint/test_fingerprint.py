"""Fingerprints of models: what they cover, and earlier versions."""

from __future__ import annotations

import pytest

from ret_lightning import RetRetriever
from ret_lightning.errors import UserError
from ret_lightning.models.checkpoint.fingerprint import fingerprint, fingerprint_as
from ret_lightning.search.model_identity import ModelIdentity, open_model
from tests.support.hashed_text import StoredText
from tests.support.hashed_text import make as make_with_text
from tests.support.tiny_models import BY_NAME


def test_fingerprint_covers_backbone_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    retriever = make_with_text(StoredText())
    usual = fingerprint(retriever)
    settings = StoredText.layout_config
    monkeypatch.setattr(StoredText, "layout_config", lambda self: {**settings(self), "slope": 2})
    assert fingerprint(retriever) != usual


# Fingerprints computed by the first version.
FIRST_FINGERPRINTS = {
    "untied_backbones": "f6fa6c9c89db6fd43edfd75835cc7636",
    "two_kinds_of_tower": "25a53c237cfe630d97568d057de32ab4",
    "clip_vit_b_relu_tanh_priors": "da1d24177aa6033324c76bc39de1284a",
    "clip_vit_b_pooled_shared": "2f6d9f3949ffd04b94d04b7562590e48",
}


@pytest.mark.parametrize(("name", "first"), FIRST_FINGERPRINTS.items())
def test_fingerprints_of_first_version_are_compared(name: str, first: str) -> None:
    source = str(BY_NAME[name])
    assert isinstance(ModelIdentity(source, "published", first).open(), RetRetriever)
    other = "0" * 32
    with pytest.raises(UserError) as raised:
        ModelIdentity(source, "published", other).open()
    assert (raised.value.code, raised.value.found, raised.value.expected) == ("index-other-checkpoint", first, other)


def test_fingerprints_have_a_version() -> None:
    retriever, model = open_model(str(BY_NAME["clip_vit_l"]))
    assert model.fingerprint == fingerprint_as(model.fingerprint, retriever) == fingerprint(retriever)
    assert model.fingerprint.startswith("v2:")
    assert isinstance(model.open(), RetRetriever)
