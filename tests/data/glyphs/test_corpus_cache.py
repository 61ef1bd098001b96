"""The cache of the glyphs corpus: made once, the same by any number of processes, and never trusted when damaged."""

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
    """A corpus that no test writes to."""
    return prepare_glyphs(tmp_path_factory.mktemp("pristine"), workers=1, progress=False)


@pytest.fixture(scope="module")
def copies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("copies")


@pytest.fixture
def root(pristine: Path, copies: Path) -> Path:
    """A whole copy of the corpus, alone in a cache folder of its own; its name does not depend on where it is.

    Copied anew only after a test that leaves it damaged: thousands of files take time.
    """
    root = copies / pristine.name
    if not root.is_dir() or _contents(root) != _contents(pristine) or _beside(root):
        shutil.rmtree(copies)
        shutil.copytree(pristine, root)
    return root


def _contents(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def _beside(root: Path) -> set[str]:
    """What the cache holds next to the corpus, but for its lock."""
    return {path.name for path in root.parent.iterdir()} - {root.name, f"{root.name}.lock"}


def _python(code: str, folder: Path, *arguments: object, **more: object) -> subprocess.Popen[str]:
    """A process that runs `code` as a script of its own, so that spawned workers can import it."""
    script = folder / "script.py"
    script.write_text(textwrap.dedent(code), encoding="utf-8")
    command = [sys.executable, str(script), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more)


def _output(process: subprocess.Popen[str]) -> tuple[str, str]:
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return out, err


def test_any_number_of_workers_makes_the_same_bytes(pristine: Path, tmp_path: Path, monkeypatch):
    told = []
    monkeypatch.setattr(progress, "SECONDS", 0.0)
    monkeypatch.setattr(progress.log, "info", lambda text, *arguments: told.append(text % arguments))
    made = prepare_glyphs(tmp_path, workers=2)
    assert made.name == pristine.name
    assert _contents(made) == _contents(pristine)
    assert _beside(made) == set()
    assert all(line.startswith("drawing glyphs: ") for line in told)
    drawn, total = re.match(r"drawing glyphs: (\d+) of (\d+), ", told[-1]).groups()
    assert drawn == total


def test_a_whole_cache_is_used_as_it_is(root: Path, monkeypatch, caplog, capfd):
    def fail(*_, **__):
        raise AssertionError("the corpus was made again, or locked where reading is enough")

    monkeypatch.setattr(corpus, "_make", fail)
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
    ("harm", "words"),
    [
        (_delete(JSONL), f"{JSONL} is missing"),
        (rewrite(PNG, _same_length), f"{PNG} was altered"),
        (_delete("manifest.json"), "manifest.json is missing"),
        (rewrite("manifest.json", lambda old: old[: len(old) // 2]), "manifest.json is broken"),
        (_replace_by_a_file, "manifest.json cannot be read (Not a directory)"),
    ],
    ids=["deleted rows", "altered byte", "no manifest", "torn manifest", "no folder"],
)
def test_damage_is_noticed_said_and_made_good(harm, words: str, root: Path, pristine: Path, caplog):
    harm(root)
    assert prepare_glyphs(root.parent, workers=1, progress=False) == root
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage().startswith(f"glyphs corpus {root}: {words}")
    assert record.getMessage().endswith("; making it again")
    assert _contents(root) == _contents(pristine)
    assert _beside(root) == set()


def test_what_a_killed_process_left_is_cleared_away(pristine: Path, tmp_path: Path):
    partial = tmp_path / f".{pristine.name}.partial"
    (partial / "images/m2kr/images/DejaVuSans").mkdir(parents=True)
    (partial / "images/m2kr/images/DejaVuSans/U+FFFF.png").write_bytes(b"torn")
    (tmp_path / f".{pristine.name}.stale").mkdir()
    made = prepare_glyphs(tmp_path, workers=1, progress=False)
    assert _contents(made) == _contents(pristine)
    assert _beside(made) == set()


def _fail(*_: object) -> None:
    raise ZeroDivisionError


def test_a_failure_half_way_leaves_nothing(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(corpus.subsets, "training_rows", _fail)  # the images are drawn by then
    with pytest.raises(ZeroDivisionError):
        prepare_glyphs(tmp_path, workers=1, progress=False)
    assert {path.suffix for path in tmp_path.iterdir()} <= {".lock"}


def test_a_failure_half_way_leaves_the_damaged_corpus_as_it_was(root: Path, monkeypatch):
    (root / PNG).unlink()
    before = _contents(root)
    monkeypatch.setattr(corpus, "write_corpus_manifest", _fail)  # all but the manifest is written by then
    with pytest.raises(ZeroDivisionError):
        prepare_glyphs(root.parent, workers=1, progress=False)
    assert _contents(root) == before
    assert _beside(root) == set()


def test_processes_that_ask_at_once_share_one_corpus(pristine: Path, tmp_path: Path):
    code = """
        import logging
        import sys
        from ret_lightning.runtime import progress
        from ret_lightning.data.glyphs.corpus import prepare_glyphs
        if __name__ == "__main__":
            logging.basicConfig(level=logging.INFO)
            progress.SECONDS = 0.0
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
    assert _beside(cache / pristine.name) == set()


def test_a_script_without_a_main_guard_gets_its_corpus(pristine: Path, tmp_path: Path):
    """Its workers import it and call again: they must neither wait for their parent's lock nor start workers."""
    code = """
        import sys
        from ret_lightning.data.glyphs.corpus import prepare_glyphs
        print(prepare_glyphs(sys.argv[1], workers=2))
    """
    out, err = _output(_python(code, tmp_path, tmp_path / "cache"))
    assert out.strip() == str(tmp_path / "cache" / pristine.name)
    assert "needs `if __name__ == '__main__':`" in err
    assert _contents(tmp_path / "cache" / pristine.name) == _contents(pristine)


def test_a_daemonic_process_draws_by_itself(pristine: Path, tmp_path: Path):
    """Such a process, as a data loader's worker is, may not have children."""
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


def test_the_folders_name_follows_from_the_settings(monkeypatch):
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


def test_the_default_cache_follows_the_xdg_standard(tmp_path: Path, monkeypatch, pristine: Path):
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


def test_relative_and_home_cache_folders_come_back_absolute(tmp_path: Path, monkeypatch, pristine: Path):
    shutil.copytree(pristine, tmp_path / "here" / pristine.name)
    monkeypatch.chdir(tmp_path)
    assert prepare_glyphs("here") == tmp_path / "here" / pristine.name
    monkeypatch.setenv("HOME", str(tmp_path))
    assert prepare_glyphs("~/here") == tmp_path / "here" / pristine.name


def test_a_cache_that_cannot_be_written_is_one_clear_line(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError) as caught:
        prepare_glyphs(tmp_path / "file" / "cache")
    assert caught.value.code == "glyph-cache-not-written"
    assert caught.value.path == tmp_path / "file" / "cache"
    assert "\n" not in str(caught.value)


def test_importing_the_corpus_loads_nothing_heavy():
    heavy = ("torch", "numpy", "PIL", "matplotlib", "fontTools", "lightning", "transformers", "datasets")
    code = f"import ret_lightning.data.glyphs.corpus, sys; print([name for name in {heavy!r} if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=dict(os.environ))
    assert run.stdout.strip() == "[]"


def test_glyphs_name_option_and_variable(blocked: Path) -> None:
    with pytest.raises(DataError) as caught:
        prepare_glyphs(cache_dir=blocked)
    assert caught.value.code == "glyph-cache-not-written"
    assert "data.cache_dir" in caught.value.message
    assert "XDG_CACHE_HOME" in caught.value.message
