"""Children of this process that run the command line, and how they end.

Importing torch takes longer than a small run, so a child is a fork of a process that
has imported all and computed nothing: no thread, no OpenMP pool is there to be lost.
From then on it is a process like any other, and signals are signals. Others replace
themselves by ``python -m streamkm``.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from functools import partial
from typing import TYPE_CHECKING

from streamkm import cli
from streamkm.distributed import board
from streamkm.runs import predict
from streamkm.sinks import registry
from streamkm.stream import plan

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

#: So that small arrays have several windows, and outputs several chunks.
SMALL_WINDOW_BYTES, SMALL_CHUNK_ROWS = 1 << 16, 700
#: A child that takes longer hangs.
LONGEST_S = 120.0
#: How often it is looked whether a child has ended.
STEP_S = 0.0005

_ENDED = os.WEXITED | os.WNOHANG | os.WNOWAIT
_NOTED = {signal.SIGTERM, signal.SIGINT}


class Child:
    """One process that runs the command line."""

    def __init__(
        self,
        arguments: Sequence[str],
        log: Path,
        *,
        executed: bool,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        """Start it; with `executed` as ``python -m streamkm`` over arrays of any size.

        With `variables` of its environment, it is one of several processes, which share a log.
        """
        assert threading.active_count() == 1, "threads are lost in a fork"
        self.log = log
        signal.pthread_sigmask(signal.SIG_BLOCK, _NOTED)
        self.pid = os.fork()
        if self.pid == 0:
            _become(arguments, log, executed=executed, variables=variables)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _NOTED)

    def has_ended(self) -> bool:
        """Whether it has; its number stays its own until `wait`."""
        return os.waitid(os.P_PID, self.pid, _ENDED) is not None

    def wait_for(self, condition: Callable[[], bool], step_s: float = 0.0002) -> bool:
        """Wait for `condition`; False if the child ended first."""
        # As in `wait`; one look takes longer than its sleep.
        for _ in range(int(LONGEST_S / max(step_s, STEP_S / 10))):
            if condition():
                break
            if self.has_ended():
                return False
            time.sleep(step_s)
        return not self.has_ended()

    def send(self, number: signal.Signals) -> None:
        """A signal; one that comes too late does nothing."""
        os.kill(self.pid, number)

    def pause(self, seconds: float) -> bool:
        """Stop it, and let it go on; whether it lived to be stopped."""
        self.send(signal.SIGSTOP)
        found = os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        if found is None or found.si_code != os.CLD_STOPPED:
            return False
        time.sleep(seconds)
        self.send(signal.SIGCONT)
        return True

    def wait(self) -> int | None:
        """Exit status, or minus the signal that it died of; None if it hung and was killed."""
        # Counted in sleeps, not by the clock: a campaign may itself be stopped for a while.
        for _ in range(int(LONGEST_S / STEP_S)):
            if self.has_ended():
                break
            time.sleep(STEP_S)
        else:
            self.send(signal.SIGKILL)
            os.waitpid(self.pid, 0)
            return None
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def in_a_fork(work: Callable[[], None]) -> None:
    """Do `work`, which may start threads, in a process of its own."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            work()
            status = 0
        except BaseException:  # noqa: BLE001  the fork must not go on as its parent
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(status)
    if os.waitpid(pid, 0)[1]:
        raise RuntimeError("a fork failed")


def _become(
    arguments: Sequence[str], log: Path, *, executed: bool, variables: Mapping[str, str] | None
) -> None:
    """Never come back: run the command line and end."""
    status = 130
    try:
        how = os.O_TRUNC if variables is None else os.O_APPEND
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | how, 0o644)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _NOTED)
        if executed:
            os.execv(sys.executable, [sys.executable, "-m", "streamkm", *arguments])
        plan.WINDOW_BYTES = SMALL_WINDOW_BYTES
        os.fsync = lambda fd: None  # A kill loses nothing that was written.
        # A run takes a second: so do those who look for a process that is lost.
        board.BEAT_S, board.SILENCE_S, board.ANSWER_S, board.LINGER_S = 0.1, 1.0, 2.0, 2.0
        os.environ.update(variables or {})
        predict.open_sink = partial(registry.open_sink, chunk_rows=SMALL_CHUNK_ROWS)  # type: ignore[attr-defined]
        status = cli.main(arguments)
    except KeyboardInterrupt:
        pass  # As Python itself ends of it, outside of `main`.
    except SystemExit as error:
        status = int(error.code or 0)
    except BaseException:  # noqa: BLE001  as above
        sys.excepthook(*sys.exc_info())
        status = 70
    finally:
        os._exit(status)
