"""The error for backbone weights that cannot be loaded."""

from __future__ import annotations

from pathlib import Path

from ret_lightning.errors import UserError
from ret_lightning.runtime.cache_errors import cache_error
from ret_lightning.runtime.git_lfs import refuse_lfs_pointer


def no_weights(option: str, source: str, error: BaseException, otherwise: str) -> UserError:
    """Return the error for weights that are neither in the cache, nor on the hub, nor in a folder.

    Args:
        option: Config option with its value.
        source: Hub id or folder.
        error: Exception of the library.
        otherwise: What the option accepts instead of a hub id.

    Returns:
        The error to raise.

    Raises:
        DataError: If a file in the folder is a Git LFS pointer.
    """
    from huggingface_hub import constants

    for pattern in ("*.json", "*.safetensors"):
        for file in sorted(Path(source).expanduser().glob(pattern)):
            refuse_lfs_pointer(file)
    if (unwritable := cache_error(error)) is not None:
        return unwritable
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rpartition("Last error: ")[2].rstrip(".")
    if source.startswith((".", "/", "~")) and not Path(source).expanduser().exists():
        return UserError(f"{option}: the folder does not exist", code="weights-folder-missing", found=source)
    if source.count("/") != 1 or source.startswith((".", "/", "~")) or Path(source).is_dir():
        message = f"{option}: the folder contains no weights ({reason})"
        return UserError(message, code="weights-not-in-folder", found=source, reason=reason)
    return UserError(
        f"{option}: the weights of {source} are not in {constants.HF_HUB_CACHE} and cannot be downloaded ({reason}); run "
        f"`hf download {source}` on a machine with a network, use {otherwise}, or set backbone.pretrained=null for random "
        "weights",
        code="weights-not-downloaded",
        found=source,
        reason=reason,
    )
