"""The layout of the package: unique module names, small folders and files, and tests that mirror it."""

from __future__ import annotations

import ast
import importlib
from collections import Counter
from pathlib import Path

import pytest
import yaml

from ret_lightning.config.targets.locate import locate
from ret_lightning.config.targets.target_aliases import ALIASES
from tests.support.paths import CONF, ROOT

PACKAGE = ROOT / "ret_lightning"
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py")
STUBS = sorted(PACKAGE.rglob("__init__.pyi"))

# A module in `commands/` may share its name with the package whose function it calls.
COMMANDS = {path.stem for path in (PACKAGE / "commands").glob("*.py")}
MOST_MODULES, MOST_LINES = 14, 410

# Modules without their own test file, and the test file that covers them.
TESTED_THROUGH = {
    "_version.py": "test_layout.py",  # an export of the package
    "commands/check.py": "data/checks/test_corpus_check.py",  # glue: a config, a check, an exit code
    "commands/index.py": "search/test_index_builder.py",
    "commands/report.py": "report/test_report.py",
    "commands/search.py": "search/test_answer.py",
    "models/backbones/__main__.py": "models/backbones/test_registry.py",  # glue: arguments, a table, an exit code
    "runs/results.py": "commands/test_evaluate.py",  # glue: the files that an evaluation writes
    "search/changed_rows.py": "search/test_index_builder.py",  # needs an interrupted index
    "search/hits.py": "search/test_answer.py",  # a type
    "training/callbacks/example_types.py": "training/callbacks/test_example_figure.py",  # types
}


def relative(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def test_module_names_are_unique() -> None:
    shared = Counter(path.stem for path in MODULES if path.parent.name != "commands")
    assert {name for name, count in shared.items() if count > 1} <= {"base"}
    folders = {path.name for path in PACKAGE.rglob("*") if path.is_dir()}
    assert not folders & {path.stem for path in MODULES} - COMMANDS


def test_folders_and_files_are_small() -> None:
    sizes = Counter(path.parent for path in MODULES)
    assert {relative(folder): size for folder, size in sizes.items() if size > MOST_MODULES} == {}
    lines = {relative(path): len(path.read_text(encoding="utf-8").splitlines()) for path in MODULES}
    assert {path: count for path, count in lines.items() if count > MOST_LINES} == {}


def test_public_names_are_unique() -> None:
    defined = Counter(
        node.name
        for path in MODULES
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_")
    )
    # `main` of each command; `train` and the like are private in commands.
    assert {name for name, count in defined.items() if count > 1} == {"main"}


def test_every_module_has_tests() -> None:
    def own(path: Path) -> Path:
        return ROOT / "tests" / path.relative_to(PACKAGE).with_name(f"test_{path.name}")

    assert {relative(path) for path in MODULES if not own(path).exists()} == TESTED_THROUGH.keys()
    assert {file for file in TESTED_THROUGH.values() if not (ROOT / "tests" / file).exists()} == set()


@pytest.mark.parametrize("stub", STUBS, ids=lambda path: relative(path.parent))
def test_exported_names_can_be_imported(stub: Path) -> None:
    package = importlib.import_module(".".join(stub.parent.relative_to(ROOT).parts))
    names = [alias.asname for node in ast.parse(stub.read_text()).body for alias in node.names]
    assert sorted(package.__all__) == sorted(names)
    for name in names:
        assert getattr(package, name) is not None


def targets(node: object) -> list[str]:
    """Return every `_target_` in the content of a YAML file."""
    if isinstance(node, list):
        return [target for item in node for target in targets(item)]
    if not isinstance(node, dict):
        return []
    own = [node["_target_"]] if "_target_" in node else []
    return own + [target for value in node.values() for target in targets(value)]


@pytest.mark.parametrize("file", sorted(CONF.rglob("*.yaml")), ids=lambda path: path.relative_to(CONF).as_posix())
def test_configs_name_packages(file: Path) -> None:
    for target in targets(yaml.safe_load(file.read_text(encoding="utf-8"))):
        if target.startswith("ret_lightning."):
            folder = ROOT.joinpath(*target.split(".")[:-1])
            assert folder.is_dir(), f"{target} names a module"


@pytest.mark.parametrize("old", sorted(ALIASES))
def test_target_aliases_resolve(old: str) -> None:
    assert callable(locate(old))
    package, _, name = ALIASES[old].rpartition(".")
    assert getattr(importlib.import_module(package), name).__name__ == name
