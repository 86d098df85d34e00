"""A signal asks for a stop, and a second one acts as usual, whichever of the two it is."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator

import pytest

from streamkm.runs.reporting.signals import StopRequest

BOTH = (signal.SIGINT, signal.SIGTERM)


@pytest.fixture
def usual() -> Iterator[list[int]]:
    """Signals that acted as usual, in order: here to be written down."""
    acted: list[int] = []
    before = {number: signal.signal(number, lambda n, _: acted.append(n)) for number in BOTH}
    yield acted
    for number, handler in before.items():
        signal.signal(number, handler)


def send(*numbers: int) -> None:
    """Signals that come while Python looks at none: at once, as during a long call of C."""
    signal.pthread_sigmask(signal.SIG_BLOCK, BOTH)
    for number in numbers:
        # To this thread: another one would take a signal that is sent to the process, later.
        signal.pthread_kill(threading.get_ident(), number)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, BOTH)


@pytest.mark.parametrize("first", BOTH)
@pytest.mark.parametrize("second", BOTH)
def test_the_second_signal_acts_as_usual(first, second, usual) -> None:
    with StopRequest() as stop_request:
        send(first)
        assert (stop_request.signal_name, usual) == (first.name, [])
        send(second)
        assert (stop_request.signal_name, usual) == (first.name, [second])
        send(second)
    send(*BOTH)
    assert usual == [second, second, *BOTH]


# Breaks with a traceback, "Signal 15 ignored due to race condition", if the first one puts both
# handlers back: what usually comes of SIGTERM is no function of Python.
def test_of_two_signals_at_once_the_second_makes_no_traceback(usual) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with StopRequest() as stop_request:
        send(*BOTH)
    assert stop_request.signal_name == "SIGINT"


def test_of_two_signals_at_once_the_second_is_not_lost(usual) -> None:
    with StopRequest() as stop_request:
        send(*BOTH)
    assert (stop_request.signal_name, usual) == ("SIGINT", [signal.SIGTERM])
