"""User-defined tokenizers and image transforms in checkpoints: restored with settings and files, or refused."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from uuid import uuid4

import pytest
import torch
from PIL import Image

from ret_lightning import RetRetriever
from ret_lightning.config.targets.allowed_targets import OWN_PACKAGES
from ret_lightning.errors import ConfigError, UserError
from ret_lightning.inputs import ClipTokenizer, ImageTransform
from ret_lightning.models.checkpoint.config_writer import is_published_architecture, own_modules
from ret_lightning.models.checkpoint.fingerprint import fingerprint, fingerprint_as
from ret_lightning.models.checkpoint.preprocessors import (
    FILES_FOLDER,
    preprocessor_records,
    record_differences,
    restored_preprocessors,
)
from tests.support.own_preprocessors import WORDS, SquashedImages, WordTokenizer
from tests.support.tiny_models import BY_NAME

PAIRS = [("a red dog", Image.new("RGB", (30, 20), "red")), ("A CAT", None), (None, Image.new("RGB", (9, 9), "blue"))]


class OwnTokenizer(ClipTokenizer):
    """A class without a `name`."""


class Changing(WordTokenizer):
    name = "tests_changing"

    @classmethod
    def from_config(cls, config, files):
        return super().from_config({**config, "max_length": 3}, files)


class Failing(WordTokenizer):
    name = "tests_failing"

    @classmethod
    def from_config(cls, config, files):
        raise KeyError("words")


@pytest.fixture
def words(tmp_path: Path) -> Path:
    (tmp_path / "words.txt").write_text(WORDS)
    return tmp_path / "words.txt"


@pytest.fixture
def make(make_retriever, words: Path) -> Callable[..., RetRetriever]:
    def make(tokenizer=None, images=None) -> RetRetriever:
        torch.manual_seed(0)
        retriever = make_retriever().eval()
        for tower in (retriever.query_tower, retriever.passage_tower):
            tower.tokenizer = tokenizer or WordTokenizer(words, lower=False)
            tower.image_transform = images or SquashedImages(16, levels=4)
        return retriever

    return make


def own_section(folder: Path, side: str = "query_config") -> dict:
    return json.loads((folder / "config.json").read_text())[side]["ret_lightning"]


def test_preprocessors_are_restored(make, words: Path, tmp_path: Path) -> None:
    retriever = make()
    retriever.save_pretrained(tmp_path / "model")
    words.unlink()
    again = RetRetriever.from_pretrained(tmp_path / "model")
    for tower in (again.query_tower, again.passage_tower):
        assert type(tower.tokenizer) is WordTokenizer
        assert tower.tokenizer.to_config() == {"max_length": 12, "lower": False}
        assert type(tower.image_transform) is SquashedImages
        assert tower.image_transform.levels == 4
    assert torch.equal(again.encode_queries(PAIRS), retriever.encode_queries(PAIRS))
    assert fingerprint(again) == fingerprint(retriever)
    again.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again/config.json").read_bytes() == (tmp_path / "model/config.json").read_bytes()


def test_files_are_stored_once(make, tmp_path: Path) -> None:
    make().save_pretrained(tmp_path / "model")
    (path,) = own_section(tmp_path / "model")["tokenizer"]["files"]
    assert own_section(tmp_path / "model", "passage_config")["tokenizer"]["files"] == [path]
    assert [str(f.relative_to(tmp_path / "model")) for f in (tmp_path / "model").glob(f"{FILES_FOLDER}/*/*")] == [path]
    assert (tmp_path / "model" / path).read_text() == WORDS


def test_files_of_earlier_export_are_removed(make, words: Path, tmp_path: Path) -> None:
    make().save_pretrained(tmp_path / "model")
    words.write_text(WORDS + "blue\n")
    make().save_pretrained(tmp_path / "model")
    assert RetRetriever.from_pretrained(tmp_path / "model").query_tower.tokenizer.vocabulary_size == 7
    assert len(list((tmp_path / "model" / FILES_FOLDER).iterdir())) == 1
    make(ClipTokenizer(20), ImageTransform(16)).save_pretrained(tmp_path / "model")
    assert not list((tmp_path / "model").glob(f"{FILES_FOLDER}/*"))


def test_towers_can_have_different_tokenizers(make, words: Path, tmp_path: Path) -> None:
    retriever = make()
    words.write_text(WORDS + "blue\n")
    retriever.passage_tower.tokenizer = WordTokenizer(words, max_length=5)
    retriever.save_pretrained(tmp_path / "model")
    again = RetRetriever.from_pretrained(tmp_path / "model")
    assert [t.tokenizer.vocabulary_size for t in (again.query_tower, again.passage_tower)] == [6, 7]
    assert again.passage_tower.tokenizer.max_length == 5


def test_class_without_name_is_stored_by_dotted_name(make, tmp_path: Path) -> None:
    make(OwnTokenizer(20), ImageTransform(16)).save_pretrained(tmp_path)
    assert own_section(tmp_path)["tokenizer"] == {"name": f"{__name__}.OwnTokenizer", "settings": {"max_length": 20}}
    assert "image_transform" not in own_section(tmp_path)
    assert type(RetRetriever.from_pretrained(tmp_path).query_tower.tokenizer) is OwnTokenizer


@pytest.mark.parametrize("kind", ["tokenizer", "image_transform"])
def test_user_preprocessor_is_not_published_layout(kind: str, words: Path) -> None:
    retriever = RetRetriever.from_pretrained(BY_NAME["clip_vit_l"])
    assert is_published_architecture(retriever)
    part = WordTokenizer(words) if kind == "tokenizer" else SquashedImages(retriever.query_tower.image_transform.size)
    setattr(retriever.passage_tower, kind, part)
    assert not is_published_architecture(retriever)
    assert own_modules(retriever) == ["tests.support.own_preprocessors"]


@pytest.mark.parametrize(
    ("part", "code"),
    [
        (lambda words: lambda texts: None, "preprocessor-not-storable"),
        (lambda words: Changing(words), "checkpoint-read-differently"),
        (lambda words: Failing(words), "checkpoint-not-readable-again"),
        (lambda words: WordTokenizer(words, lower=object()), "preprocessor-settings-not-json"),
    ],
)
def test_preprocessor_that_cannot_be_restored_is_refused(
    make, words: Path, tmp_path: Path, part: Callable, code: str
) -> None:
    retriever = make(part(words))
    with pytest.raises(ConfigError) as raised:
        retriever.save_pretrained(tmp_path / "model")
    assert raised.value.code == code
    assert not (tmp_path / "model").exists()
    assert fingerprint(retriever)


def test_file_name_with_folder_is_refused(make, words: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(WordTokenizer, "files", lambda self: {"../words.txt": b""})
    with pytest.raises(ConfigError) as raised:
        make().save_pretrained(tmp_path / "model")
    assert (raised.value.code, raised.value.found) == ("preprocessor-file-name", "../words.txt")


@pytest.mark.parametrize("path", ["../../words.txt", "/etc/passwd", "preprocessors/../config.json", 3, "words.txt"])
def test_files_outside_checkpoint_are_not_read(make, tmp_path: Path, path: object) -> None:
    make().save_pretrained(tmp_path / "model")
    config = json.loads((tmp_path / "model/config.json").read_text())
    config["query_config"]["ret_lightning"]["tokenizer"]["files"] = [path]
    (tmp_path / "model/config.json").write_text(json.dumps(config))
    with pytest.raises(UserError) as raised:
        RetRetriever.from_pretrained(tmp_path / "model")
    assert (raised.value.code, raised.value.found) == ("checkpoint-preprocessor-path", repr(path))


def test_missing_file_is_reported(make, tmp_path: Path) -> None:
    make().save_pretrained(tmp_path / "model")
    (file,) = (tmp_path / "model").glob(f"{FILES_FOLDER}/*/*")
    file.unlink()
    with pytest.raises(UserError) as raised:
        RetRetriever.from_pretrained(tmp_path / "model")
    assert (raised.value.code, raised.value.path) == ("checkpoint-file-missing", file)


@pytest.mark.parametrize("kind", ["tokenizer", "image_transform"])
def test_unknown_class_is_reported(make, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make().save_pretrained(tmp_path / "model")
    monkeypatch.setattr(WordTokenizer if kind == "tokenizer" else SquashedImages, "name", "another")
    with pytest.raises(UserError) as raised:
        RetRetriever.from_pretrained(tmp_path / "model")
    assert raised.value.code == "preprocessor-name-unknown"
    assert f"{OWN_PACKAGES}=tests" in raised.value.message
    assert "clip" in raised.value.allowed


@pytest.mark.parametrize(
    ("problem", "reason"),
    [(KeyError("words"), "KeyError: 'words'"), (ConfigError("words: no such file", code="x"), "words: no such file")],
)
def test_class_that_rejects_stored_settings_is_reported(
    make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, problem: Exception, reason: str
) -> None:
    make().save_pretrained(tmp_path / "model")

    def reject(*_: object) -> None:
        raise problem

    monkeypatch.setattr(WordTokenizer, "from_config", reject)
    with pytest.raises(UserError) as raised:
        RetRetriever.from_pretrained(tmp_path / "model")
    error = raised.value
    assert (error.code, error.key, error.reason) == ("preprocessor-not-restored", "tokenizer", reason)
    assert error.path == str(tmp_path / "model/config.json")


def test_ambiguous_class_name_is_refused(make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make().save_pretrained(tmp_path / "model")
    monkeypatch.setattr(Failing, "name", WordTokenizer.name)
    with pytest.raises(UserError) as raised:
        RetRetriever.from_pretrained(tmp_path / "model")
    assert (raised.value.code, raised.value.found) == ("preprocessor-name-ambiguous", WordTokenizer.name)
    assert len(raised.value.classes) == 2


SOURCE = """
from ret_lightning.inputs import ImageTransform

