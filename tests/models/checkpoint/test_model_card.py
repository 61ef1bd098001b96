"""The model card of a checkpoint."""

from __future__ import annotations

import yaml

from ret_lightning import RetRetriever
from ret_lightning.models.checkpoint.model_card import model_card
from tests.support.tiny_models import BY_NAME


def test_model_card_lists_metrics_and_architecture() -> None:
    retriever = RetRetriever.from_pretrained(BY_NAME["clip_vit_l"])
    retriever.query_tower.text_backbone.source = "openai/clip"
    retriever.query_tower.vision_backbone.source = "/data/clip"
    metrics = {"wit/recall@10": 0.25, "wit/recall@5": 0.125, "mean/recall@5": 0.5, "evqa/pseudo_recall@5": 1.0}
    card = model_card(retriever, "here", results=[("Results", metrics), ("Nothing", {})])
    front = yaml.safe_load(card.split("---")[1])
    assert front["library_name"] == "ret_lightning"
    assert front["base_model"] == ["openai/clip"]
    assert "| subset | recall@5 | recall@10 | pseudo_recall@5 |" in card
    assert "| evqa |  |  | 1.0000 |\n| wit | 0.1250 | 0.2500 |  |\n| mean | 0.5000 |  |  |" in card
    assert "Nothing" not in card
    both = model_card(retriever, "here", results=[("Results", {**metrics, "mean/main_recall": 0.75})])
    assert "| subset | recall@5 | recall@10 | pseudo_recall@5 |" in both
    assert "| mean | 0.5000 |  |  |\n\nmain recall: 0.7500" in both
    assert "The published code can load it as well" in card
    assert "| recurrence.vision | [0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22] |" in card
