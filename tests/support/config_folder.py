"""A small folder of configs for the tests of the check and of the command shell."""

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
    """Write the configs into `folder`, with some files added or replaced (a name and its content), and give it back."""
    for name, content in {**FILES, **(changes or {})}.items():
        path = folder / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else _dedented(content).encode())
    return folder


def line_of(problem: Problem) -> str:
    """The line of a problem without its code."""
    line, code = split_code(str(problem))
    assert code == problem.code
    return line


def _dedented(text: str) -> str:
    """The text without the indentation of its first line, and without the empty line that it starts with."""
    lines = text.strip("\n").splitlines()
    indent = len(lines[0]) - len(lines[0].lstrip()) if lines else 0
    return "".join(f"{line[indent:]}\n" for line in lines)
