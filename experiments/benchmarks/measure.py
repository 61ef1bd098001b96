"""Time and peak memory of the sides of a comparison, which run alternately in one process."""

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
    """Of one side: the median of its runs in seconds, and how far a run's memory rose above its start, in bytes."""

    seconds: float
    peak: int


def compare(sides: Mapping[str, Callable[[], object]], repeats: int, device: torch.device) -> dict[str, Measured]:
    """Runs every side once to warm up, then all of them in turn, `repeats` times; peaks are the largest seen."""
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
    """Waits for a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def reset_peak(device: torch.device) -> int:
    """Forgets the peak so far; the bytes in use now."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    # What earlier runs freed must go back to the system first, or this one would find it there and seem to need nothing.
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak of the resident set is the present one
    return resident("VmRSS")


def peak(device: torch.device) -> int:
    """The most bytes in use since `reset_peak`: of a GPU's allocator, or the process's resident set."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else resident("VmHWM")


def resident(field: str) -> int:
    """A field of /proc/self/status, bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}; the memory of a CPU run is measured on Linux only")
