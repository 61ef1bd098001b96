"""Settings of tokenizers and image transforms in checkpoints."""

from __future__ import annotations

from typing import Any

import pytest

from ret_lightning.errors import ConfigError
from ret_lightning.inputs import ClipTokenizer, ImageTransform, Preprocessor


class Numbered(ClipTokenizer):
    def __init__(self, first: int, *, max_length: int = 5) -> None:
        super().__init__(max_length)
        self.first = first


class Unkept(ClipTokenizer):
    def __init__(self, first: int) -> None:
        super().__init__()


class Unnamed(ClipTokenizer):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)


@pytest.mark.parametrize(
    ("part", "settings"),
    [
        (ClipTokenizer(20), {"max_length": 20}),
        (Numbered(3), {"first": 3, "max_length": 5}),
        (ImageTransform(8, (0, 0, 0), (1, 1, 1)), {"size": 8, "mean": (0, 0, 0), "std": (1, 1, 1), "reduce": False}),
    ],
)
def test_settings_are_constructor_arguments(part: Preprocessor, settings: dict[str, Any]) -> None:
    assert part.to_config() == settings
    again = type(part).from_config({key: [*v] if type(v) is tuple else v for key, v in settings.items()}, part.files())
    assert again.to_config() == settings


def test_settings_follow_attributes() -> None:
    tokenizer = ClipTokenizer(20)
    tokenizer.max_length = 10
    assert tokenizer.to_config() == {"max_length": 10}


@pytest.mark.parametrize(("part", "key"), [(Unkept(1), "first"), (Unnamed(), "options")])
def test_argument_without_attribute_is_refused(part: Preprocessor, key: str) -> None:
    with pytest.raises(ConfigError) as raised:
        part.to_config()
    assert (raised.value.code, raised.value.key) == ("preprocessor-setting-missing", key)


def test_names_are_not_inherited() -> None:
    assert (ClipTokenizer.name, ImageTransform.name) == ("clip", "clip")
    assert Numbered.name == f"{__name__}.Numbered"
