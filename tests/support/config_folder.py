"""A small config folder for the tests of the check and of the application."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ret_lightning.config.config_errors import Problem
from ret_lightning.errors import split_code

FILES = {
    "train": """
        defaults:
          - _self_
          - model: small
          - gate@model.gate: lstm
          - trainer: cpu
          - optimizer: adam
          - logger: csv
          - experiment: null
        seed: 1
        output_dir: runs
        resume: null
        hydra:
          run:
            dir: ${output_dir}/run
          sweep:
            dir: ${output_dir}/sweep
          callbacks:
            sweep_setup:
              _target_: ret_lightning.config.SweepSetup
        """,
    "model/small": """
        _target_: tests.support.config_targets.Model
        width: 8
        """,
    "gate/lstm": """
        _target_: tests.support.config_targets.Gate
        hidden: 4
        """,
    "gate/none": """
        _target_: tests.support.config_targets.NoGate
        """,
    "trainer/cpu": """
        _target_: tests.support.config_targets.Trainer
        max_epochs: 2
        """,
    "optimizer/adam": """
        _target_: tests.support.config_targets.Optimizer
        _partial_: true
        lr: 1e-3
        betas: [0.9, 0.99]
        """,
    "logger/csv": """
        csv:
          _target_: tests.support.config_targets.Log
          save_dir: ${output_dir}
        """,
    "logger/none": "",
    "experiment/demo": """
        # @package _global_
        defaults:
          - override /gate@model.gate: none
        trainer:
          max_epochs: 3
        """,
}


def write(folder: Path, changes: Mapping[str, str | bytes] | None = None) -> Path:
    """Write the configs to a folder, and return the folder.

    Args:
        folder: the folder; created if it is missing.
        changes: files to add or replace, name to content.
    """
    for name, content in {**FILES, **(changes or {})}.items():
        path = folder / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else _dedent(content).encode())
    return folder


def line_of(problem: Problem) -> str:
    """Return the line of a problem without its code."""
    line, code = split_code(str(problem))
    assert code == problem.code
    return line


def _dedent(text: str) -> str:
    """Remove the indentation of the first line from all lines, and leading empty lines."""
    lines = text.strip("\n").splitlines()
    indent = len(lines[0]) - len(lines[0].lstrip()) if lines else 0
    return "".join(f"{line[indent:]}\n" for line in lines)
