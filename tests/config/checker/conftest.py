"""Fixture that checks a small folder of configs."""

from __future__ import annotations

import hydra
import pytest

from ret_lightning.config.checker.config_check import CheckResult, check
from ret_lightning.config.targets.allowed_targets import OWN_PACKAGES
from tests.support.config_folder import line_of, write
from tests.support.config_targets import Schema


@pytest.fixture
def check_folder(tmp_path, monkeypatch):
    """Return `check_folder("seed=3", files={...})`, which returns the lines of the problems without their codes.

    `check_folder.result(...)` has the same arguments and returns the `CheckResult`.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(OWN_PACKAGES, "tests")
    hydra.version.setbase("1.3")

    def run(*overrides: str, files: dict[str, str | bytes] | None = None, **options: bool) -> list[str]:
        return [line_of(problem) for problem in result(*overrides, files=files, **options).problems]

    def result(*overrides: str, files: dict[str, str | bytes] | None = None, **options: bool) -> CheckResult:
        folder = write(tmp_path / "conf", files)
        return check([f"file://{folder}"], "train", overrides, Schema, **options)

    run.result = result
    return run
