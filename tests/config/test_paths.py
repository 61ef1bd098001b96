"""Paths of a config become absolute; hub ids and interpolations are unchanged."""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from ret_lightning.config.paths import PATHS, PATHS_OR_IDS, make_paths_absolute


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("data.root", "corpus", "{base}/corpus"),
        ("data.root", "../corpus", "{parent}/corpus"),
        ("data.root", "/data/corpus", "/data/corpus"),
        ("data.root", "~/corpus", "{home}/corpus"),
        ("data.cache_dir", "cache", "{base}/cache"),
        ("data.image_folder", "images.tar", "images.tar"),
        ("callbacks.checkpoint.dirpath", "best", "{base}/best"),
        ("callbacks.gate_maps.file", "${output_dir}/gates.png", "run/gates.png"),
        ("logger.csv.save_dir", "logs", "{base}/logs"),
        ("logger.csv.save_dir", "s3://bucket/logs", "s3://bucket/logs"),
        ("init_from", "there", "{base}/there"),
        ("init_from", "./absent", "{base}/absent"),
        ("init_from", "aimagelab/ReT-CLIP-ViT-L-14", "aimagelab/ReT-CLIP-ViT-L-14"),
        ("backbone.pretrained", "openai/clip-vit-base-patch32", "openai/clip-vit-base-patch32"),
        ("backbone.pretrained", "there", "{base}/there"),
        ("data.root", None, None),
    ],
)
@pytest.mark.parametrize("is_explicit", [False, True])
def test_paths_become_absolute(
    tmp_path: Path, monkeypatch, key: str, value: str, expected: str, is_explicit: bool
) -> None:
    base = tmp_path / "base"
    (base / "there").mkdir(parents=True)
    monkeypatch.setenv("HOME", "/home/me")
    if not is_explicit:
        monkeypatch.chdir(base)
    config = OmegaConf.create({"output_dir": "run", "logger": {"none": None}})
    OmegaConf.update(config, key, value, force_add=True)
    make_paths_absolute(config, base if is_explicit else None)
    found = OmegaConf.select(config, key)
    assert found == (expected and expected.format(base=base, parent=tmp_path, home="/home/me"))
    assert config.output_dir == "run"


def test_keys_exist() -> None:
    """A misspelt key would never be made absolute."""
    with initialize_config_module("ret_lightning.conf", version_base="1.3"):
        configs = [compose("train", ["data=m2kr"]), compose("train", ["data=glyphs"]), compose("evaluate")]
    optional = {
        "trainer.default_root_dir",
        "model.backbone.pretrained",
        "data.layout.root",
        "data.layout.cache_dir",
    }  # set by users and in stored configs
    patterns = {*PATHS, *PATHS_OR_IDS} - optional
    keys = {key for config in configs for key in _keys(OmegaConf.to_container(config))}
    assert {pattern for pattern in patterns if not any(fnmatch(key, pattern) for key in keys)} == set()


def _keys(node: object, above: str = "") -> Iterator[str]:
    for key, value in node.items() if isinstance(node, dict) else ():
        yield f"{above}{key}"
        yield from _keys(value, f"{above}{key}.")
