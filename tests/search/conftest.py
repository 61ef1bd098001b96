"""Files of passages and queries, an index of them, and ret-index in this process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.m2kr_folder import passage, query, write_lines
from tests.support.search_corpus import ALL, FIRST, NAME, images
from tests.support.small_runs import Trained, command


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    rows = [passage(NAME, i) for i in range(ALL)]
    write_lines(folder / "all.jsonl", rows)
    write_lines(folder / "first.jsonl", rows[:FIRST])
    write_lines(folder / "more.jsonl", rows[FIRST:])
    queries = [query(NAME, i) for i in range(5)]
    for row in queries:
        del row["passage_id"]  # search needs no positives
    write_lines(folder / "queries.jsonl", queries)
    return folder


@pytest.fixture(scope="session")
def index(trained: Trained, files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("indexes") / "index"
    done = command(
        "index",
        f"checkpoint={trained.run}",
        f"passages={files / 'all.jsonl'}",
        f"image_root={images(trained)}",
        f"index={folder}",
        cwd=folder.parent,
    )
    assert done.returncode == 0, done.stderr
    assert "12 passages, index ExactIndex" in done.stdout
    assert [path.name for path in folder.parent.iterdir()] == ["index"]
    return folder


@pytest.fixture
def make(trained: Trained, files: Path, call: Callable[..., int]) -> Callable[..., int]:
    def run(file: str | Path, *options: object) -> int:
        return call("index", f"passages={files / file}", f"image_root={images(trained)}", *options)

    return run
