"""Standard output, which may go away: a pipe whose reader has seen enough, a file on a full disk."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ret_lightning.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Suppress what libraries print in addition to the messages of a command, which owns its process.

    Warning filters and `logging.raiseExceptions` are restored afterwards.
    """
    before = logging.raiseExceptions
    # A log that nobody reads any more, or that has no room, is no reason to print tracebacks.
    logging.raiseExceptions = False
    try:
        with warnings.catch_warnings():
            # Pillow warns of large images when it opens them; `decode_image` refuses them by a limit of ours.
            warnings.filterwarnings("ignore", message="Image size .* exceeds limit of .* pixels")
            # It also warns of broken metadata, which does not matter where the pixels can be decoded.
            warnings.filterwarnings("ignore", module=r"PIL\.")
            yield
    finally:
        logging.raiseExceptions = before


def print_lines(lines: Iterable[str]) -> None:
    """Prints lines for as long as somebody reads them; what `lines` raises comes as it is.

    Raises:
        UserError: if standard output cannot be written.
    """
    for line in lines:
        try:
            print(line)
        except OSError as error:
            _give_up(error)
            return
    with printing():
        pass


@contextmanager
def printing() -> Iterator[None]:
    """Surrounds prints, and nothing else that may raise OSError; no error is raised where the reader has gone.

    Raises:
        UserError: if standard output cannot be written.
    """
    try:
        yield
        sys.stdout.flush()
    except OSError as error:
        _give_up(error)


def console(**options: Any) -> Console:
    """A console of `rich` that prints texts as they are; if the reader of a pipe is gone, it raises BrokenPipeError.

    `rich.console.Console` would end the process then, and would parse `[red]` and `:smile:` in names and texts.

    Args:
        options: of `rich.console.Console`.
    """
    from rich.console import Console

    class Raising(Console):
        def on_broken_pipe(self) -> None:
            raise  # called where the error is handled

    return Raising(**{"markup": False, "emoji": False} | options)


def abandon_stdout() -> None:
    """Has what is printed from now on, and what was not written yet, go nowhere: Python would tell of it when it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _give_up(error: OSError) -> None:
    abandon_stdout()
    if not isinstance(error, BrokenPipeError):  # as of `ret-search ... | head`
        raise UserError(
            f"standard output: cannot be written ({error.strerror or error})", code="stdout-not-written"
        ) from error
