"""What a run costs: time, parameters, memory."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer


class Cost(Callback):
    """Measures a run, also over several processes of which each resumed the one before.

    Seconds are of the wall clock, validation included, start-up and loading of data not. Memory is that of the first rank's
    process: the peak of its resident set, which Linux tells, and what PyTorch had taken of a GPU at most. In a sweep the
    jobs of one process follow each other, so both peaks are reset when a job starts; what earlier jobs still hold counts.
    """

    def __init__(self) -> None:
        self._fit_seconds = 0.0  # of earlier processes
        self._peaks = {"resident_bytes": 0, "cuda_bytes": 0}  # likewise
        self._fit_started: float | None = None
        self._test_started = 0.0
        self._resets = False
        self._measured: dict[str, Any] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forgets the peaks of what ran before in this process."""
        if stage == "fit":
            self._resets = _reset_peaks()
            parameters = list(pl_module.parameters())
            self._measured = {
                "parameters": sum(p.numel() for p in parameters),
                "trained_parameters": sum(p.numel() for p in parameters if p.requires_grad),
                "ranks": trainer.world_size,
                "device": _device(pl_module.device if trainer.strategy is None else trainer.strategy.root_device),
            }

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock."""
        self._fit_started = time.perf_counter()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stops it."""
        self._fit_seconds, self._fit_started = self._seconds(), None

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock of the test."""
        self._test_started = time.perf_counter()

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stops it."""
        self._measured["test_seconds"] = round(time.perf_counter() - self._test_started, 3)

    def measured(self) -> dict[str, Any]:
        """`training_seconds`, `test_seconds`; `parameters`, `trained_parameters`; `resident_bytes` and `cuda_bytes`, peaks,
        None where nothing tells them; `ranks` and `device`."""
        return {
            **self._measured,
            "training_seconds": round(self._seconds(), 3),
            **{name: peak or None for name, peak in self._all_peaks().items()},
        }

    def state_dict(self) -> dict[str, Any]:
        """What was spent so far, for the process that resumes."""
        return {"seconds": self._seconds(), "peaks": self._all_peaks()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes over what earlier processes spent."""
        self._fit_seconds, self._peaks = state_dict["seconds"], dict(state_dict["peaks"])

    def _seconds(self) -> float:
        running = 0.0 if self._fit_started is None else time.perf_counter() - self._fit_started
        return self._fit_seconds + running

    def _all_peaks(self) -> dict[str, int]:
        resident = _resident_peak() if self._resets else 0
        cuda = torch.cuda.max_memory_allocated() if torch.cuda.is_initialized() else 0
        return {
            "resident_bytes": max(self._peaks["resident_bytes"], resident),
            "cuda_bytes": max(self._peaks["cuda_bytes"], cuda),
        }


def _reset_peaks() -> bool:
    """Whether the peak of the resident set could be reset; without that it would be some earlier job's."""
    if torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()
    if sys.platform != "linux":
        return False
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return _resident_peak() > 0
    except OSError:  # some containers do not allow it
        return False


def _resident_peak() -> int:
    """The most bytes of memory that this process had since the last reset; 0 where that is not told."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def _device(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
