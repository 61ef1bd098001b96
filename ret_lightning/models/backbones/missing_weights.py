"""What to say where a backbone's weights are not to be had."""

from __future__ import annotations

from pathlib import Path

from ret_lightning.errors import UserError
from ret_lightning.runtime.cache_errors import cache_error
from ret_lightning.runtime.git_lfs import refuse_lfs_pointer


def no_weights(option: str, source: str, error: BaseException, otherwise: str) -> UserError:
    """One line on weights that neither the hub's cache, nor the hub, nor a folder gave.

    Args:
        option: of the config, with its value.
        source: the hub id or folder.
        error: what a library said.
        otherwise: what may be given instead of a hub id.

    Raises:
        DataError: if a file in the folder is a Git LFS pointer.
    """
    from huggingface_hub import constants

    for pattern in ("*.json", "*.safetensors"):
        for file in sorted(Path(source).expanduser().glob(pattern)):
            refuse_lfs_pointer(file)
    if (unwritable := cache_error(error)) is not None:
        return unwritable
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rpartition("Last error: ")[2].rstrip(".")
    if source.startswith((".", "/", "~")) and not Path(source).expanduser().exists():
        return UserError(f"{option}: there is no such folder", code="weights-folder-missing", found=source)
    if source.count("/") != 1 or source.startswith((".", "/", "~")) or Path(source).is_dir():
        message = f"{option}: no weights in such a folder ({reason})"
        return UserError(message, code="weights-not-in-folder", found=source, reason=reason)
    return UserError(
        f"{option}: no weights of {source} in {constants.HF_HUB_CACHE}, nor from the hub ({reason}). Download them once where "
        f"there is a network with `hf download {source}`, or give {otherwise}, or set backbone.pretrained=null for random "
        "weights",
        code="weights-not-downloaded",
        found=source,
        reason=reason,
    )
