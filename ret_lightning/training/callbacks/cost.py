"""Measure the time, parameters and memory of a run."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer


class Cost(Callback):
    """Measures the cost of a run, including the processes that it was resumed from.

    Times are wall-clock seconds; they include validation, but not startup and data preparation. Memory is that of the
    process of rank 0: the peak resident set size as reported by Linux, and the peak GPU memory allocated by PyTorch.
    The jobs of a sweep may run in one process, so both peaks are reset when a job starts; memory that earlier jobs
    still hold is included.
    """

    def __init__(self) -> None:
        self._fit_seconds = 0.0  # of earlier processes
        self._peaks = {"resident_bytes": 0, "cuda_bytes": 0}  # of earlier processes
        self._fit_started: float | None = None
        self._test_started = 0.0
        self._is_peak_reset = False
        self._measured: dict[str, Any] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Reset the memory peaks and count the parameters."""
        if stage == "fit":
            self._is_peak_reset = _reset_peaks()
            parameters = list(pl_module.parameters())
            self._measured = {
                "parameters": sum(p.numel() for p in parameters),
                "trained_parameters": sum(p.numel() for p in parameters if p.requires_grad),
                "ranks": trainer.world_size,
                "device": _device_name(pl_module.device if trainer.strategy is None else trainer.strategy.root_device),
            }

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock of training."""
        self._fit_started = time.perf_counter()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock of training."""
        self._fit_seconds, self._fit_started = self._training_seconds(), None

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock of the test."""
        self._test_started = time.perf_counter()

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock of the test."""
        self._measured["test_seconds"] = round(time.perf_counter() - self._test_started, 3)

    def collect(self) -> dict[str, Any]:
        """Collect all measurements.

        Returns:
            `training_seconds` and `test_seconds`; `parameters` and `trained_parameters`; the peaks `resident_bytes` and
            `cuda_bytes`, None if unavailable; `ranks` and `device`.
        """
        return {
            **self._measured,
            "training_seconds": round(self._training_seconds(), 3),
            **{name: peak or None for name, peak in self._current_peaks().items()},
        }

    def state_dict(self) -> dict[str, Any]:
        """Return the training time and the memory peaks so far."""
        return {"seconds": self._training_seconds(), "peaks": self._current_peaks()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the training time and the memory peaks of the earlier processes."""
        self._fit_seconds, self._peaks = state_dict["seconds"], dict(state_dict["peaks"])

    def _training_seconds(self) -> float:
        running = 0.0 if self._fit_started is None else time.perf_counter() - self._fit_started
        return self._fit_seconds + running

    def _current_peaks(self) -> dict[str, int]:
        resident = _read_resident_peak() if self._is_peak_reset else 0
        cuda = torch.cuda.max_memory_allocated() if torch.cuda.is_initialized() else 0
        return {
            "resident_bytes": max(self._peaks["resident_bytes"], resident),
            "cuda_bytes": max(self._peaks["cuda_bytes"], cuda),
        }


def _reset_peaks() -> bool:
    """Reset the memory peaks; return whether the peak of the resident set could be reset."""
    if torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()
    if sys.platform != "linux":
        return False
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return _read_resident_peak() > 0
    except OSError:  # not permitted in some containers
        return False


def _read_resident_peak() -> int:
    """Return the peak resident set size since the last reset in bytes, or 0 if it is unavailable."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
