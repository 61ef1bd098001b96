"""Hydra with a search path of ours: the configs of a command, and folders that its user adds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import ClassVar

import hydra
from hydra.core.config_search_path import ConfigSearchPath, SearchPathElement
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin

VERSION_BASE = "1.3"


class SearchFolders(SearchPathPlugin):
    """Puts the folders of `initialized` where Hydra has its main one."""

    folders: ClassVar[Sequence[str]] = ()

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        path = search_path.get_path()
        main = next((place for place, each in enumerate(path) if each.provider == "main"), None)
        if self.folders and main is not None:
            providers = ["main", *["command-line"] * (len(self.folders) - 1)]
            pairs = zip(providers, self.folders, strict=True)
            path[main : main + 1] = [SearchPathElement(provider, folder) for provider, folder in pairs]


@contextmanager
def initialized(search_path: Sequence[str], job_name: str) -> Iterator[GlobalHydra]:
    """Initialize Hydra, and clear it afterwards.

    Args:
        search_path: folders as Hydra's URIs (`pkg://ret_lightning.conf`, `file:///home/me/conf`), the main one first. Where
            several have a config of the same name, the first one's is used.
        job_name: the default of `hydra.job.name`.
    """
    Plugins.instance().register(SearchFolders)
    SearchFolders.folders = tuple(search_path)
    try:
        with hydra.initialize_config_dir("/", job_name=job_name, version_base=VERSION_BASE):
            yield GlobalHydra.instance()
    finally:
        SearchFolders.folders = ()
