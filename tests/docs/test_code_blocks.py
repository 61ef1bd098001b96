"""Every console and Python block of the README and the documentation is run, or composed where it cannot be."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import processes
from tests.support.doc_blocks import REASONS, TESTED, Block, blocks, commands, expected_output, pages
from tests.support.m2kr_folder import read, write_folder, write_lines
from tests.support.paths import ROOT
from tests.support.small_runs import command

PAGES = {file.relative_to(ROOT).as_posix(): blocks(file) for file in pages()}
COMMANDS = {"train", "check", "evaluate", "export", "index", "search", "report"}
CORPUS = "/data/ReT-M2KR"  # how the documentation calls a corpus; a small one takes its place


def of_mode(*modes: str) -> list[str]:
    return [page for page, found in PAGES.items() if any(block.mode in modes for block in found)]


def test_every_block_is_tested() -> None:
    unmarked, without_reason = [], []
    for block in (block for found in PAGES.values() for block in found if block.language in TESTED):
        if not block.mode and not block.title:
            unmarked.append(f"{block.page}:{block.line}")
        if block.mode in ("compose", "compile") and not set(block.words) & set(REASONS):
            without_reason.append(f"{block.page}:{block.line}")
    assert (unmarked, without_reason) == ([], [])
    assert sum(block.mode == "run" for found in PAGES.values() for block in found) > 30


@pytest.mark.slow
@pytest.mark.parametrize("page", of_mode("compose", "compile"))
def test_block_composes(page: str, call: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    for block in PAGES[page]:
        if block.mode == "compile":
            check_python(block)
        if block.mode != "compose":
            continue
        where = f"{block.page}:{block.line}"
        assert subprocess.run(["bash", "-n"], input=block.code, text=True).returncode == 0, where
        for words in commands(block.code):
            check_command(words, where, call, capsys)


@pytest.mark.slow
@pytest.mark.parametrize("page", of_mode("run"))
def test_block_runs(page: str, workspace: Path, tmp_path: Path) -> None:
    folder = tmp_path / "page"
    shutil.copytree(workspace, folder, symlinks=True)
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}",
    }
    for block in PAGES[page]:  # what follows a block may need its files, in whatever order they are shown
        if block.title:
            (folder / block.title).parent.mkdir(parents=True, exist_ok=True)
            (folder / block.title).write_text(block.code)
    for block in PAGES[page]:
        if block.mode == "run":
            code = block.code.replace(CORPUS, str(folder / "m2kr"))
            if block.language == "python":
                (folder / "block.py").write_text(code)
                done = processes.run([sys.executable, "block.py"], folder, environment)
            else:
                shell = "\n".join(line.removeprefix("$ ") for line in code.splitlines() if is_command(block, line))
                done = run_shell(shell, folder, environment, block.language == "console")
            said = done.stdout + done.stderr
            assert done.returncode == block.exit_code, f"{block.page}:{block.line}\n{said}"
            if block.language == "console":
                assert [line for line in expected_output(block.code) if line not in said] == []


def test_readme_is_short() -> None:
    words = re.sub(r"```.*?```", "", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL).split()
    assert len(words) <= 1000


def run_shell(
    code: str, folder: Path, environment: dict[str, str], shows_output: bool
) -> subprocess.CompletedProcess[str]:
    """Run a block as `bash -e` does; commands of the project run in processes that have imported the libraries already."""
    if shows_output or re.search(r"[|&;<>$`*]", code):  # messages may depend on which libraries are imported
        return processes.run(["bash", "-e", "-c", code], folder, environment)
    environment, outputs, exit_code = dict(environment), [], 0
    for words in commands(code):
        if words[0] == "export":
            environment.update(dict(word.split("=", 1) for word in words[1:]))
            continue
        if is_own(words):
            words = processes.module(f"ret_lightning.commands.{words[0].removeprefix('ret-')}", *words[1:])
        done = processes.run(words, folder, environment)
        outputs.append(done.stdout + done.stderr)
        if exit_code := done.returncode:
            break
    return subprocess.CompletedProcess(code, exit_code, "".join(outputs), "")


def is_own(words: list[str]) -> bool:
    return words[0].startswith("ret-") and words[0].removeprefix("ret-") in COMMANDS


def is_command(block: Block, line: str) -> bool:
    return block.language == "bash" or line.startswith("$ ")


def check_python(block: Block) -> None:
    """The block compiles, and what it imports exists."""
    tree = ast.parse(block.code)
    tree.body = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    exec(compile(tree, f"{block.page}:{block.line}", "exec"), {})


def check_command(words: list[str], where: str, call: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    """A command of this project composes its config; a target, an extra or a script exists."""
    name = next((word for word in words if word.startswith("ret-") and word[4:] in COMMANDS), None)
    if name:
        options = [os.path.expandvars(word) for word in words[words.index(name) + 1 :]]
        jobs = [options]
        if "-m" in options:
            options.remove("-m")
            jobs = [[_choice(option, at) for option in options if not option.startswith("hydra")] for at in (0, -1)]
        for job in jobs:
            code = call(name[4:], "--cfg", "job", *job)
            assert code == 0, f"{where}: {' '.join(words)}\n{capsys.readouterr().err}"
    elif words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), where
    elif words[:2] == ["pip", "install"]:
        extras = re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
        named = [extra for word in words for found in re.findall(r"\[([\w,]+)\]", word) for extra in found.split(",")]
        assert set(named) <= set(extras), where
    elif script := next((word for word in words if word.endswith(".py")), None):
        source = (ROOT / script).read_text()
        keys = [word.partition("=")[0] for word in words[words.index(script) + 1 :] if "=" in word]
        assert [key for key in keys if not re.search(rf"\b{key}\b", source)] == [], where


def _choice(option: str, at: int) -> str:
    """One value of an option that a sweep varies."""
    key, _, value = option.partition("=")
    return option if not value or value[0] in "[{" else f"{key}={value.split(',')[at]}"


@pytest.fixture(scope="session")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the commands of the documentation find: a corpus, a run, an exported model, passages, queries and images."""
    folder = tmp_path_factory.mktemp("workspace")
    root = write_folder(folder / "m2kr")
    options = ["data=m2kr", f"data.root={root}", "data.num_workers=0", "data.batch_size=8", "debug=fast", "logger=csv"]
    for name, *arguments in (
        ("train", *options, f"output_dir={folder / 'runs/my_run'}"),
        ("export", f"checkpoint={folder / 'runs/my_run'}", f"output={folder / 'my_model'}"),
    ):
        done = command(name, *arguments, cwd=folder)
        assert done.returncode == 0, done.stderr
    (folder / "images").symlink_to(root / "images/m2kr/images")
    passages = read(root / "jsonl/m2kr/passages/wit_passages_test.jsonl")
    write_lines(folder / "passages.jsonl", passages)
    more = [{**row, "passage_id": f"more_{row['passage_id']}"} for row in passages]
    write_lines(folder / "more.jsonl", more)
    shutil.copy(root / "jsonl/m2kr/test/wit_test.jsonl", folder / "queries.jsonl")
    from PIL import Image

    Image.new("RGB", (60, 40), "teal").save(folder / "bird.jpg")
    assert json.loads((folder / "runs/my_run/metrics.json").read_text())
    return folder