class Mine(ImageTransform):
    def __init__(self, size, sharpness=1.0):
        super().__init__(size)
        self.sharpness = sharpness
"""


@pytest.mark.parametrize("allowed", [True, False])
def test_only_allowed_packages_are_imported(
    make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, allowed: bool
) -> None:
    name = f"tests_{uuid4().hex}"
    (tmp_path / f"{name}.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    mine = import_module(name).Mine
    make(images=mine(16, sharpness=2.0)).save_pretrained(tmp_path / "model")
    mine.name = "forgotten"
    del sys.modules[name]
    if allowed:
        monkeypatch.setenv(OWN_PACKAGES, name)
        assert RetRetriever.from_pretrained(tmp_path / "model").query_tower.image_transform.sharpness == 2.0
        return
    with pytest.raises(UserError) as raised:
        RetRetriever.from_pretrained(tmp_path / "model")
    assert (raised.value.code, raised.value.found) == ("preprocessor-name-unknown", f"{name}.Mine")
    assert name not in sys.modules


def test_fingerprint_covers_settings_and_files(make, words: Path) -> None:
    usual = fingerprint(make())
    assert usual.startswith("v3:")
    assert usual == fingerprint(make())
    assert usual != fingerprint(make(WordTokenizer(words, lower=True)))
    assert usual != fingerprint(make(images=SquashedImages(16, levels=5)))
    words.write_text(WORDS + "blue\n")
    assert usual != fingerprint(make())


def test_fingerprint_is_independent_of_module(make, monkeypatch: pytest.MonkeyPatch) -> None:
    before = fingerprint(make())
    monkeypatch.setattr(WordTokenizer, "__module__", "tests.moved")
    assert fingerprint(make()) == before


def test_second_fingerprint_version_is_compared(make, words: Path) -> None:
    """The second version covers only the classes of user-defined preprocessors."""
    second = fingerprint_as("v2:0", make())
    assert second.startswith("v2:")
    assert second == fingerprint_as("v2:0", make(images=SquashedImages(16, levels=5)))
    assert second != fingerprint_as("v2:0", make(ClipTokenizer(12)))
    assert fingerprint(make(ClipTokenizer(12), ImageTransform(16))).startswith("v2:")


def test_records_of_training_checkpoint_are_restored(make, words: Path, tmp_path: Path) -> None:
    tower = make().query_tower
    torch.save(preprocessor_records(tower), tmp_path / "records.pt")
    records = torch.load(tmp_path / "records.pt", weights_only=True)
    parts = restored_preprocessors(records, "last.ckpt")
    assert type(parts["tokenizer"]) is WordTokenizer
    assert parts["tokenizer"].words.decode() == WORDS
    assert parts["image_transform"].levels == 4
    words.write_text(WORDS + "blue\n")
    other = preprocessor_records(make(WordTokenizer(words), ImageTransform(16)).query_tower)
    assert record_differences(records["tokenizer"], records["tokenizer"]) == []
    assert record_differences(records["tokenizer"], other["tokenizer"]) == [
        "lower=False in the checkpoint and True in the config",
        "the file words.txt differs",
    ]
    assert record_differences(records["image_transform"], other["image_transform"], ("a", "b")) == [
        "tests_squashed in a and clip in b"
    ]
    assert record_differences(records["tokenizer"], None) == ["tests_words in the checkpoint and None in the config"]
