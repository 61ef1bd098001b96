"""Initialization of Hydra with a search path, and its state afterwards."""

from __future__ import annotations

import ast
from pathlib import Path

import hydra
import pytest
from hydra.core.global_hydra import GlobalHydra

from ret_lightning.config.initialization import hydra_initialized
from tests.support.paths import ROOT

PACKAGE = ROOT / "ret_lightning"


def test_first_folder_takes_precedence(tmp_path: Path) -> None:
    for folder, width in (("first", 1), ("second", 2)):
        (tmp_path / folder / "model").mkdir(parents=True)
        (tmp_path / folder / "model" / f"{folder}.yaml").write_text(f"width: {width}\n")
        (tmp_path / folder / "train.yaml").write_text(f"seed: {width}\n")
    path = [f"file://{tmp_path / folder}" for folder in ("first", "second")]
    with hydra_initialized(path, "lab"):
        config = hydra.compose("train", ["+model=second"], return_hydra_config=True)
    assert (config.seed, config.model.width, config.hydra.job.name) == (1, 2, "lab")
    assert [source.provider for source in config.hydra.runtime.config_sources if source.provider != "hydra"] == [
        "main", "command-line", "schema",
    ]  # fmt: skip


def test_package_is_searched(tmp_path: Path) -> None:
    with hydra_initialized(["pkg://ret_lightning.conf"], "lab") as app:
        assert "lstm" in app.config_loader().get_group_options("gate")


@pytest.mark.parametrize("module", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_no_private_module_of_hydra_is_imported(module: Path) -> None:
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
        assert [name for name in names if name.startswith(("hydra._", "omegaconf._"))] == []


def test_hydra_is_cleared_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), hydra_initialized([f"file://{tmp_path}"], "lab"):
        raise ZeroDivisionError
    assert not GlobalHydra.instance().is_initialized()
    (tmp_path / "train.yaml").write_text("seed: 1\n")
    with hydra.initialize_config_dir(str(tmp_path), version_base="1.3"):
        assert hydra.compose("train").seed == 1
