"""How far long work is: a bar on a terminal; elsewhere, as in a batch job, a line in the log every half minute."""

from __future__ import annotations

import io
import logging
import sys
from typing import Any

from tqdm import tqdm

log = logging.getLogger(__name__)

SECONDS = 30.0


def progress_bar(*args: Any, **options: Any) -> tqdm:
    """A `tqdm`, with its arguments, whose output suits where standard error goes to.

    Off a terminal it writes no carriage returns: it tells the log every `SECONDS`, and nothing where the work is done sooner.
    """
    return (tqdm if sys.stderr.isatty() else _Lines)(*args, **options)


class _Lines(tqdm):
    def __init__(self, *args: Any, **options: Any) -> None:
        own = {
            "file": io.StringIO(),
            "delay": SECONDS,
            "mininterval": SECONDS,
            "maxinterval": SECONDS,  # the most that tqdm's monitor waits, 10 s unless told
            "bar_format": "{desc}: {n_fmt} of {total_fmt}, {elapsed} so far, {remaining} left, {rate_fmt}",
        }
        super().__init__(*args, **options | own)

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        if msg != "":  # what a bar that is not to stay is wiped out with
            log.info("%s", self)
