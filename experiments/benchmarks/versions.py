"""One benchmark of two checkouts, run alternately: every number of its tables before, after, and their ratio.

    git worktree add /tmp/before COMMIT
    python experiments/benchmarks/versions.py before=/tmp/before script=step.py repeats=3 backbone=tiny pairs=8

Each run is a process of its own, with the checkout's package and its own copy of the script, so that the two need not have the
same Python API; both print Markdown tables. The versions take turns, and start in turns too. Options: before and after (folders
of checkouts; after is this one), script (a file of experiments/benchmarks), repeats; all others are passed to the script.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parents[2]


def main() -> None:
    """Run both sides and print the table."""
    options = dict(argument.split("=", 1) for argument in sys.argv[1:])
    folders = {side: Path(options.pop(side, HERE)).resolve() for side in ("before", "after")}
    script, repeats = options.pop("script"), int(options.pop("repeats", "3"))
    arguments = [f"{key}={value}" for key, value in options.items()]
    print(script, *arguments, f"repeats={repeats}", flush=True)
    found: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(lambda: {side: [] for side in folders})
    for repeat in range(repeats):
        for side in sorted(folders, reverse=repeat % 2 == 0):
            for key, number in numbers(output(folders[side], script, arguments)):
                found[key][side].append(number)
    print("| row | column | before | after | after / before |\n|---|---|--:|--:|--:|")
    for (row, column), sides in found.items():
        if not all(sides.values()):
            print(f"| {row} | {column} | only in {', '.join(side for side, seen in sides.items() if seen)} | | |")
            continue
        before, after = (statistics.median(sides[side]) for side in folders)
        print(f"| {row} | {column} | {before:g} | {after:g} | {after / before if before else float('nan'):.3f} |")


def output(folder: Path, script: str, arguments: list[str]) -> str:
    """What a checkout's script prints; exits with its errors if it fails."""
    scripts = folder / "experiments" / "benchmarks"
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    done = subprocess.run(
        [sys.executable, script, *arguments], cwd=scripts, env=environment, capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(f"{scripts / script} failed:\n{done.stderr}")
    return done.stdout


def numbers(text: str) -> Iterator[tuple[tuple[str, str], float]]:
    """Each number in the Markdown tables of a text, with the label of its row and the heading of its column.

    The label is the row's number in the text and its cells up to the last one that is not a number.
    """
    header: list[str] = []
    row = 0
    for line in text.splitlines():
        if not line.startswith("|"):
            header = []
            continue
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not header:
            header = cells
        elif not set(line) <= set("|-: "):
            row += 1
            values = [number(cell) for cell in cells]
            first = max((at for at, value in enumerate(values) if value is None), default=0) + 1
            label = " ".join([f"{row}:", *cells[:first]])
            yield from (
                ((label, heading), value)
                for heading, value in zip(header[first:], values[first:], strict=True)
                if value is not None
            )


def number(cell: str) -> float | None:
    """The number that a cell starts with; None where it starts with none."""
    try:
        return float(cell.split(" ")[0].replace(",", ""))
    except ValueError:
        return None


if __name__ == "__main__":
    main()
