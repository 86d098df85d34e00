"""Turns signals into a request that a run answers at its next batch."""

from __future__ import annotations

import signal
import threading
from typing import TYPE_CHECKING

from streamkm.errors import StreamkmError

if TYPE_CHECKING:
    from types import FrameType, TracebackType

__all__ = ["StopRequest", "stopped_by"]

#: Somebody, or the system, wants the process to end.
INSISTENT = (signal.SIGTERM, signal.SIGINT)
#: A batch system warns that it will end the job (SIGUSR1 or SIGUSR2, whichever it was told to
#: send), or a terminal was closed. Such a warning comes to every process of a group, and may come
#: from several senders at once, so that a second one means no more than the first.
WARNINGS = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)


class StopRequest:
    """Within its ``with`` block signals that would end the process only set `signal_name`.

    The second of SIGTERM and SIGINT acts as usual: somebody who presses Ctrl-C twice wants out. A
    warning (SIGUSR1, SIGUSR2 and SIGHUP) never does, however often it comes. It is left alone where
    it would not end the process: nohup ignores SIGHUP, and a program may have a handler.
    Outside the main thread Python allows no handlers, so none is installed and
    `signal_name` stays None.

    Parameters
    ----------
    with_warnings : bool
        Whether warnings are noted too. Without a checkpoint there is nothing to do on one.
    """

    def __init__(self, *, with_warnings: bool = True) -> None:
        self.signal_name: str | None = None
        self._is_asked = False
        self._with_warnings = with_warnings
        self._previous: dict[int, object] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            numbers = list(INSISTENT)
            if self._with_warnings:
                numbers += [n for n in WARNINGS if signal.getsignal(n) is signal.SIG_DFL]
            for number in numbers:
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number in list(self._previous):
            self._restore(number)

    def end_if_asked(self) -> None:
        """Raise if a signal came: for commands that have nothing to save."""
        if (name := self.signal_name) is not None:
            raise stopped_by(name)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self.signal_name = self.signal_name or signal.Signals(number).name
        if number not in INSISTENT:
            return
        is_first, self._is_asked = not self._is_asked, True
        # The other signal keeps this handler. Both may have come while the main thread was in C,
        # and Python complains with a traceback of one that finds its handler gone by then.
        self._restore(number)
        if not is_first:
            signal.raise_signal(number)

    def _restore(self, number: int) -> None:
        if number in self._previous:
            # Before it sets a handler, Python runs those of signals that have come meanwhile.
            signal.signal(number, self._previous[number])  # type: ignore[arg-type]  # from signal()
            self._previous.pop(number, None)


def stopped_by(name: str) -> StreamkmError:
    """The error of a command that has nothing to save, and got the signal `name`."""
    return StreamkmError(f"stopped by {name}; nothing was written")
