"""Benchmark scripts run with small sizes and print their tables."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import EXPERIMENTS

SCRIPTS = EXPERIMENTS / "benchmarks"
RUNS = {
    "loader.py": (["rows=300", "pictures=24", "side=48", "batch=8"], 2 + 6 + 2 + 2 + 2 + 2),
    "encode_missing_modalities.py": (["backbone=tiny", "rows=2", "repeats=1"], 2 + 7),
    "maxsim.py": (["sizes=6,9", "k=3,5", "d=8,16", "repeats=1", "plot=plot.png", "others=true"], 2 + 4 * 4),
    "contrastive.py": (["model=small", "pairs=6", "micro_batches=2,4", "repeats=1", "plot=plot.png"], 2 + 3),
    "images.py": (["sizes=90x70,120x100", "images=2", "repeats=1"], 2 + 2 * 6),
    "retrieval.py": (
        ["passages=3000", "queries=5", "k=4", "d=16", "threads=1", "folder=here", "plot=plot.png"],
        2 + 1 + 6 + 3 + 5,
    ),
    "step.py": (["backbone=tiny", "pairs=2", "repeats=1"], 2 + 3 + 2 + 3),
    "onednn_linear.py": (["shapes=8x4x6,40x30x20", "repeats=1"], 2 + 2),
    "resampling.py": (["queries=20", "repeats=1"], 2 + 6),
    "evaluation.py": (["passages=300", "queries=5", "k=2", "d=8", "batch=16"], 2 + 4),
}
NO_SCRIPTS = {
    "clustered_embeddings.py", "gpu_fixtures.py", "gpu_step.py", "measure.py", "plaid_side.py", "published_way.py",
    "random_model.py", "versions.py",
}  # fmt: skip

GPU_CHECKS = {
    "device", "maxsims", "steps", "collectives", "training", "search", "encoding", "recompiles", "published_step",
    "compiled_step",
}  # fmt: skip
# Packages that may be missing on a GPU machine.
MISSING = ["hydra", "omegaconf", "open_clip", "faiss", "wandb", "datasets"]
WITHOUT_MISSING = f"""
import runpy, sys
sys.modules.update(dict.fromkeys({MISSING}))
sys.path.insert(0, {str(SCRIPTS)!r})
runpy.run_path({str(SCRIPTS / "gpu.py")!r}, run_name="__main__")
"""


def test_every_script_is_tested() -> None:
    assert {p.name for p in SCRIPTS.glob("*.py")} - NO_SCRIPTS == {*RUNS, "gpu.py"}


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peak memory of a CPU run is read from /proc")
@pytest.mark.parametrize("script", RUNS)
def test_script_prints_table(script: str, tmp_path: Path) -> None:
    options, lines = RUNS[script]
    done = subprocess.run([sys.executable, SCRIPTS / script, *options], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    table = [line for line in done.stdout.splitlines() if line.startswith("|")]
    assert len(table) == lines, done.stdout
    assert len({line.count("|") for line in table[:3]}) == 1
    if "plot=plot.png" in options:
        assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    if script == "step.py":  # all implementations compute the same loss
        line = next(line for line in done.stdout.splitlines() if line.startswith("loss: "))
        losses = [float(loss) for loss in re.findall(r" (\d+\.\d+)", line)]
        assert len(losses) == 3
        assert losses == pytest.approx([losses[0]] * 3, abs=1e-5)


@pytest.mark.slow
def test_gpu_checks_pass_on_cpu_with_few_packages(tmp_path: Path) -> None:
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-c", WITHOUT_MISSING, "limit=inf"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    lines = re.findall(r"^([A-Z]+) +([^:]+):", done.stdout, flags=re.MULTILINE)
    names = {kind: {name for each, name in lines if each == kind} for kind, _ in lines}
    assert "FAIL" not in names, done.stdout + done.stderr
    assert "SKIP" not in names, done.stdout
    assert names["DONE"] == GPU_CHECKS
    assert len(names["PASS"]) == 18, done.stdout
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_versions_compares_each_number_of_two_checkouts() -> None:
    command = [
        sys.executable,
        SCRIPTS / "versions.py",
        f"before={SCRIPTS.parents[1]}",
        "script=resampling.py",
        "repeats=1",
    ]
    done = subprocess.run([*command, "queries=20"], capture_output=True, text=True, check=True)
    rows = [line.strip("| ").split(" | ") for line in done.stdout.splitlines() if line.startswith("|")][2:]
    assert len({(row, column) for row, column, *_ in rows}) == len(rows) >= 6
    for _, _, before, after, ratio in rows:
        assert float(before) == 0 or abs(float(after) / float(before) - float(ratio)) < 1e-2 * float(ratio)


def test_versions_reads_numbers_of_tables() -> None:
    numbers = runpy.run_path(str(SCRIPTS / "versions.py"))["numbers"]
    text = "no | table\n| side | rate | peak |\n|---|--:|--:|\n| plain | 1,020 | 22 MiB |\n\n| n | x |\n|--|--|\n| 3 | - |\n"
    assert list(numbers(text)) == [(("1: plain", "rate"), 1020), (("1: plain", "peak"), 22)]
