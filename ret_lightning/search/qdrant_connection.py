"""A client of a Qdrant server, or of a folder in the client's local mode."""

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

KEY_VARIABLE = "QDRANT_API_KEY"
OLDEST_SERVER = (1, 16)  # the first with metadata of a collection; multi-vectors are there from 1.10 on
TIMEOUT = 60  # seconds a request
OF_LOCAL_MODE = "meta.json"  # the file that makes a folder one of the client's local mode


@contextmanager
def connected(place: str, must_exist: bool = False) -> Iterator[QdrantClient]:
    """A client of a Qdrant server or of a folder; what Qdrant complains of becomes a UserError.

    Args:
        place: a URL, whose key is in the environment variable QDRANT_API_KEY, if it needs one; or a folder, in which the
            client keeps collections by itself, for up to some ten thousand passages.
        must_exist: a folder that is not there is an error; otherwise it is made.

    Raises:
        ConfigError: if qdrant-client is not installed, or there is no such folder.
        UserError: if the server cannot be reached, is too old, or refuses something.
    """
    try:
        from qdrant_client import QdrantClient
        from qdrant_client.common.client_exceptions import QdrantException
        from qdrant_client.http.exceptions import ApiException
    except ImportError:
        raise ConfigError(
            f"qdrant={place}: needs the package qdrant-client: pip install 'ret_lightning[qdrant]'",
            code="qdrant-not-installed",
        ) from None
    remote = "://" in place
    if not remote:
        _check_folder(Path(place), must_exist)
    try:
        if remote:
            client = QdrantClient(
                url=place, api_key=os.environ.get(KEY_VARIABLE), timeout=TIMEOUT, check_compatibility=False
            )
        else:
            client = QdrantClient(path=place)
        try:
            if remote:
                _check_version(client.info().version, place)
            yield client
        finally:
            client.close()
    except (ApiException, QdrantException) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(f"qdrant={place}: {lines[0]}", code="qdrant-request-failed", place=place) from error
    except (OSError, sqlite3.Error) as error:
        if remote:
            raise
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(
            f"qdrant={place}: cannot be written or read ({reason}); what was written is kept",
            code="qdrant-folder-unusable",
            path=place,
            reason=reason,
        ) from error
    except RuntimeError as error:
        if "already accessed by another instance" not in str(error):
            raise
        raise ConfigError(
            f"qdrant={place}: another process has the folder open; a server takes many",
            code="qdrant-folder-locked",
            path=place,
        ) from error


def _check_folder(folder: Path, must_exist: bool) -> None:
    """Raises ConfigError where the client's local mode cannot have its place."""
    if folder.exists() and not folder.is_dir():
        raise ConfigError(
            f"qdrant={folder}: is a file; name a folder, or the URL of a server, http://...",
            code="qdrant-is-file",
            path=folder,
        )
    if must_exist and not folder.is_dir():
        raise ConfigError(
            f"qdrant={folder}: no such folder (the URL of a server would begin with http://)",
            code="qdrant-folder-missing",
            path=folder,
        )
    strange = sorted(path.name for path in folder.iterdir() if path.name != ".lock") if folder.is_dir() else []
    if strange and OF_LOCAL_MODE not in strange:
        raise ConfigError(
            f"qdrant={folder}: holds {strange[0]!r}, and nothing of Qdrant; choose another folder",
            code="qdrant-folder-not-empty",
            path=folder,
            found=strange[0],
        )


def _check_version(version: str, place: str) -> None:
    numbers = tuple(int(part) for part in version.split(".")[:2])
    if numbers < OLDEST_SERVER:
        wanted = ".".join(map(str, OLDEST_SERVER))
        raise UserError(
            f"qdrant={place}: the server is version {version}; {wanted} or later is needed",
            code="qdrant-server-too-old",
            found=version,
            least=wanted,
        )
