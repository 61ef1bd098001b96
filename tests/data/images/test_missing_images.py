"""Check for missing images of rows."""

from __future__ import annotations

from pathlib import Path

import pytest

from ret_lightning.data.images.missing_images import check_images
from ret_lightning.data.readers.source_location import SourceLocation
from ret_lightning.data.rows import Passage
from ret_lightning.errors import ConfigError, DataError


@pytest.fixture
def passages(tmp_path: Path) -> list[Passage]:
    for number in range(2):
        (tmp_path / f"{number}.png").touch()
    images = [None, "0.png", "1.png", None, "0.png"]
    return [
        Passage(f"p{i}", "x", image, None, SourceLocation(Path("a.jsonl"), i + 1)) for i, image in enumerate(images)
    ]


def test_images_need_image_root(passages: list[Passage]) -> None:
    with pytest.raises(ConfigError) as error:
        check_images(passages, None)
    assert (error.value.code, error.value.line, error.value.found) == ("image-root-not-given", 2, "0.png")


def test_missing_images_are_counted(passages: list[Passage], tmp_path: Path) -> None:
    check_images(passages, str(tmp_path))
    named = [passage for passage in passages if passage.image_path is not None]
    for passage in named:
        (tmp_path / passage.image_path).unlink(missing_ok=True)
    with pytest.raises(DataError) as error:
        check_images(passages, str(tmp_path))
    assert (error.value.code, error.value.missing) == ("image-missing", len({p.image_path for p in named}))
    assert str(named[0].location) in error.value.message
