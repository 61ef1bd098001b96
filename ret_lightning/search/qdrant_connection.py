"""Connect to a Qdrant server, or to a folder in the local mode of the client."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ret_lightning.errors import ConfigError, UserError

if TYPE_CHECKING:
    from qdrant_client import QdrantClient

API_KEY_VARIABLE = "QDRANT_API_KEY"
MIN_SERVER_VERSION = (1, 16)  # the first with collection metadata
TIMEOUT = 60  # seconds per request
LOCAL_MODE_FILE = "meta.json"  # marks a folder of the local mode


@contextmanager
def open_client(location: str, must_exist: bool = False) -> Iterator[QdrantClient]:
    """Open a client of a Qdrant server or folder, and turn errors of Qdrant into UserErrors.

    Args:
        location: URL of a server, whose API key is read from the environment variable QDRANT_API_KEY; or a folder in which
            the client stores collections itself, suitable for some ten thousand passages.
        must_exist: whether a missing folder is an error; otherwise it is created.

    Yields:
        The client, which is closed at the end of the context.

    Raises:
        ConfigError: if qdrant-client is not installed, or the folder is missing, locked or contains other files.
        UserError: if the server is not reachable, is too old, or rejects a request.
    """
    try:
        from qdrant_client import QdrantClient
        from qdrant_client.common.client_exceptions import QdrantException
        from qdrant_client.http.exceptions import ApiException
    except ImportError:
        raise ConfigError(
            f"qdrant={location}: requires qdrant-client; run pip install 'ret_lightning[qdrant]'",
            code="qdrant-not-installed",
        ) from None
    remote = "://" in location
    if not remote:
        _check_folder(Path(location), must_exist)
    try:
        if remote:
            client = QdrantClient(
                url=location, api_key=os.environ.get(API_KEY_VARIABLE), timeout=TIMEOUT, check_compatibility=False
            )
        else:
            client = QdrantClient(path=location)
        try:
            if remote:
                _check_version(client.info().version, location)
            yield client
        finally:
            client.close()
    except (ApiException, QdrantException) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(f"qdrant={location}: {lines[0]}", code="qdrant-request-failed", place=location) from error
    except (OSError, sqlite3.Error) as error:
        if remote:
            raise
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(
            f"qdrant={location}: not readable or writable ({reason}); written points are kept",
            code="qdrant-folder-unusable",
            path=location,
            reason=reason,
        ) from error
    except RuntimeError as error:
        if "already accessed by another instance" not in str(error):
            raise
        raise ConfigError(
            f"qdrant={location}: in use by another process; wait until it has finished, or use a Qdrant server",
            code="qdrant-folder-locked",
            path=location,
        ) from error


def _check_folder(folder: Path, must_exist: bool) -> None:
    """Raise ConfigError if the folder cannot be used for the local mode of the client."""
    if folder.exists() and not folder.is_dir():
        raise ConfigError(
            f"qdrant={folder}: expected a folder or a URL http://..., got a file",
            code="qdrant-is-file",
            path=folder,
        )
    if must_exist and not folder.is_dir():
        raise ConfigError(
            f"qdrant={folder}: no such folder; the URL of a server starts with http://",
            code="qdrant-folder-missing",
            path=folder,
        )
    unexpected = sorted(path.name for path in folder.iterdir() if path.name != ".lock") if folder.is_dir() else []
    if unexpected and LOCAL_MODE_FILE not in unexpected:
        raise ConfigError(
            f"qdrant={folder}: unexpected file {unexpected[0]!r}, not a Qdrant folder; choose another folder",
            code="qdrant-folder-not-empty",
            path=folder,
            found=unexpected[0],
        )


def _check_version(version: str, location: str) -> None:
    numbers = tuple(int(part) for part in version.split(".")[:2])
    if numbers < MIN_SERVER_VERSION:
        least = ".".join(map(str, MIN_SERVER_VERSION))
        raise UserError(
            f"qdrant={location}: expected server version {least} or later, got {version}; update the server",
            code="qdrant-server-too-old",
            found=version,
            least=least,
        )
