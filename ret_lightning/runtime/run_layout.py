"""What stands where in a run folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ret_lightning.runtime.atomic_files import write_text

CONFIG_FILE = "config.yaml"
METRICS_FILE = "metrics.json"  # the metrics of the test split, written last
INTERVALS_FILE = "intervals.json"  # of each of these metrics its 95 % interval, [low, high]
ORIGIN_FILE = "origin.json"  # which weights the metrics are of, and what made them
COST_FILE = "cost.json"  # time, parameters and memory
FAILURE_FILE = "failure.json"  # why the run ended before its time, where it could tell
TIMINGS_FILE = "timings.json"  # of an evaluation by itself: seconds of its parts, and how many rows they were for
EMBEDDINGS_FOLDER = "embeddings"  # of an evaluation by itself: what is encoded so far, a folder a subset
RANKINGS_FOLDER = "rankings"  # TREC runs and qrels, one of each a subset
CHECKPOINTS_FOLDER = "checkpoints"


def previous(path: Path) -> Path:
    """Where a result is kept after the run was extended: `metrics.json` becomes `metrics.previous.json`."""
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes a JSON object with sorted keys, whole or not at all."""
    write_text(path, json.dumps(content, indent=2, sort_keys=True) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object; an empty one where there is no such file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
