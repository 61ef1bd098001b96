"""Names of the files and folders of a run folder, and its JSON files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ret_lightning.runtime.atomic_files import write_text

CONFIG_FILE = "config.yaml"
METRICS_FILE = "metrics.json"  # the metrics of the test split, written last
INTERVALS_FILE = "intervals.json"  # the 95 % confidence interval of each of these metrics, [low, high]
ORIGIN_FILE = "origin.json"  # the weights that were evaluated, and what produced them
COST_FILE = "cost.json"  # time, parameters and memory
FAILURE_FILE = "failure.json"  # why the run failed, if known
TIMINGS_FILE = "timings.json"  # of ret-evaluate: seconds and row counts of its stages
EMBEDDINGS_FOLDER = "embeddings"  # of ret-evaluate: vectors encoded so far, one folder per subset
RANKINGS_FOLDER = "rankings"  # TREC runs and qrels, one of each per subset
CHECKPOINTS_FOLDER = "checkpoints"


def previous_path(path: Path) -> Path:
    """Return the path of a result from before the run was extended: `metrics.previous.json` for `metrics.json`."""
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON object with sorted keys atomically."""
    write_text(path, json.dumps(content, indent=2, sort_keys=True) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; return an empty one if the file does not exist."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
