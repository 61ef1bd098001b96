"""Tests of the files of the glyphs corpus: layout, fields, splits, and correct answers."""

from __future__ import annotations

import hashlib
import json
import random
import unicodedata
from collections import Counter, defaultdict
from functools import cache
from pathlib import Path

import pytest
from open_clip.tokenizer import SimpleTokenizer
from PIL import Image

from ret_lightning.data.glyphs.corpus import (
    CHARACTERS,
    GENERATOR_VERSION,
    SPLITS,
    SUBSETS,
    font_split,
    prepare_glyphs,
)
from ret_lightning.data.glyphs.subsets import QUERY_CAP
from ret_lightning.errors import ConfigError

TEXT_AND_IMAGE = {"look", "base", "codepoint", "value"}
WITHOUT_QUESTION = {"name", "look"}
WITH_ANSWERS = {"block", "codepoint", "value"}
QUERY_FIELDS = {
    "data_id": str,
    "subset": str,
    "instruction": str,
    "question": (str, type(None)),
    "image_path": str,
    "passage_id": str,
    "passage_text": str,
    "answer": (list, type(None)),
}
# SHA-256 of all JSON Lines files of seed 0, by generator version. If the digest changes, increase GENERATOR_VERSION, so
# that old caches are not reused, and add the new digest.
JSONL_DIGESTS = {1: "dae0fdded38d896cdcf9f8ab9e0c355e468b6eab1f74e106857e19895f8838b0"}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare_glyphs(tmp_path_factory.mktemp("cache"), workers=1, progress=False)


@cache
def _rows(path: Path) -> list[dict]:
    lines = path.read_text(encoding="utf-8").split("\n")
    assert lines.pop() == "", "the last line has no newline"
    return [json.loads(line) for line in lines]


def _train(root: Path) -> list[dict]:
    return _rows(root / "jsonl/m2kr/train/m2kr_up_train.jsonl")


def _queries(root: Path, subset: str, split: str) -> list[dict]:
    return _rows(root / f"jsonl/m2kr/{split}/{subset}_{split}.jsonl")


def _pool(root: Path, subset: str) -> list[dict]:
    return _rows(root / f"jsonl/m2kr/passages/{subset}_passages_test.jsonl")


def _all_queries(root: Path, split: str) -> list[dict]:
    return _train(root) if split == "train" else [row for subset in SUBSETS for row in _queries(root, subset, split)]


def _font_and_character(image_path: str) -> tuple[str, str]:
    font, name = image_path.split("/")
    return font, chr(int(name.removeprefix("U+").removesuffix(".png"), 16))


def _pixels(root: Path, image_path: str) -> bytes:
    with Image.open(root / "images/m2kr/images" / image_path) as image:
        return image.convert("L").tobytes()


def _contains(text: str, answer: str | dict[str, str]) -> bool:
    """Match an answer as pseudo recall does: a stripped, case-folded substring; of an object, its `wikidata` value."""
    words = answer["wikidata"] if isinstance(answer, dict) else answer
    return words.strip().casefold() in text.casefold()


def test_corpus_has_the_ret_m2kr_layout(root: Path):
    assert SPLITS == ("train", "val", "test")
    expected = {"manifest.json", "jsonl/m2kr/train/m2kr_up_train.jsonl"}
    for subset in SUBSETS:
        expected |= {f"jsonl/m2kr/{split}/{subset}_{split}.jsonl" for split in ("val", "test")}
        expected.add(f"jsonl/m2kr/passages/{subset}_passages_test.jsonl")
    found = {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}
    images = {path for path in found if path.startswith("images/")}
    assert found - images == expected
    referenced = {row[key] for rows in _all_files(root) for row in rows for key in row if key.endswith("image_path")}
    assert {f"images/m2kr/images/{path}" for path in referenced if path} <= images
    for path in images:
        with Image.open(root / path) as image:
            assert (image.format, image.mode, image.size) == ("PNG", "L", (40, 40))


def _all_files(root: Path) -> list[list[dict]]:
    return [_rows(path) for path in sorted((root / "jsonl").rglob("*.jsonl"))]


def test_subsets_cover_all_kinds_of_m2kr():
    assert len(SUBSETS) == len(set(SUBSETS)) == 7
    assert set(SUBSETS) >= TEXT_AND_IMAGE | WITHOUT_QUESTION | WITH_ANSWERS
    assert len(CHARACTERS) >= 150


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_query_rows_have_fields_of_m2kr(root: Path, split: str):
    fields = QUERY_FIELDS | ({"passage_image_path": (str, type(None))} if split == "train" else {})
    rows = _all_queries(root, split)
    for row in rows:
        assert row.keys() == fields.keys()
        assert all(isinstance(row[field], types) for field, types in fields.items()), row
        assert row["subset"] in SUBSETS
        assert row["data_id"].startswith(f"{row['subset']}_{split}_")
        assert (row["question"] is None) == (row["subset"] in WITHOUT_QUESTION)
        assert (row["answer"] is None) == (row["subset"] not in WITH_ANSWERS)
        if split == "train":
            assert (row["passage_image_path"] is not None) == (row["subset"] in TEXT_AND_IMAGE)
    assert len({row["data_id"] for row in rows}) == len(rows)
    assert {row["subset"] for row in rows} == set(SUBSETS)


