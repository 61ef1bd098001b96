"""Printing to standard output, which may be a closed pipe or a file on a full disk."""

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
    """Suppress the warnings and logging errors of libraries while a command runs.

    Warning filters and `logging.raiseExceptions` are restored afterwards.
    """
    before = logging.raiseExceptions
    # A log stream that is closed or on a full disk must not print tracebacks.
    logging.raiseExceptions = False
    try:
        with warnings.catch_warnings():
            # Pillow warns when it opens a large image; `decode_image` enforces our own limit.
            warnings.filterwarnings("ignore", message="Image size .* exceeds limit of .* pixels")
            # Pillow warns about broken metadata, which is harmless if the pixels can be decoded.
            warnings.filterwarnings("ignore", module=r"PIL\.")
            yield
    finally:
        logging.raiseExceptions = before


def print_lines(lines: Iterable[str]) -> None:
    """Print lines until the reader of standard output closes it. Exceptions raised by `lines` propagate unchanged.

    Raises:
        UserError: If standard output cannot be written.
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
    """Handle write errors of the print calls in the block, and ignore a closed pipe.

    The block must contain nothing else that raises OSError.

    Raises:
        UserError: If standard output cannot be written.
    """
    try:
        yield
        sys.stdout.flush()
    except OSError as error:
        _give_up(error)


def console(**options: Any) -> Console:
    """Return a `rich` console that prints texts verbatim and raises BrokenPipeError if the reader of a pipe is gone.

    `rich.console.Console` itself exits the process in that case, and interprets `[red]` and `:smile:` in texts.

    Args:
        options: Keyword arguments of `rich.console.Console`.
    """
    from rich.console import Console

    class Raising(Console):
        def on_broken_pipe(self) -> None:
            raise  # re-raises the BrokenPipeError that rich is handling

    return Raising(**{"markup": False, "emoji": False} | options)


def abandon_stdout() -> None:
    """Redirect standard output, including its unwritten buffer, to `os.devnull`, so that exiting reports no error."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _give_up(error: OSError) -> None:
    abandon_stdout()
    if not isinstance(error, BrokenPipeError):  # as in `ret-search ... | head`
        raise UserError(
            f"standard output: cannot be written ({error.strerror or error})", code="stdout-not-written"
        ) from error
