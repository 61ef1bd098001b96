"""Where things are in the checkout."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[2]
CONF = ROOT / "conf"
EXPERIMENTS = ROOT / "experiments"
NOTEBOOKS = ROOT / "notebooks"
ASSETS = ROOT / "tests" / "assets"
REFERENCE = ASSETS / "reference"
