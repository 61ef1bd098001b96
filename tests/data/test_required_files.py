"""Missing files are reported before the training file is scanned or copied."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from ret_lightning import M2KRDataModule
from ret_lightning.data import datamodule
from ret_lightning.errors import DataError
from ret_lightning.inputs import ClipTokenizer, ImageTransform
from tests.support.m2kr_folder import PASSAGES, TRAIN, query, read, write_folder, write_lines

JSONL = "jsonl/m2kr"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "m2kr")


def make(root: Path, **options) -> M2KRDataModule:
    return M2KRDataModule(root, ClipTokenizer(), ImageTransform(16), batch_size=8, **options)


def without_images(root: Path) -> None:
    for file in root.glob(f"{JSONL}/*/*.jsonl"):
        paths = dict.fromkeys(("image_path", "passage_image_path"))
        write_lines(file, [row | {"question": "What?", "passage_text": "It."} | paths for row in read(file)])
    shutil.rmtree(root / "images")


@pytest.mark.parametrize(
    ("missing", "options", "code"),
    [
        ("images/m2kr/images", {}, "image-folder-missing"),
        ("images", {"image_folder": "images.tar"}, "archive-missing"),
        (TRAIN, {}, "missing-corpus-file"),
        (f"{JSONL}/passages/evqa_passages_test.jsonl", {"validation": "test"}, "missing-corpus-file"),
        (f"{JSONL}/val", {"validation": "val"}, "missing-corpus-file"),
    ],
)
def test_missing_file_is_reported_before_scan(
    root: Path, monkeypatch: pytest.MonkeyPatch, missing: str, options: dict, code: str
) -> None:
    def scan(*_: object, **__: object) -> None:
        pytest.fail("the training file is scanned")

    monkeypatch.setattr(datamodule, "TrainingSet", scan)
    monkeypatch.setattr(datamodule, "plan_validation", scan)
    path = root / missing
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    with pytest.raises(DataError) as error:
        make(root, **options).check_files(("train", "val"))
    assert error.value.code == code


@pytest.mark.parametrize(("needed", "is_needed"), [(("train", "val"), False), (("train", "val", "test"), True)])
def test_test_files_are_required_only_for_test(root: Path, needed: tuple[str, ...], is_needed: bool) -> None:
    (root / f"{JSONL}/passages/evqa_passages_test.jsonl").unlink()
    data = make(root, validation="holdout")
    if not is_needed:
        assert data.check_files(needed) == ["wit", "infoseek", "evqa", "okvqa"]
        return
    with pytest.raises(DataError) as error:
        data.check_files(needed)
    assert Path(error.value.path).name == "evqa_passages_test.jsonl"


def test_text_only_corpus_needs_no_image_folder(root: Path) -> None:
    without_images(root)
    make(root).check_files(("train", "val", "test"))
    write_lines(root / f"{JSONL}/test/wit_test.jsonl", [query("wit", i) for i in range(PASSAGES)])
    with pytest.raises(DataError) as error:
        make(root).check_files(("test",))
    assert error.value.code == "image-folder-missing"


def test_unreadable_file_is_reported(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Path.open

    def refuse(path: Path, *options: object, **more: object) -> object:
        if path.name == "wit_test.jsonl":
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *options, **more)

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(DataError) as error:
        make(root).check_files(("test",))
    assert (error.value.code, Path(error.value.path).name) == ("corpus-file-not-readable", "wit_test.jsonl")
