"""The resolvers in OmegaConf configs."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from ret_lightning.config.resolvers import job_name, register_resolvers


def resolve(value: str, **keys: object) -> object:
    register_resolvers()
    return OmegaConf.create({"value": value, **keys}).value


@pytest.mark.parametrize(
    ("resume", "folder", "value"), [(None, "runs/new", "x"), ("auto", "runs/new", "x"), ("runs/old", "runs/old", None)]
)
def test_resumed_run_keeps_its_folder(resume: str | None, folder: str, value: str | None) -> None:
    assert resolve("${run_folder:${resume},runs/new}", resume=resume) == folder
    assert resolve("${unless_resumed:${resume},x}", resume=resume) == value


def test_product_scales_with_a_setting() -> None:
    assert resolve("${product:1e-6,${size}}", size=64) == pytest.approx(6.4e-5)
    assert resolve("${product:2,3,0.5}") == 3.0


def test_home_folder_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve("${expand_home:${path}}", path="~/runs") == f"{tmp_path}/runs"
    assert resolve("${expand_home:runs}") == "runs"


def test_job_name_lists_the_varying_keys() -> None:
    assert job_name(["optimizer.lr", "seed"], ["optimizer.lr=0.25", "trainer=cpu", "seed=3"]) == "lr=0.25+seed=3"
