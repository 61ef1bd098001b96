"""A small folder in the ReT-M2KR layout with all that real files have: nulls, mixed ids, lists, objects, extra fields."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

TRAIN = "jsonl/m2kr/train/m2kr_up_train.jsonl"
SUBSETS = ("okvqa", "wit", "infoseek", "evqa")
PASSAGES = 12


def read(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def write_folder(root: Path, subsets: Sequence[str] = SUBSETS, seed: int = 0, training_rows: int = 40) -> Path:
    """Writes the layout below `root` and returns it. Passage i of every subset shows image i and tells fact i."""
    random = np.random.default_rng(seed)
    images = root / "images/m2kr/images"
    (images / "sub").mkdir(parents=True)
    for i in range(PASSAGES):
        pixels = random.integers(0, 256, (24, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(images / f"sub/{i}.png")
    training = []
    for name in subsets:
        passages = [passage(name, i) for i in range(PASSAGES)]
        # evqa's test file carries a longer name, as the published one does.
        test = "evqa_test_m2kr" if name == "evqa" else f"{name}_test"
        write_lines(root / f"jsonl/m2kr/test/{test}.jsonl", [query(name, i) for i in range(PASSAGES)])
        write_lines(root / f"jsonl/m2kr/passages/{name}_passages_test.jsonl", passages)
    for n in range(training_rows):
        name, i = subsets[n % len(subsets)], int(random.integers(PASSAGES))
        row = query(name, i) | passage(name, i)
        row["data_id"] = f"{name.upper()}_train_{n}"
        row["passage_id"] = query(name, i)["passage_id"]
        training.append(row)
    write_lines(root / "jsonl/m2kr/train/m2kr_up_train.jsonl", training)
    return root


def number_questions(root: Path) -> Path:
    """Gives every training row a question of its own, by which its tokens identify it, and returns the folder."""
    file = root / "jsonl/m2kr/train/m2kr_up_train.jsonl"
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    write_lines(file, [row | {"question": f"What is row {number}?"} for number, row in enumerate(rows)])
    return root


def write_lines(file: Path, rows: Sequence[dict[str, Any] | str]) -> None:
    """Rows as JSON Lines; strings are written as they are."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows), encoding="utf-8")


def passage(name: str, i: int) -> dict[str, Any]:
    """A passage with a numeric or a string id, sometimes without a text or without an image."""
    return {
        "passage_id": i if name == "okvqa" else f"{name}_{i}",
        "passage_text": None if i % 5 == 4 and i % 3 else f"Fact {i}: the answer is word{i}.",
        "passage_image_path": None if i % 3 == 0 or (name == "wit" and i % 5 != 4) else f"sub/{i}.png",
        "extra": {"nested": [1, 2]},
    }


def query(name: str, i: int) -> dict[str, Any]:
    """A query whose positive is passage i."""
    positive: Any = str(i) if name == "okvqa" else f"{name}_{i}"
    answer: Any = None
    if name == "okvqa":
        answer = [f" Word{i} ", "nothing"]
    if name == "infoseek":
        answer = [{"wikidata": f"word{i}", "range": [1, 2]}, "unheard of"]
    return {
        "data_id": i if name == "wit" else f"{name}_test_{i}",
        "instruction": "Find the passage:",
        "question": None if name == "wit" else f"What is fact {i}?",
        "image_path": None if i % 4 == 3 and name != "wit" else f"sub/{i}.png",
        "passage_id": [positive, f"{name}_elsewhere"] if i % 2 else positive,
        "answer": answer,
        "source": name,
    }
