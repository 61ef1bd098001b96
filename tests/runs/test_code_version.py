"""Code version of a run, from temporary git repositories."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from ret_lightning.runs.code_version import code_version


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A checkout with a package, its configs, a readme and a remote."""
    for name in ("pkg/__init__.py", "conf/train.yaml", "README.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("a\n")
    (tmp_path / ".gitignore").write_text("runs/\n*.pyc\n")
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "remote", "add", "origin", "git@secret.example:me/it.git")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "-m", "one")
    return tmp_path / "pkg"


def test_clean_checkout(package: Path) -> None:
    commit = git(package, "rev-parse", "HEAD")
    assert code_version(package) == {"commit": commit, "dirty": False}
    (package.parent / "runs").mkdir()
    (package.parent / "runs/metrics.json").write_text("{}")
    (package / "a.pyc").write_text("")
    (package.parent / "notes.txt").write_text("outside the package")
    assert code_version(package) == {"commit": commit, "dirty": False}


@pytest.mark.parametrize("changed", ["pkg/__init__.py", "conf/train.yaml", "README.md", "pkg/new.py", "conf/new.yaml"])
def test_changed_or_new_file_is_dirty(package: Path, changed: str) -> None:
    (package.parent / changed).write_text("b\n")
    assert code_version(package)["dirty"] is True
    git(package.parent, "add", ".")
    assert code_version(package)["dirty"] is True
    git(package.parent, "commit", "--quiet", "-m", "two")
    assert code_version(package)["dirty"] is False


def test_checkout_without_configs(package: Path) -> None:
    git(package.parent, "rm", "--quiet", "-r", "conf")
    git(package.parent, "commit", "--quiet", "-m", "two")
    assert code_version(package)["dirty"] is False


def test_untracked_package_has_no_version(package: Path) -> None:
    site = package.parent / "runs/site-packages/ret_lightning"
    site.mkdir(parents=True)
    (site / "__init__.py").write_text("")
    assert code_version(site) is None


def test_no_version_without_repository_or_git(package: Path, tmp_path_factory, monkeypatch) -> None:
    alone = tmp_path_factory.mktemp("alone")
    (alone / "__init__.py").write_text("")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(alone.parent))
    assert code_version(alone) is None
    monkeypatch.setenv("PATH", os.devnull)
    assert code_version(package) is None
