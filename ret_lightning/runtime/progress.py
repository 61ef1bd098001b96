"""Progress of long operations: a bar on a terminal, otherwise (in a batch job) a log line every half minute."""

from __future__ import annotations

import io
import logging
import sys
from typing import Any

from tqdm import tqdm

log = logging.getLogger(__name__)

LOG_INTERVAL = 30.0  # seconds


def progress_bar(*args: Any, **options: Any) -> tqdm:
    """Return a `tqdm` progress bar, or one that writes log lines if standard error is not a terminal.

    Log lines contain no carriage returns. They are written every `LOG_INTERVAL` seconds, and never for shorter work.

    Args:
        args: Positional arguments of `tqdm`.
        options: Keyword arguments of `tqdm`.
    """
    return (tqdm if sys.stderr.isatty() else _LogLines)(*args, **options)


class _LogLines(tqdm):
    def __init__(self, *args: Any, **options: Any) -> None:
        own = {
            "file": io.StringIO(),
            "delay": LOG_INTERVAL,
            "mininterval": LOG_INTERVAL,
            "maxinterval": LOG_INTERVAL,  # of tqdm's monitor; 10 s by default
            "bar_format": "{desc}: {n_fmt} of {total_fmt}, {elapsed} so far, {remaining} left, {rate_fmt}",
        }
        super().__init__(*args, **options | own)

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        if msg != "":  # tqdm clears a bar with an empty message
            log.info("%s", self)
