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
    """Upload a checkpoint to a hub repository, with a model card if the repository has none.

    Args:
        retriever: Retriever to upload.
        repo_id: Repository, `owner/name`; created if needed.
        private: Visibility of a new repository; None uses the default of the owner.
        revision: Branch to push to; None uses the main branch.
        commit_message: Message of the commit.
        token: Access token of the hub; None uses the token of `hf auth login`.

    Returns:
        The URL of the commit.

    Raises:
        UserError: If the hub cannot be reached or refuses the upload.
        ConfigError: If a part of the model cannot be stored.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError

    storable_config(retriever)  # checked before the repository is created
    api = HfApi(token=token, library_name="ret_lightning")
    try:
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            save_checkpoint(retriever, folder)
            # An existing card may have been written manually.
            if not api.file_exists(repo_id, CARD_FILE, revision=revision):
                write_text(Path(folder) / CARD_FILE, model_card(retriever, repo_id))
            commit = api.upload_folder(
                repo_id=repo_id,
                folder_path=folder,
                commit_message=commit_message,
                revision=revision,
                # Shards of an earlier upload must not remain next to the new weights.
                delete_patterns=[
                    "model.safetensors",
                    "model-*-of-*.safetensors",
                    "model.safetensors.index.json",
                    f"{FILES_FOLDER}/*",
                ],
            )
    except (OSError, HFValidationError) as error:  # the base classes of huggingface_hub's errors
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"{repo_id}: the upload to the hub failed ({reason}); set a token with `hf auth login`",
            code="hub-push-failed",
            repo_id=repo_id,
            reason=reason,
        ) from error
    return str(commit)
