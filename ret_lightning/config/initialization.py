"""Initialization of Hydra with a custom search path: the configs of a command and folders added by the user."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import ClassVar

import hydra
from hydra.core.config_search_path import ConfigSearchPath, SearchPathElement
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin

# Hydra 1.3 defaults to the behavior of 1.1; later versions deprecate the argument.
VERSION_BASE = {"version_base": "1.3"} if hydra.__version__.startswith("1.3.") else {}


class SearchFolders(SearchPathPlugin):
    """Search path plugin that replaces Hydra's main folder by the folders of `hydra_initialized`."""

    folders: ClassVar[Sequence[str]] = ()

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        path = search_path.get_path()
        main = next((index for index, each in enumerate(path) if each.provider == "main"), None)
        if self.folders and main is not None:
            providers = ["main", *["command-line"] * (len(self.folders) - 1)]
            pairs = zip(providers, self.folders, strict=True)
            path[main : main + 1] = [SearchPathElement(provider, folder) for provider, folder in pairs]


@contextmanager
def hydra_initialized(search_path: Sequence[str], job_name: str) -> Iterator[GlobalHydra]:
    """Initialize Hydra, and clear it on exit.

    Args:
        search_path: folders as Hydra URIs (`pkg://ret_lightning.conf`, `file:///home/me/conf`), the main folder first. If
            several folders have a config of the same name, the first folder takes precedence.
        job_name: default of `hydra.job.name`.

    Yields:
        The initialized `GlobalHydra` instance.
    """
    Plugins.instance().register(SearchFolders)
    SearchFolders.folders = tuple(search_path)
    try:
        with hydra.initialize_config_dir("/", job_name=job_name, **VERSION_BASE):
            yield GlobalHydra.instance()
    finally:
        SearchFolders.folders = ()
