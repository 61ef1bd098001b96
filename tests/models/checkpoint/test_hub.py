"""push_to_hub and the model card, against a hub that keeps what it is given."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

from ret_lightning import RetRetriever
from ret_lightning.errors import UserError
from ret_lightning.models.checkpoint.model_card import model_card
from tests.support.tiny_models import BY_NAME


class FakeHub:
    """Repositories as folders; the calls that push makes of `huggingface_hub.HfApi`, by their documented signatures."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.calls: list[tuple[str, dict[str, Any]]] = []

    def create_repo(self, repo_id: str, *, private: bool | None = None, exist_ok: bool = False) -> SimpleNamespace:
        self.calls.append(("create_repo", {"private": private, "exist_ok": exist_ok}))
        (self.folder / repo_id).mkdir(parents=True, exist_ok=True)
        return SimpleNamespace(repo_id=repo_id)

    def create_branch(self, repo_id: str, *, branch: str, exist_ok: bool = False) -> None:
        self.calls.append(("create_branch", {"branch": branch}))

    def file_exists(self, repo_id: str, filename: str, *, revision: str | None = None) -> bool:
        return (self.folder / repo_id / filename).exists()

    def upload_folder(
        self, *, repo_id: str, folder_path: str, commit_message: str, revision: str | None, delete_patterns: list[str]
    ) -> str:
        self.calls.append(("upload_folder", {"commit_message": commit_message, "revision": revision}))
        for old in [file for pattern in delete_patterns for file in (self.folder / repo_id).glob(pattern)]:
            old.unlink()
        for file in Path(folder_path).iterdir():
            (self.folder / repo_id / file.name).write_bytes(file.read_bytes())
        return f"https://hub/{repo_id}/commit/1"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    hub = FakeHub(tmp_path / "hub")

    def api(token: str | None = None, library_name: str | None = None) -> FakeHub:
        hub.token = token
        return hub

    monkeypatch.setattr("huggingface_hub.HfApi", api)
    return hub


def test_what_is_pushed_is_what_is_read_again(hub: FakeHub) -> None:
    retriever = RetRetriever.from_pretrained(BY_NAME["clip_vit_l"])
    address = retriever.push_to_hub("me/ret", private=True, commit_message="First", token="secret")
    assert address == "https://hub/me/ret/commit/1"
    assert hub.token == "secret"
    assert hub.calls == [
        ("create_repo", {"private": True, "exist_ok": True}),
        ("upload_folder", {"commit_message": "First", "revision": None}),
    ]
    repository = hub.folder / "me/ret"
    assert sorted(p.name for p in repository.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    again = RetRetriever.from_pretrained(repository)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), retriever.parameters(), strict=True))
    assert 'RetRetriever.from_pretrained("me/ret")' in (repository / "README.md").read_text()


def test_a_card_that_is_there_stays_and_old_shards_go(hub: FakeHub) -> None:
    repository = hub.folder / "me/ret"
    repository.mkdir(parents=True)
    (repository / "README.md").write_text("by hand")
    (repository / "model-00001-of-00002.safetensors").write_text("old")
    (repository / "model.safetensors.index.json").write_text("old")
    RetRetriever.from_pretrained(BY_NAME["clip_vit_l"]).push_to_hub("me/ret", revision="next")
    assert sorted(p.name for p in repository.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert (repository / "README.md").read_text() == "by hand"
    assert ("create_branch", {"branch": "next"}) in hub.calls


def test_a_hub_out_of_reach_is_one_line() -> None:
    retriever = RetRetriever.from_pretrained(BY_NAME["clip_vit_l"])
    with pytest.raises(
        UserError, match=r"^me/ret: cannot be pushed to the hub \(.*offline.*\); `hf auth login`"
    ) as raised:
        retriever.push_to_hub("me/ret")
    assert "\n" not in str(raised.value)
    with pytest.raises(UserError, match=r"^not a name: cannot be pushed to the hub \("):
        retriever.push_to_hub("not a name")


def test_the_card() -> None:
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
    both = model_card(retriever, "here", results=[("Results", {**metrics, "mean/headline_recall": 0.75})])
    assert "| subset | recall@5 | recall@10 | pseudo_recall@5 |" in both
    assert "| mean | 0.5000 |  |  |\n\nheadline recall: 0.7500" in both
    assert "the published code reads it as well" in card
    assert "| recurrence.vision | [0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22] |" in card
