"""The check of a small folder of configs."""

from __future__ import annotations

import hydra
import pytest

from ret_lightning.config.checker.config_check import Verdict, check
from ret_lightning.config.targets.allowed_targets import OWN_PACKAGES
from tests.support.config_folder import line_of, write
from tests.support.config_targets import Schema


@pytest.fixture
def check_folder(tmp_path, monkeypatch):
    """`check_folder("seed=3", files={...})` checks a folder of configs and returns the lines of the problems, without codes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(OWN_PACKAGES, "tests")
    hydra.version.setbase("1.3")

    def run(*overrides: str, files: dict[str, str | bytes] | None = None, **options: bool) -> list[str]:
        return [line_of(problem) for problem in verdict(*overrides, files=files, **options).problems]

    def verdict(*overrides: str, files: dict[str, str | bytes] | None = None, **options: bool) -> Verdict:
        folder = write(tmp_path / "conf", files)
        return check([f"file://{folder}"], "train", overrides, Schema, **options)

    run.verdict = verdict
    return run
