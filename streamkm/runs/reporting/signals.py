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
        self._restore()

    def end_if_asked(self) -> None:
        """Raise if a signal came: for commands that have nothing to save."""
        if (name := self.signal_name) is not None:
            raise StreamkmError(f"stopped by {name}; nothing was written")

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self.signal_name = signal.Signals(number).name
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]  # what signal() gave us
        self._previous = {}
