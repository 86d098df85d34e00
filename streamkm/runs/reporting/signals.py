"""Turns SIGTERM and SIGINT into a request that a run answers at its next batch."""

from __future__ import annotations

import signal
import threading
from typing import TYPE_CHECKING

from streamkm.errors import StreamkmError

if TYPE_CHECKING:
    from types import FrameType, TracebackType

__all__ = ["StopRequest"]


class StopRequest:
    """Within its ``with`` block the first SIGTERM or SIGINT only sets `signal_name`.

    A second one acts as usual: somebody who presses Ctrl-C twice wants out.
    Outside the main thread Python allows no handlers, so none is installed and
    `signal_name` stays None.
    """

    def __init__(self) -> None:
        self.signal_name: str | None = None
        self._previous: dict[int, object] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
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
            raise StreamkmError(f"stopped by {name}; nothing was written")

    def _note(self, number: int, _frame: FrameType | None) -> None:
        is_first = self.signal_name is None
        self.signal_name = self.signal_name or signal.Signals(number).name
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
