"""A corpus of twelve passages to index and search, the expected results of a search, and damage to index files."""

from __future__ import annotations

import importlib.util
import itertools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from ret_lightning import RetRetriever
from tests.support.m2kr_folder import passage
from tests.support.random_pools import maxsim_float64
from tests.support.small_runs import Trained

needs_qdrant = pytest.mark.skipif(
    importlib.util.find_spec("qdrant_client") is None, reason="the extra qdrant is not installed"
)

FIRST, ALL = 7, 12  # passages of first.jsonl, and of all.jsonl
NAME = "evqa"


def images(trained: Trained) -> Path:
    return trained.root / "images/m2kr/images"


def read(lines: str) -> list[dict]:
    return [json.loads(line) for line in lines.splitlines()]


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-10])


def interrupted(*_: object, **__: object) -> None:
    """Raise KeyboardInterrupt, as Ctrl-C does; a signal does not reach tests in a process of pytest-xdist."""
    raise KeyboardInterrupt


def encoded_ids(monkeypatch: pytest.MonkeyPatch, module: ModuleType) -> list[list[str]]:
    """Record the ids of the passages that `module` encodes, one list per call of `encode_batches`."""
    original, calls = module.encode_batches, []

    def encode_batches(retriever, rows, *options, **more):
        calls.append([row.passage_id for row in rows])
        return original(retriever, rows, *options, **more)

    monkeypatch.setattr(module, "encode_batches", encode_batches)
    return calls


@contextmanager
def interrupted_after(batches: int, monkeypatch: pytest.MonkeyPatch, module: ModuleType) -> Iterator[None]:
    """Interrupt ret-index after a number of batches encoded by `module`."""
    original = module.encode_batches

    def encode_batches(*options, **more):
        yield from itertools.islice(original(*options, **more), batches)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(module, "encode_batches", encode_batches)
        yield


def brute_force(trained: Trained, pairs: list) -> tuple[np.ndarray, list[list[str]]]:
    """Return scores and ids, best first, of the corpus for (text, image) pairs, encoded by the library."""
    retriever = RetRetriever.from_pretrained(trained.exported)
    rows = [passage(NAME, i) for i in range(ALL)]
    pool = [(r["passage_text"], r["passage_image_path"] and images(trained) / r["passage_image_path"]) for r in rows]
    vectors = retriever.encode_passages(pool).half()
    scores = maxsim_float64(retriever.encode_queries(pairs), vectors)
    order = (-scores).argsort(axis=1, kind="stable")
    return np.take_along_axis(scores, order, 1), [[rows[i]["passage_id"] for i in line] for line in order]
