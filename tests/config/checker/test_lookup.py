"""What dotted names stand for, against what importing them finds."""

from __future__ import annotations

import inspect
from pathlib import Path
from pkgutil import resolve_name

import pytest

from ret_lightning.config.checker.lookup import (
    Class,
    Expression,
    Function,
    Module,
    Outside,
    UnknownTarget,
    find_module,
    linearize,
    locate,
)
from ret_lightning.config.checker.signatures import signature_of

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
        signature_of(target)
    assert message in str(raised.value)


def test_broken_python_is_said_with_its_line(tmp_path, monkeypatch) -> None:
    (tmp_path / "broken_part.py").write_text("x = 1\nclass Gate(:\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UnknownTarget, match=r"broken_part\.py:2 is broken Python"):
        signature_of("broken_part.Gate")


@pytest.mark.parametrize(
    "target",
    [
        f"{PARTS}.Gate",
        "tests.support.reexported_targets.Door",  # from x import y as z
        "tests.support.reexported_targets.Alias",  # assigned
        "tests.support.reexported_targets.Derived",  # from x import *
        "ret_lightning.RetRetriever",
        "torch.optim.AdamW",
        "lightning.pytorch.callbacks.ModelCheckpoint",
    ],
)
def test_class_is_the_one_that_an_import_finds(target: str) -> None:
    found, real = locate(target), resolve_name(target)
    assert isinstance(found, Class)
    assert (found.module.name, found.node.name) == (real.__module__, real.__qualname__)
    assert Path(found.module.path).samefile(inspect.getsourcefile(real))


def test_function_and_method_are_found_with_their_owner() -> None:
    function = locate(f"{PARTS}.positional")
    assert isinstance(function, Function)
    assert (function.node.name, function.owner) == ("positional", None)
    method = locate(f"{PARTS}.Derived.__init__")
    assert isinstance(method, Function)
    assert method.owner.node.name == resolve_name(f"{PARTS}.Derived").__init__.__qualname__.partition(".")[0] == "Base"


def test_module_expression_and_library_names() -> None:
    assert isinstance(locate(PARTS), Module)
    assert isinstance(locate(f"{PARTS}.Kind"), Expression)
    assert isinstance(locate("tests.support.reexported_targets.Model"), Expression)  # bound to itself
    assert locate("os.path.join") == Outside("os.path.join")
    assert locate(f"{PARTS}.getcwd") == Outside("os.getcwd")
    assert find_module("tests.support.nowhere") is None


@pytest.mark.parametrize("name", ["Derived", "Diamond", "RecordChild", "Left"])
def test_bases_are_in_the_order_of_python(name: str) -> None:
    found = [
        entry.node.name if isinstance(entry, Class) else entry.name for entry in linearize(locate(f"{PARTS}.{name}"))
    ]
    order = [class_.__name__ for class_ in resolve_name(f"{PARTS}.{name}").__mro__]
    assert [entry for entry in found if entry != "typing.Generic"] == [
        entry for entry in order if entry not in ("Generic", "object")
    ]


LAZY = "import lazy_loader\n\n__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)\n"


def test_stub_of_a_lazy_package_lists_its_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "lazy_package"
    (package / "inner").mkdir(parents=True)
    (package / "__init__.py").write_text(LAZY)
    (package / "__init__.pyi").write_text("from .inner import Gate as Gate\nfrom .inner.parts import make as build\n")
    (package / "inner" / "__init__.py").write_text(LAZY)
    (package / "inner" / "__init__.pyi").write_text("from .parts import Gate as Gate\n")
    (package / "inner" / "parts.py").write_text("class Gate:\n    pass\n\n\ndef make():\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    gate, build = locate("lazy_package.Gate"), locate("lazy_package.build")
    assert isinstance(gate, Class)
    assert (gate.module.name, gate.node.name) == ("lazy_package.inner.parts", "Gate")
    assert isinstance(build, Function)
    assert build.node.name == "make"
    assert isinstance(locate("lazy_package.inner"), Module)


def test_stub_of_another_package_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "typed_package"
    package.mkdir()
    (package / "__init__.py").write_text("class Gate:\n    pass\n")
    (package / "__init__.pyi").write_text("class Gate: ...\nclass Hidden: ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert isinstance(locate("typed_package.Gate"), Class)
    with pytest.raises(UnknownTarget) as raised:
        locate("typed_package.Hidden")
    assert raised.value.code == "target-not-in-module"
