"""Tests of the cache of the glyphs corpus: generated once by any number of processes, and repaired after damage."""

from __future__ import annotations

import logging
import os
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from ret_lightning.data.glyphs import corpus
from ret_lightning.data.glyphs.corpus import default_cache_dir, prepare_glyphs
from ret_lightning.data.glyphs.manifest import digest
from ret_lightning.errors import DataError
from ret_lightning.runtime import progress
from tests.support.damage import rewrite

JSONL = "jsonl/m2kr/val/name_val.jsonl"
PNG = "images/m2kr/images/DejaVuSans/U+0041.png"


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Generate a corpus that no test modifies."""
    return prepare_glyphs(tmp_path_factory.mktemp("pristine"), workers=1, progress=False)


@pytest.fixture(scope="module")
def copies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("copies")


@pytest.fixture
def root(pristine: Path, copies: Path) -> Path:
    """Return a complete copy of the corpus in its own cache folder; it is copied again only if a test has damaged it."""
    root = copies / pristine.name
    if not root.is_dir() or _contents(root) != _contents(pristine) or _siblings(root):
        shutil.rmtree(copies)
        shutil.copytree(pristine, root)
    return root


def _contents(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def _siblings(root: Path) -> set[str]:
    """Return the names of the files next to the corpus, except its lock."""
    return {path.name for path in root.parent.iterdir()} - {root.name, f"{root.name}.lock"}


def _python(code: str, folder: Path, *arguments: object, **more: object) -> subprocess.Popen[str]:
    """Start a process that runs `code` as a script, so that spawned workers can import it."""
    script = folder / "script.py"
    script.write_text(textwrap.dedent(code), encoding="utf-8")
    command = [sys.executable, str(script), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more)


def _output(process: subprocess.Popen[str]) -> tuple[str, str]:
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return out, err


def test_bytes_do_not_depend_on_number_of_workers(pristine: Path, tmp_path: Path, monkeypatch):
    logged = []
    monkeypatch.setattr(progress, "LOG_INTERVAL", 0.0)
    monkeypatch.setattr(progress.log, "info", lambda text, *arguments: logged.append(text % arguments))
    made = prepare_glyphs(tmp_path, workers=2)
    assert made.name == pristine.name
    assert _contents(made) == _contents(pristine)
    assert _siblings(made) == set()
    assert all(line.startswith("drawing glyphs: ") for line in logged)
    drawn, total = re.match(r"drawing glyphs: (\d+) of (\d+), ", logged[-1]).groups()
    assert drawn == total


def test_complete_cache_is_reused(root: Path, monkeypatch, caplog, capfd):
    def fail(*_, **__):
        raise AssertionError("the corpus was generated again or locked")

    monkeypatch.setattr(corpus, "_generate", fail)
    monkeypatch.setattr(corpus, "FileLock", fail)
    assert prepare_glyphs(root.parent) == root
    assert prepare_glyphs(str(root.parent)) == root
    assert caplog.records == []
    assert capfd.readouterr().err == ""


def _delete(path: str) -> Callable[[Path], None]:
    return lambda root: (root / path).unlink()


def _replace_by_a_file(root: Path) -> None:
    shutil.rmtree(root)
    root.write_text("not a folder")


def _same_length(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (_delete(JSONL), f"{JSONL} is missing"),
        (rewrite(PNG, _same_length), f"{PNG} was modified"),
        (_delete("manifest.json"), "manifest.json is missing"),
        (rewrite("manifest.json", lambda old: old[: len(old) // 2]), "manifest.json is not a valid manifest"),
        (_replace_by_a_file, "manifest.json cannot be read (Not a directory)"),
    ],
    ids=["deleted rows", "modified byte", "no manifest", "truncated manifest", "no folder"],
)
def test_damage_is_logged_and_repaired(damage, expected: str, root: Path, pristine: Path, caplog):
    damage(root)
    assert prepare_glyphs(root.parent, workers=1, progress=False) == root
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage().startswith(f"glyphs corpus {root}: {expected}")
    assert record.getMessage().endswith("; generating it again")
    assert _contents(root) == _contents(pristine)
    assert _siblings(root) == set()


def test_files_of_killed_process_are_removed(pristine: Path, tmp_path: Path):
    partial = tmp_path / f".{pristine.name}.partial"
    (partial / "images/m2kr/images/DejaVuSans").mkdir(parents=True)
    (partial / "images/m2kr/images/DejaVuSans/U+FFFF.png").write_bytes(b"torn")
    (tmp_path / f".{pristine.name}.stale").mkdir()
    made = prepare_glyphs(tmp_path, workers=1, progress=False)
    assert _contents(made) == _contents(pristine)
    assert _siblings(made) == set()


def _fail(*_: object) -> None:
    raise ZeroDivisionError


def test_failure_leaves_no_files(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(corpus.subsets, "training_rows", _fail)  # called after the images are drawn
    with pytest.raises(ZeroDivisionError):
        prepare_glyphs(tmp_path, workers=1, progress=False)
    assert {path.suffix for path in tmp_path.iterdir()} <= {".lock"}


def test_failure_keeps_the_damaged_corpus(root: Path, monkeypatch):
    (root / PNG).unlink()
    before = _contents(root)
    monkeypatch.setattr(corpus, "write_corpus_manifest", _fail)  # called last
    with pytest.raises(ZeroDivisionError):
        prepare_glyphs(root.parent, workers=1, progress=False)
    assert _contents(root) == before
    assert _siblings(root) == set()


def test_concurrent_processes_generate_one_corpus(pristine: Path, tmp_path: Path):
    code = """
        import logging
        import sys
        from ret_lightning.runtime import progress
        from ret_lightning.data.glyphs.corpus import prepare_glyphs
        if __name__ == "__main__":
            logging.basicConfig(level=logging.INFO)
            progress.LOG_INTERVAL = 0.0
            print("ready", flush=True)
            sys.stdin.readline()
            print(prepare_glyphs(sys.argv[1], workers=1))
    """
    cache = tmp_path / "cache"
    processes = [_python(code, tmp_path, cache, stdin=subprocess.PIPE) for _ in range(3)]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    outputs = [_output(process) for process in processes]
    assert {out.strip() for out, _ in outputs} == {str(cache / pristine.name)}
    assert sorted("drawing glyphs" in err for _, err in outputs) == [False, False, True]
    assert _contents(cache / pristine.name) == _contents(pristine)
    assert _siblings(cache / pristine.name) == set()


def test_script_without_main_guard_works(pristine: Path, tmp_path: Path):
    """The workers import the script and call again; they must not wait for the lock of their parent or start workers."""
    code = """
        import sys
        from ret_lightning.data.glyphs.corpus import prepare_glyphs
        print(prepare_glyphs(sys.argv[1], workers=2))
    """
    out, err = _output(_python(code, tmp_path, tmp_path / "cache"))
    assert out.strip() == str(tmp_path / "cache" / pristine.name)
    assert "needs `if __name__ == '__main__':`" in err
    assert _contents(tmp_path / "cache" / pristine.name) == _contents(pristine)


def test_daemonic_process_draws_in_process(pristine: Path, tmp_path: Path):
    """A daemonic process, such as a data loader worker, cannot have children."""
    code = """
        import multiprocessing, sys
        from ret_lightning.data.glyphs.corpus import prepare_glyphs
        if __name__ == "__main__":
            context = multiprocessing.get_context("spawn")
            process = context.Process(target=prepare_glyphs, args=(sys.argv[1],), kwargs={"workers": 2}, daemon=True)
            process.start()
            process.join()
            sys.exit(process.exitcode)
    """
    _output(_python(code, tmp_path, tmp_path / "cache"))
    assert _contents(tmp_path / "cache" / pristine.name) == _contents(pristine)


def test_folder_name_depends_on_settings(monkeypatch):
    def name(image_size: int = 40, seed: int = 0) -> str:
        return digest(corpus._settings(image_size, seed))

    first = name()
    assert name() == first
    assert len({first, name(image_size=32), name(seed=1)}) == 3
    for owner, attribute, value in (
        (corpus, "GENERATOR_VERSION", 999),
        (corpus, "CHARACTERS", corpus.CHARACTERS[:-1]),
        (corpus, "EM", 0.5),
        (corpus, "font_file", lambda font: Path(__file__)),
        (corpus.unicodedata, "unidata_version", "1.0"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(owner, attribute, value)
            assert name() != first, attribute
    for module, attribute in (("PIL", "PIL.__version__"), ("PIL", "PIL.features.version")):
        with monkeypatch.context() as patch:
            patch.setattr(attribute, "1.0" if attribute.endswith("__") else lambda _: "1.0")
            assert name() != first, (module, attribute)


def test_default_cache_follows_xdg(tmp_path: Path, monkeypatch, pristine: Path):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_cache_dir() == tmp_path / "xdg" / "ret_lightning"
    shutil.copytree(pristine, default_cache_dir() / pristine.name)
    assert prepare_glyphs() == tmp_path / "xdg" / "ret_lightning" / pristine.name
    for value in ("", "relative/path"):
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        assert default_cache_dir() == tmp_path / "home" / ".cache" / "ret_lightning"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_cache_dir() == tmp_path / "home" / ".cache" / "ret_lightning"


def test_cache_folder_is_returned_as_absolute_path(tmp_path: Path, monkeypatch, pristine: Path):
    shutil.copytree(pristine, tmp_path / "here" / pristine.name)
    monkeypatch.chdir(tmp_path)
    assert prepare_glyphs("here") == tmp_path / "here" / pristine.name
    monkeypatch.setenv("HOME", str(tmp_path))
    assert prepare_glyphs("~/here") == tmp_path / "here" / pristine.name


def test_unwritable_cache_is_an_error(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError) as caught:
        prepare_glyphs(tmp_path / "file" / "cache")
    assert caught.value.code == "glyph-cache-not-written"
    assert caught.value.path == tmp_path / "file" / "cache"
    assert "\n" not in str(caught.value)


def test_import_is_light():
    heavy = ("torch", "numpy", "PIL", "matplotlib", "fontTools", "lightning", "transformers", "datasets")
    code = f"import ret_lightning.data.glyphs.corpus, sys; print([name for name in {heavy!r} if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=dict(os.environ))
    assert run.stdout.strip() == "[]"


def test_unwritable_cache_error_names_option_and_variable(blocked: Path) -> None:
    with pytest.raises(DataError) as caught:
        prepare_glyphs(cache_dir=blocked)
    assert caught.value.code == "glyph-cache-not-written"
    assert "data.cache_dir" in caught.value.message
    assert "XDG_CACHE_HOME" in caught.value.message
