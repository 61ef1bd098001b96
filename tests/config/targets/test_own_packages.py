"""Import of the packages of the user, and no other packages."""

from __future__ import annotations

import sys
from pathlib import Path
from uuid import uuid4

import pytest

from ret_lightning.config.targets.allowed_targets import OWN_PACKAGES
from ret_lightning.config.targets.own_packages import import_own_packages


def test_only_packages_of_the_user_are_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    allowed, other, broken = (f"tests_{uuid4().hex}" for _ in range(3))
    for name in (allowed, other):
        (tmp_path / f"{name}.py").write_text("")
    (tmp_path / f"{broken}.py").write_text("raise RuntimeError('no licence')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv(OWN_PACKAGES, f"{allowed},{broken}")
    reported = import_own_packages([f"{other}", allowed])
    assert allowed in sys.modules
    assert other not in sys.modules
    assert f"import of {broken} failed (RuntimeError: no licence)" in reported
    assert f"import {other} first, or set {OWN_PACKAGES}={allowed},{broken},{other}" in reported
