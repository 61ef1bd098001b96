"""Upload to the hub, with a fake hub that stores repositories in folders."""

from __future__ import annotations

import shutil
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ret_lightning import RetRetriever
from ret_lightning.errors import UserError
from tests.support.own_preprocessors import WORDS, WordTokenizer
from tests.support.tiny_models import BY_NAME


class FakeHub:
    """The methods of `huggingface_hub.HfApi` that `push` calls, with repositories stored in folders."""

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
        files = [file for file in (self.folder / repo_id).rglob("*") if file.is_file()]
        for file in files:
            if any(fnmatch(str(file.relative_to(self.folder / repo_id)), pattern) for pattern in delete_patterns):
                file.unlink()
        shutil.copytree(folder_path, self.folder / repo_id, dirs_exist_ok=True)
        return f"https://hub/{repo_id}/commit/1"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    hub = FakeHub(tmp_path / "hub")

    def api(token: str | None = None, library_name: str | None = None) -> FakeHub:
        hub.token = token
        return hub

    monkeypatch.setattr("huggingface_hub.HfApi", api)
    return hub


def test_pushed_checkpoint_can_be_loaded(hub: FakeHub) -> None:
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


def test_push_keeps_card_and_removes_old_shards(hub: FakeHub) -> None:
    repository = hub.folder / "me/ret"
    repository.mkdir(parents=True)
    (repository / "README.md").write_text("manual")
    (repository / "model-00001-of-00002.safetensors").write_text("old")
    (repository / "model.safetensors.index.json").write_text("old")
    RetRetriever.from_pretrained(BY_NAME["clip_vit_l"]).push_to_hub("me/ret", revision="next")
    assert sorted(p.name for p in repository.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert (repository / "README.md").read_text() == "manual"
    assert ("create_branch", {"branch": "next"}) in hub.calls


def test_unreachable_hub_is_reported_in_one_line() -> None:
    retriever = RetRetriever.from_pretrained(BY_NAME["clip_vit_l"])
    for repo_id in ("me/ret", "not a name"):
        with pytest.raises(UserError) as error:
            retriever.push_to_hub(repo_id)
        assert (error.value.code, error.value.repo_id) == ("hub-push-failed", repo_id)
        assert error.value.message.startswith(f"{repo_id}: ")
        assert "\n" not in str(error.value)
        if repo_id == "me/ret":
            assert "offline" in error.value.reason


def test_files_of_tokenizers_are_pushed(hub: FakeHub, tmp_path: Path) -> None:
    retriever = RetRetriever.from_pretrained(BY_NAME["clip_vit_l"])
    folder = hub.folder / "me/ret"
    for words in (WORDS, WORDS + "blue\n"):  # the second upload replaces the file of the first
        (tmp_path / "words.txt").write_text(words)
        for tower in (retriever.query_tower, retriever.passage_tower):
            tower.tokenizer = WordTokenizer(tmp_path / "words.txt")
        retriever.push_to_hub("me/ret")
        assert [file.read_text() for file in folder.glob("preprocessors/*/*")] == [words]
        assert RetRetriever.from_pretrained(folder).query_tower.tokenizer.words.decode() == words
