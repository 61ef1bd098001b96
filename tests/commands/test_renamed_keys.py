"""Earlier option names on command lines, in config files, in stored runs and in saved indexes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.support.m2kr_folder import write_folder
from tests.support.small_runs import small_run

pytestmark = pytest.mark.slow

EARLIER = {
    "nlist": "cells",
    "nprobe": "probes",
    "m": "codes",
    "nbits": "bits",
    "M": "links",
    "training_points": "sample",
}
WARNING = "will be an error in version 0.3"


def with_earlier_names(node: dict) -> dict:
    return {EARLIER.get(key, key): value for key, value in node.items()}


def test_earlier_names_through_the_commands(
    call: Callable[..., int], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    root, run, index = write_folder(tmp_path / "m2kr"), tmp_path / "run", tmp_path / "index"
    file = tmp_path / "conf/retrieval/earlier.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(
        "_target_: ret_lightning.retrieval.FaissIndex\nfactory: IVF{cells},SQ8\ncells: 2\nprobes: 2\ndevice: null\n"
    )
    choice = ("--config-dir", str(tmp_path / "conf"), "retrieval=earlier", "retrieval.probes=1")
    assert call("train", *choice, *small_run(root, run, "trainer.max_epochs=1")) == 0
    warnings = [line for line in capfd.readouterr().err.splitlines() if WARNING in line]
    assert len(warnings) == 4
    for names in (
        ("retrieval.probes=1", "nprobe=1"),
        ("retrieval.cells", "retrieval.nlist"),
        ("IVF{cells}", "IVF{nlist}"),
    ):
        assert any(all(name in line for name in names) for line in warnings)
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["retrieval"] == config["evaluation"]["index"]
    assert {key: config["retrieval"].get(key) for key in ("factory", "nlist", "nprobe")} == {
        "factory": "IVF{nlist},SQ8", "nlist": 2, "nprobe": 1,
    }  # fmt: skip
    assert not set(EARLIER.values()) & set(config["retrieval"])

    # The config as stored by an earlier version.
    for node in (config, config["evaluation"]):
        key = "retrieval" if node is config else "index"
        node[key] = with_earlier_names(node[key]) | {"factory": "IVF{cells},SQ8"}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    assert call("train", f"resume={run}", "trainer.max_epochs=2") == 0
    assert WARNING not in capfd.readouterr().err
    stored = yaml.safe_load((run / "config.yaml").read_text())["retrieval"]
    assert (stored["nlist"], stored["nprobe"], stored["factory"]) == (2, 1, "IVF{nlist},SQ8")
    assert call("train", f"resume={run}", "trainer.max_epochs=3", "retrieval.probes=2") == 0
    assert WARNING in capfd.readouterr().err
    assert yaml.safe_load((run / "config.yaml").read_text())["retrieval"]["nprobe"] == 2

    passages = f"passages={root / 'jsonl/m2kr/passages/evqa_passages_test.jsonl'}"
    images = f"image_root={root / 'images/m2kr/images'}"
    assert call("index", *choice, f"checkpoint={run}", passages, images, f"index={index}") == 0
    capfd.readouterr()
    assert call("search", f"index={index}", "query=hello", "top_k=3") == 0
    expected = capfd.readouterr().out
    manifest = index / "v1/search/index.json"
    content = json.loads(manifest.read_text())
    content["settings"] = with_earlier_names(content["settings"])
    assert content["settings"]["cells"] == 2
    manifest.write_text(json.dumps(content))
    assert call("search", f"index={index}", "query=hello", "top_k=3") == 0
    done = capfd.readouterr()
    assert done.out == expected
    assert done.err == ""
