"""Dotted names of configs: what they stand for, and the errors of those that do not exist."""

from __future__ import annotations

import sys
from pathlib import Path
from pkgutil import resolve_name

import pytest

from ret_lightning.config.targets.locate import UnknownTarget, is_imported, locate

PARTS = "tests.support.config_targets"


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (f"{PARTS}.Gat", "no class Gat in tests.support.config_targets; did you mean Gate"),
        (
            f"{PARTS}.positionl",
            "no function positionl in tests.support.config_targets; did you mean positional? choices: ",
        ),
        (
            f"{PARTS}.Made.from_siz",
            "no from_siz in the class tests.support.config_targets.Made; did you mean from_size? choices: ",
        ),
        (f"{PARTS}.folder.deep", "folder in tests.support.config_targets is a function and has nothing inside"),
        (
            "tests.support.config_targts.Gate",
            "no module or function config_targts in tests.support; did you mean config_targets",
        ),
        ("lightning.pytorch.loggers.WanbLogger", "did you mean WandbLogger? choices: CometLogger, CSVLogger, "),
        ("torch.optim.AdmW", "no class AdmW in torch.optim; did you mean AdamW"),
        ("no_such_package.Gate", "no package no_such_package is installed"),
        ("a..b", "'a..b' is not a dotted name"),
    ],
)
def test_a_name_that_does_not_exist_is_said_with_the_nearest(target: str, message: str) -> None:
    with pytest.raises(UnknownTarget) as raised:
        locate(target)
    assert message in str(raised.value)


def test_broken_python_is_said_with_its_line(tmp_path, monkeypatch) -> None:
    (tmp_path / "broken_part.py").write_text("x = 1\nclass Gate(:\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UnknownTarget, match=r"broken_part\.py:2 is broken Python"):
        locate("broken_part.Gate")


def test_module_that_fails_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "failing_part.py").write_text("import no_such_package\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UnknownTarget) as raised:
        locate("failing_part.Gate")
    assert (raised.value.code, raised.value.found) == ("target-module-failed", "failing_part")
    assert "no_such_package" in raised.value.reason


@pytest.mark.parametrize(
    "target",
    [
        f"{PARTS}.Gate",
        f"{PARTS}.Derived.__init__",
        "tests.support.reexported_targets.Door",  # from x import y as z
        "tests.support.reexported_targets.Alias",  # assigned
        "tests.support.reexported_targets.Derived",  # from x import *
    ],
)
def test_object_is_the_one_that_an_import_finds(target: str) -> None:
    assert locate(target) is resolve_name(target)


def test_earlier_name_is_found_today() -> None:
    assert locate("ret_lightning.training.schedule.WarmupCosine").__name__ == "WarmupCosine"


def test_only_what_is_imported_counts_as_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "late_part.py").write_text("class Gate:\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert not is_imported("late_part.Gate")
    assert "late_part" not in sys.modules
    locate("late_part.Gate")
    assert is_imported("late_part.Gate")
    assert not is_imported("late_part.Gat")


LAZY = "import lazy_loader\n\n__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)\n"


def test_stub_of_a_lazy_package_lists_its_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "lazy_package"
    (package / "inner").mkdir(parents=True)
    (package / "__init__.py").write_text(LAZY)
    (package / "__init__.pyi").write_text("from .inner import Gate as Gate\nfrom .inner.parts import make as make\n")
    (package / "inner" / "__init__.py").write_text(LAZY)
    (package / "inner" / "__init__.pyi").write_text("from .parts import Gate as Gate\n")
    (package / "inner" / "parts.py").write_text("class Gate:\n    pass\n\n\ndef make():\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert locate("lazy_package.Gate").__module__ == "lazy_package.inner.parts"
    assert locate("lazy_package.make").__name__ == "make"
    assert locate("lazy_package.inner").__name__ == "lazy_package.inner"
    with pytest.raises(UnknownTarget) as raised:
        locate("lazy_package.Gat")
    assert (raised.value.code, raised.value.found) == ("target-not-in-module", "Gat")
    assert "did you mean Gate?" in str(raised.value)
