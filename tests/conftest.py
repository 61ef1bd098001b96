"""Fixtures of all tests: no network, separate caches, seeds, and small corpora."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path

# Before anything reads them.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "offline"
os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["OMP_NUM_THREADS"] = "1"  # the models are tiny: more threads only wait for each other

import pytest
from hypothesis import settings

from tests.support.m2kr_folder import write_folder
from tests.support.paths import REFERENCE
from tests.support.small_runs import Trained, command, m2kr, ret_train

# The same examples in every run, without a time limit.
settings.register_profile("ret_lightning", deadline=None, derandomize=True)
settings.load_profile("ret_lightning")


@pytest.fixture(scope="session", autouse=True)
def _own_caches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing is read from, or left in, the caches of whoever runs the tests; child processes inherit the variables."""
    caches = tmp_path_factory.mktemp("caches")
    own = {"XDG_CACHE_HOME": str(caches / "xdg"), "HF_DATASETS_CACHE": str(caches / "datasets")}
    before = {name: os.environ.get(name) for name in own}
    os.environ.update(own)
    yield
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Every test starts from the same random state, whatever ran before it."""
    import numpy as np
    import torch

    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 -- libraries draw from the global state
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def glyphs_root() -> Path:
    """The glyphs corpus, made once for all tests."""
    from ret_lightning.data.glyphs.corpus import prepare_glyphs

    return prepare_glyphs(progress=False)


@pytest.fixture(params=sorted(p.name for p in REFERENCE.iterdir() if p.is_dir()))
def reference(request: pytest.FixtureRequest) -> Path:
    """Each folder of reference data: a checkpoint in the published layout, and what the published code computes with it."""
    return REFERENCE / request.param


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A corpus of 24 training rows."""
    return write_folder(tmp_path / "m2kr", training_rows=24)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("trained")
    made = Trained(write_folder(folder / "m2kr"), folder / "run", folder / "exported")
    done = ret_train(*m2kr(made.root, f"output_dir={made.run}", "trainer.max_epochs=1"), cwd=folder)
    assert done.returncode == 0, done.stderr
    done = command("export", f"checkpoint={made.run}", f"output={made.exported}", cwd=folder)
    assert done.returncode == 0, done.stderr
    return made


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., int]:
    """Runs a command in this process, which saves the seconds of another one's imports, and gives its exit code."""

    def run(name: str, *options: object) -> int:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [f"ret-{name}", *map(str, options)])
        try:
            import_module(f"ret_lightning.commands.{name}").main()
        except SystemExit as error:
            return int(error.code or 0)
        return 0

    return run
