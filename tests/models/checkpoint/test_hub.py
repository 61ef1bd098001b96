"""push_to_hub and the model card, against a hub that keeps what it is given."""

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
