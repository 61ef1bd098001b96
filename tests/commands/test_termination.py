"""Handling of SIGTERM in this process."""

from __future__ import annotations

import signal
import threading

import pytest

from ret_lightning.commands.termination import sigterm_raises
from ret_lightning.errors import Stopped


def test_sigterm_raises_and_the_handler_is_restored() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped) as raised, sigterm_raises():
        signal.getsignal(signal.SIGTERM)(signal.SIGTERM, None)  # called directly, so that no signal can reach pytest
    assert raised.value.exit_code == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is before


def test_handler_is_not_set_in_other_threads() -> None:
    before, entered = signal.getsignal(signal.SIGTERM), []

    def work() -> None:
        with sigterm_raises():
            entered.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert entered == [before]
