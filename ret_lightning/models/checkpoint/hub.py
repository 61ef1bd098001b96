"""Upload of a retriever to the hub."""

from __future__ import annotations

import tempfile
from pathlib import Path

from ret_lightning.errors import UserError
from ret_lightning.models.checkpoint.files import save_checkpoint, storable_config
from ret_lightning.models.checkpoint.model_card import model_card
from ret_lightning.models.checkpoint.preprocessors import FILES_FOLDER
from ret_lightning.models.two_towers import TwoTowers
from ret_lightning.runtime.atomic_files import write_text

CARD_FILE = "README.md"


def push(
    retriever: TwoTowers,
    repo_id: str,
    private: bool | None,
    revision: str | None,
    commit_message: str,
    token: str | bool | None,
) -> str:
    """See `RetRetriever.push_to_hub`."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError

    storable_config(retriever)  # a refusal leaves no empty repository behind
    api = HfApi(token=token, library_name="ret_lightning")
    try:
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            save_checkpoint(retriever, folder)
            # A card that is there may have been written by hand.
            if not api.file_exists(repo_id, CARD_FILE, revision=revision):
                write_text(Path(folder) / CARD_FILE, model_card(retriever, repo_id))
            commit = api.upload_folder(
                repo_id=repo_id,
                folder_path=folder,
                commit_message=commit_message,
                revision=revision,
                # Shards of an earlier upload must not stay beside the new weights.
                delete_patterns=[
                    "model.safetensors",
                    "model-*-of-*.safetensors",
                    "model.safetensors.index.json",
                    f"{FILES_FOLDER}/*",
                ],
            )
    except (OSError, HFValidationError) as error:  # what the hub's errors are
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"{repo_id}: cannot be pushed to the hub ({reason}); `hf auth login` sets the token",
            code="hub-push-failed",
            repo_id=repo_id,
            reason=reason,
        ) from error
    return str(commit)
