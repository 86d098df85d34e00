"""One stream for several runs: a window that several of them want is read and copied once.

The runs go on in lock step (see `streamkm.stream.seat`). Each waits for its next window. The
stream serves the run that is furthest behind, and whoever else waits for the same window. So a run
that begins late, or was resumed from an earlier step, catches up first and shares all that follows.
A run that reads something by itself, such as a sample, waits until nobody needs what is in the
slots. Which runs share a window is never decided beforehand: windows are compared as they come.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from streamkm.devices import queues_of
from streamkm.errors import Interrupted
from streamkm.stream.pipeline import stream
from streamkm.stream.seat import Seat, Turn, Wanted
from streamkm.stream.stages import StageTimes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from streamkm.sources.base import Source
    from streamkm.sources.weights import Weights
    from streamkm.stream.plan import Window
    from streamkm.stream.seat import ListedWindows
    from streamkm.stream.slots import HostSlots
    from streamkm.stream.transfer import DeviceWindow

__all__ = ["SharedStream"]

T = TypeVar("T")


class SharedStream:
    """Reads one source for several runs."""

    def __init__(
        self,
        source: Source,
        slots: HostSlots,
        weights: Weights | None = None,
        *,
        on_window: Callable[[DeviceWindow, int], None],
    ) -> None:
        """`on_window` hears of every window before the runs get it, with its pass's `order`."""
        self.slots, self.times = slots, StageTimes()
        self._source, self._weights, self._on_window = source, weights, on_window
        self._open = ExitStack()
        self._windows: Iterator[DeviceWindow] | None = None
        self._listed: ListedWindows | None = None
        self._number = 0

    def run(
        self, works: Sequence[Callable[[Seat], T]], failed: Callable[[BaseException], None]
    ) -> list[T]:
        """Call each of `works` with a seat; returns their results when all have ended.

        Parameters
        ----------
        works : sequence of callable
            Runs that take their slots from the seat.
        failed : callable
            Told of each error as it ends a run, so that the others can be stopped.

        Raises
        ------
        BaseException
            The error that came first, one other than `Interrupted` if there is any.
        """
        seats: list[Seat] = []
        errors: list[BaseException] = []
        results: dict[int, T] = {}
        queues = queues_of(self.slots.device)
        compute = None if queues is None else queues.current()

        def do(number: int, seat: Seat) -> None:
            # A thread begins on the first GPU, on a queue that would not wait for copies.
            with nullcontext() if queues is None else queues.within(compute):
                results[number] = works[number](seat)

        def go_on(seat: Seat, step: Callable[[], None]) -> None:
            step()
            if seat.error is not None:
                errors.append(seat.error)
                failed(seat.error)

        try:
            for number in range(len(works)):
                if errors:
                    break
                seats.append(Seat(self))
                go_on(seats[-1], partial(seats[-1].begin, partial(do, number, seats[-1])))
                # Nobody has a window yet: what ends it so soon keeps the others from beginning.
                while isinstance(seats[-1].wanted, Turn):
                    go_on(seats[-1], partial(seats[-1].give, None))
            while waiting := [seat for seat in seats if seat.wanted is not None]:
                for seat, given in self._served(waiting):
                    go_on(seat, partial(seat.give, given))
        finally:
            self._close()
            for seat in seats:  # Of an error here: nobody waits for a window that never comes.
                seat.abandon()
        errors.sort(key=lambda error: isinstance(error, Interrupted))
        if errors:
            raise errors[0]
        return [results[number] for number in range(len(works))]

    @contextmanager
    def alone(
        self, windows: Iterator[Window], times: StageTimes
    ) -> Iterator[Iterator[DeviceWindow]]:
        """Read `windows` for one run, which has the turn until the ``with`` block ends."""
        self._close()  # There is one set of slots.
        with stream(self._source, windows, self.slots, times, self._weights) as own:
            yield own

    def _served(
        self, waiting: list[Seat]
    ) -> list[tuple[Seat, DeviceWindow | BaseException | None]]:
        """Who gets something now, and what.

        A turn, or the window of who is furthest behind; or an error.
        """
        for seat in waiting:
            if isinstance(seat.wanted, Turn):
                return [(seat, None)]
        wanted = {seat: seat.wanted for seat in waiting if isinstance(seat.wanted, Wanted)}
        first = min(wanted.values(), key=lambda each: each.place)
        try:
            window = self._window(first)
        except Exception as error:  # noqa: BLE001  # each run ends by it, as if it read alone
            self._close()
            return [(seat, error) for seat in waiting]
        self._on_window(window, first.order)
        return [
            (seat, window)
            for seat, each in wanted.items()
            if (each.order, each.window) == (first.order, first.window)
        ]

    def _window(self, wanted: Wanted) -> DeviceWindow:
        """The window that is `wanted`: the next of the open stream, or the first of a new one."""
        if self._listed is None or self._listed.at(self._number) != wanted.window:
            self._close()
            self._listed, self._number = wanted.listed, wanted.number
            ahead = self._listed.ahead(self._number)
            opened = stream(self._source, ahead, self.slots, self.times, self._weights)
            self._windows = self._open.enter_context(opened)
        assert self._windows is not None
        window = replace(next(self._windows), is_shared=True)
        self._number += 1
        # Its run may have ended, and forget none any more.
        self._listed.forget_before(self._number)
        return window

    def _close(self) -> None:
        self._open.close()
        self._windows = self._listed = None
