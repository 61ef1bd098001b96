"""Time and peak memory of compared functions, which run alternately in one process."""

from __future__ import annotations

import ctypes
import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class Measured:
    """Measurements of one function.

    Attributes:
        seconds: median time of a run.
        peak: largest increase of memory during a run, in bytes.
    """

    seconds: float
    peak: int


def compare(sides: Mapping[str, Callable[[], object]], repeats: int, device: torch.device) -> dict[str, Measured]:
    """Measure functions alternately.

    Args:
        sides: name to function.
        repeats: runs of each function, after one warmup run.
        device: that the functions run on.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    peaks = dict.fromkeys(sides, 0)
    for repeat in range(repeats + 1):
        for name, run in sides.items():
            gc.collect()
            before = reset_peak(device)
            start = time.perf_counter()
            kept = run()
            synchronize(device)
            took = time.perf_counter() - start
            peaks[name] = max(peaks[name], peak(device) - before)
            del kept
            if repeat:
                seconds[name].append(took)
    return {name: Measured(statistics.median(seconds[name]), peaks[name]) for name in sides}


def synchronize(device: torch.device) -> None:
    """Wait for the kernels of a GPU; do nothing on a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def reset_peak(device: torch.device) -> int:
    """Reset the peak memory, and return the bytes in use."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    # Return freed memory to the system, or the next run would reuse it without an increase.
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # Linux: resets VmHWM
    return resident("VmRSS")


def peak(device: torch.device) -> int:
    """Return the peak bytes since `reset_peak`, of the GPU allocator or of the resident set."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else resident("VmHWM")


def resident(field: str) -> int:
    """Return a field of /proc/self/status in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}; the memory of a CPU run is measured on Linux only")