def test_answers_of_codepoint_are_objects(root: Path):
    for split in SPLITS:
        for row in _all_queries(root, split):
            for answer in row["answer"] or []:
                assert isinstance(answer, dict) == (row["subset"] == "codepoint")
                assert not isinstance(answer, dict) or answer.keys() == {"wikidata"}


def test_pools_contain_every_character_once(root: Path):
    texts = {row["passage_id"]: row["passage_text"] for row in _pool(root, "name")}
    assert set(texts) == {f"U+{ord(character):04X}" for character in CHARACTERS}
    assert 5 / len(texts) < 0.035  # Recall@5 of a random ranking
    for subset in SUBSETS:
        pool = _pool(root, subset)
        assert len(pool) == len(texts)
        for row in pool:
            assert row.keys() == {"passage_id", "passage_text", "passage_image_path"}
            assert row["passage_text"] == texts[row["passage_id"]]
            image = f"DejaVuSans/{row['passage_id']}.png" if subset in TEXT_AND_IMAGE else None
            assert row["passage_image_path"] == image


def test_positive_of_every_query_is_in_the_pool(root: Path):
    for split in SPLITS:
        for row in _all_queries(root, split):
            passages = [p for p in _pool(root, row["subset"]) if p["passage_id"] == row["passage_id"]]
            assert len(passages) == 1
            assert row["passage_text"] == passages[0]["passage_text"]
            if split == "train":
                assert row["passage_image_path"] == passages[0]["passage_image_path"]


def test_splits_use_disjoint_fonts(root: Path):
    fonts = font_split()
    for split in SPLITS:
        used = {_font_and_character(row["image_path"])[0] for row in _all_queries(root, split)}
        assert used == set(fonts[split])
    passage_fonts = {
        _font_and_character(row["passage_image_path"])[0] for subset in TEXT_AND_IMAGE for row in _pool(root, subset)
    }
    assert passage_fonts == {"DejaVuSans"}
    assert "DejaVuSans" in fonts["train"]


def test_held_out_queries_repeat_no_training_drawing(root: Path):
    """Compare all pixels of all characters; test_fonts.py tests for similar drawings."""
    training_drawings = {_pixels(root, path) for path in {row["image_path"] for row in _train(root)}}
    for split in ("val", "test"):
        for path in {row["image_path"] for row in _all_queries(root, split)}:
            assert _pixels(root, path) not in training_drawings, path


def test_queries_are_capped_and_cover_characters(root: Path):
    sizes = {(subset, split): len(_queries(root, subset, split)) for subset in SUBSETS for split in ("val", "test")}
    assert all(size <= QUERY_CAP[split] for (_, split), size in sizes.items())
    assert min(sizes.values()) >= 70
    assert sum(size for (_, split), size in sizes.items() if split == "val") <= 900
    assert sum(size for (_, split), size in sizes.items() if split == "test") <= 1600
    for subset in SUBSETS:
        for split in ("val", "test"):
            asked = [row["image_path"] for row in _queries(root, subset, split)]
            assert len(asked) == len(set(asked))
        counts = Counter(_font_and_character(row["image_path"])[1] for row in _queries(root, subset, "test"))
        if subset in ("name", "look", "block", "codepoint"):
            assert set(counts) == set(CHARACTERS)


def test_training_uses_every_drawing_and_balances_subsets(root: Path):
    used = defaultdict(set)
    for row in _train(root):
        used[row["subset"]].add(row["image_path"])
    drawn = {f"{font}/{path.name}" for font in font_split()["train"] for path in _drawings(root, font)}
    assert used["name"] == used["look"] == used["codepoint"] == used["block"] == drawn
    rows = Counter(row["subset"] for row in _train(root))
    assert max(rows.values()) < 2 * min(rows.values())
    of_character = Counter(path.split("/")[1] for path in drawn)
    assert len(of_character) == len(CHARACTERS)
    assert min(of_character.values()) >= 8


def _drawings(root: Path, font: str) -> list[Path]:
    return sorted((root / "images/m2kr/images" / font).iterdir())


def test_only_training_has_several_phrasings(root: Path):
    for subset in SUBSETS:
        training = {row["instruction"] for row in _train(root) if row["subset"] == subset}
        held_out = {row["instruction"] for split in ("val", "test") for row in _queries(root, subset, split)}
        assert len(training) >= 3
        assert len(held_out) == 1
        assert held_out < training
        questions = {row["question"] for row in _train(root) if row["subset"] == subset}
        assert {row["question"] for row in _queries(root, subset, "test")} <= questions


