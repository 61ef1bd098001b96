import pytest
from omegaconf import OmegaConf
from omegaconf.errors import InterpolationKeyError

from ret_lightning.config.nodes import child_keys, to_plain


def test_to_plain_resolves_on_request() -> None:
    config = OmegaConf.create({"a": {"b": [1, "${c}"]}, "c": 2})
    assert to_plain(config) == {"a": {"b": [1, "${c}"]}, "c": 2}
    assert to_plain(config, resolve=True) == {"a": {"b": [1, 2]}, "c": 2}
    assert type(to_plain(config)["a"]["b"]) is list


def test_to_plain_needs_values_to_resolve() -> None:
    config = OmegaConf.create({"a": "${b}"})
    assert to_plain(config) == {"a": "${b}"}
    with pytest.raises(InterpolationKeyError):
        to_plain(config, resolve=True)


def test_child_keys_of_mapping_and_list() -> None:
    config = OmegaConf.create({"a": "???", "b": "${missing}", "c": ["x", "???"]})
    assert child_keys(config) == ["a", "b", "c"]
    assert child_keys(config.c) == [0, 1]
