"""A signal asks for a stop, and a second one acts as usual, whichever of the two it is."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator

import pytest

from streamkm.runs.reporting.signals import StopRequest

BOTH = (signal.SIGINT, signal.SIGTERM)


#: What a batch system sends ahead of the end, and what comes when a terminal is closed.
WARNINGS = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)
NAMES = [number.name for number in WARNINGS]


@pytest.fixture
def usual() -> Iterator[list[int]]:
    """Signals that acted as usual, in order: here to be written down."""
    acted: list[int] = []
    before = {number: signal.signal(number, lambda n, _: acted.append(n)) for number in BOTH}
    before |= {number: signal.signal(number, signal.SIG_DFL) for number in WARNINGS}
    yield acted
    for number, handler in before.items():
        signal.signal(number, handler)


def send(*numbers: int) -> None:
    """Signals that come while Python looks at none: at once, as during a long call of C."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {*BOTH, *WARNINGS})
    for number in numbers:
        # To this thread: another one would take a signal that is sent to the process, later.
        signal.pthread_kill(threading.get_ident(), number)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {*BOTH, *WARNINGS})


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


@pytest.mark.parametrize("number", WARNINGS)
@pytest.mark.usefixtures("usual")
def test_a_warning_asks_for_a_stop(number) -> None:
    with StopRequest() as stop_request:
        send(number)
        assert stop_request.signal_name == number.name
    assert signal.getsignal(number) is signal.SIG_DFL


# Breaks when a terminal that is closed (the shell and the kernel both send SIGHUP), or SLURM with
# a script that passes signals on, ends a run while it saves.
def test_a_warning_that_comes_again_changes_nothing(usual) -> None:
    with StopRequest() as stop_request:
        for _ in range(3):
            send(*WARNINGS)
        assert (stop_request.signal_name in NAMES, usual) == (True, [])
        send(signal.SIGTERM)  # The first that insists: the checkpoint is on its way.
        assert usual == []
        send(signal.SIGTERM)
        assert usual == [signal.SIGTERM]


# Breaks when nohup no longer keeps a run alive, or a program's own handler is not called.
@pytest.mark.parametrize("number", WARNINGS)
def test_a_warning_that_does_not_end_the_process_is_left_alone(number, usual) -> None:
    signal.signal(number, signal.SIG_IGN)
    with StopRequest() as stop_request:
        send(number)
    assert stop_request.signal_name is None
    signal.signal(number, lambda n, _: usual.append(n))
    with StopRequest() as stop_request:
        send(number)
    assert (stop_request.signal_name, usual) == (None, [number])


@pytest.mark.usefixtures("usual")
def test_where_nothing_could_be_saved_warnings_act_as_usual() -> None:
    with StopRequest(with_warnings=False):
        assert {signal.getsignal(number) for number in WARNINGS} == {signal.SIG_DFL}