def test_training_rows_of_subsets_are_mixed(root: Path):
    first = Counter(row["subset"] for row in _train(root)[:500])
    assert set(first) == set(SUBSETS)


def test_positive_answers_the_question(root: Path):
    asked = Counter()
    for split in SPLITS:
        for row in _all_queries(root, split):
            drawn = _font_and_character(row["image_path"])[1]
            found = chr(int(row["passage_id"][2:], 16))
            asked[row["subset"]] += 1
            if row["subset"] == "case":
                upper, lower = "uppercase" in row["question"], "lowercase" in row["question"]
                assert upper != lower
                assert found == (drawn.upper() if upper else drawn.lower()) != drawn
            elif row["subset"] == "base":
                assert found == unicodedata.normalize("NFD", drawn)[0] != drawn
            else:
                assert found == drawn
    assert set(asked) == set(SUBSETS)


def test_answers_identify_the_positive(root: Path):
    expected = {
        "block": lambda row: row["passage_text"].split(". ")[2:4],
        "codepoint": lambda row: [{"wikidata": row["passage_id"]}],
        "value": lambda row: [str(round(unicodedata.numeric(chr(int(row["passage_id"][2:], 16))), 3))],
    }
    for subset in WITH_ANSWERS:
        texts = [row["passage_text"] for row in _pool(root, subset)]
        for row in _queries(root, subset, "val") + _queries(root, subset, "test"):
            (answer,) = row["answer"]
            assert answer in expected[subset](row)
            assert _contains(row["passage_text"], answer)
            hits = sum(_contains(text, answer) for text in texts)
            # A code point is in one passage, a number in those of a digit and its superscript, a block in many.
            assert hits <= {"codepoint": 1, "value": 2, "block": 80}[subset], (answer, hits)


def test_texts_have_at_most_32_tokens(root: Path):
    """The limit of 32 CLIP tokens includes the start and end tokens."""
    tokenizer = SimpleTokenizer()
    texts = {row["passage_text"] for row in _pool(root, "name")}
    for split in SPLITS:
        texts |= {" ".join(filter(None, (r["instruction"], r["question"]))) for r in _all_queries(root, split)}
    longest = max(texts, key=lambda text: len(tokenizer.encode(text)))
    assert len(tokenizer.encode(longest)) + 2 <= 32, longest


def test_generated_files_match_generator_version(root: Path):
    digest = hashlib.sha256()
    for path in sorted((root / "jsonl").rglob("*.jsonl")):
        digest.update(path.read_bytes())
    assert JSONL_DIGESTS[GENERATOR_VERSION] == digest.hexdigest()


def test_seed_changes_queries_and_not_passages(root: Path, tmp_path: Path):
    other = prepare_glyphs(tmp_path, seed=1, workers=1, progress=False)
    assert other.name != root.name
    for subset in SUBSETS:
        assert _pool(root, subset) == _pool(other, subset)
    images = [{row["image_path"] for row in _queries(folder, "name", "val")} for folder in (root, other)]
    assert images[0] != images[1]
    random_state = random.getstate()
    prepare_glyphs(tmp_path, seed=1, workers=1, progress=False)
    assert random.getstate() == random_state  # the global generator is not used


@pytest.mark.parametrize("image_size", [16, 33, 64])
def test_image_size_scales_the_drawing(tmp_path: Path, image_size: int, root: Path):
    other = prepare_glyphs(tmp_path, image_size=image_size, workers=1, progress=False)
    for path in _drawings(other, "DejaVuSerif-BoldItalic"):
        with (
            Image.open(path) as image,
            Image.open(_drawings(root, "DejaVuSerif-BoldItalic")[0].with_name(path.name)) as at_40,
        ):
            assert image.size == (image_size, image_size)
            found = [edge / image_size for edge in image.getbbox()]
            assert found == pytest.approx([edge / 40 for edge in at_40.getbbox()], abs=1.1 / min(image_size, 40))


@pytest.mark.parametrize(
    ("argument", "code"),
    [
        ({"image_size": 15}, "glyph-image-size"),
        ({"image_size": 40.0}, "glyph-image-size"),
        ({"image_size": True}, "glyph-image-size"),
        ({"seed": "0"}, "glyph-seed"),
        ({"workers": 0}, "glyph-workers"),
    ],
)
def test_argument_out_of_range_is_an_error(tmp_path: Path, argument: dict, code: str):
    with pytest.raises(ConfigError) as error:
        prepare_glyphs(tmp_path, **argument)
    ((name, value),) = argument.items()
    assert (error.value.code, error.value.found) == (code, value)
    assert error.value.message.startswith(f"{name}={value!r}: expected ")
    if code == "glyph-image-size":
        assert (error.value.least, error.value.most) == (16, 512)
    assert list(tmp_path.iterdir()) == []
