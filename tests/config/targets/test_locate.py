"""Objects of dotted names in configs, and errors of names that do not exist."""

from __future__ import annotations

import sys
from pathlib import Path
from pkgutil import resolve_name

import pytest

from ret_lightning.config.targets.locate import UnknownTarget, is_imported, locate

PARTS = "tests.support.config_targets"


@pytest.mark.parametrize(
    ("target", "code", "found", "hint"),
    [
        (f"{PARTS}.Gat", "target-not-in-module", "Gat", "Gate?"),
        (f"{PARTS}.positionl", "target-not-in-module", "positionl", "positional?"),
        (f"{PARTS}.Made.from_siz", "target-not-in-class", "from_siz", "from_size?"),
        (f"{PARTS}.folder.deep", "target-inside-function", "deep", f"{PARTS}.folder"),
        ("tests.support.config_targts.Gate", "target-not-in-module", "config_targts", "config_targets"),
        (
            "lightning.pytorch.loggers.WanbLogger",
            "target-not-in-module",
            "WanbLogger",
            "WandbLogger? choices: CometLogger, CSVLogger, ",
        ),
        ("torch.optim.AdmW", "target-not-in-module", "AdmW", "did you mean AdamW"),
        ("no_such_package.Gate", "target-package-missing", "no_such_package", ""),
        ("a..b", "target-not-dotted", "a..b", ""),
    ],
)
def test_unknown_name_has_code_and_suggestion(target: str, code: str, found: str, hint: str) -> None:
    with pytest.raises(UnknownTarget) as raised:
        locate(target)
    assert (raised.value.code, raised.value.found) == (code, found)
    assert hint in raised.value.message


def test_syntax_error_has_its_line(tmp_path, monkeypatch) -> None:
    (tmp_path / "broken_part.py").write_text("x = 1\nclass Gate(:\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UnknownTarget) as raised:
        locate("broken_part.Gate")
    assert (raised.value.code, raised.value.line) == ("target-broken-source", 2)
    assert raised.value.path == str(tmp_path / "broken_part.py")


def test_failing_module_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
def test_object_equals_that_of_an_import(target: str) -> None:
    assert locate(target) is resolve_name(target)


def test_earlier_name_is_located() -> None:
    assert locate("ret_lightning.training.schedule.WarmupCosine").__name__ == "WarmupCosine"


def test_is_imported_does_not_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "late_part.py").write_text("class Gate:\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert not is_imported("late_part.Gate")
    assert "late_part" not in sys.modules
    locate("late_part.Gate")
    assert is_imported("late_part.Gate")
    assert not is_imported("late_part.Gat")


LAZY = "import lazy_loader\n\n__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)\n"


def test_names_of_a_lazy_package_are_located(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    assert "Gate?" in raised.value.message
