"""A seat at a shared stream: stands where the host slots of a run stand, for one of several runs.

Runs that share their reads go on in lock step, one at a time: each in a thread of its own, which
holds the turn from one window to the next. So the code of a run is the same whether it reads alone
or beside others, and nothing in it runs at the same time as another run. Generators were rejected:
every function between the loop over batches and the run itself would have to be one.
"""

from __future__ import annotations

import threading
from collections import deque
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from streamkm.stream.slots import HostSlots

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator
    from contextlib import AbstractContextManager

    from streamkm.stream.plan import Window
    from streamkm.stream.stages import StageTimes
    from streamkm.stream.transfer import DeviceWindow

__all__ = ["ListedWindows", "Seat", "Turn", "Wanted"]


class Host(Protocol):
    """What a seat needs of the stream that it belongs to."""

    slots: HostSlots
    times: StageTimes

    def alone(
        self, windows: Iterator[Window], times: StageTimes
    ) -> AbstractContextManager[Iterator[DeviceWindow]]:
        """Read `windows` for one seat, which has the turn until the ``with`` block ends."""


class ListedWindows:
    """The windows of one pass by number, made as they are asked for; several threads may ask."""

    def __init__(self, windows: Iterator[Window]) -> None:
        self._windows, self._lock = windows, threading.Lock()
        self._held: deque[Window] = deque()
        self._first = 0

    def at(self, number: int) -> Window | None:
        """Window `number`, which is not forgotten yet; None after the last one."""
        with self._lock:
            while self._first + len(self._held) <= number:
                window = next(self._windows, None)
                if window is None:
                    return None
                self._held.append(window)
            return self._held[number - self._first]

    def forget_before(self, number: int) -> None:
        """Drop the windows before `number`."""
        with self._lock:
            while self._held and self._first < number:
                self._held.popleft()
                self._first += 1

    def ahead(self, number: int) -> Iterator[Window]:
        """All windows from `number` on."""
        while (window := self.at(number)) is not None:
            yield window
            number += 1


@dataclass(frozen=True)
class Wanted:
    """The window that a seat waits for."""

    listed: ListedWindows
    number: int
    window: Window
    order: int
    """Where its pass stands among those of a run: a pass of a lower number comes first."""

    @property
    def place(self) -> tuple[int, int, int, int]:
        """Where the window stands in a run: who is behind is served first."""
        seed = -1 if self.window.order_seed is None else self.window.order_seed[0]
        return self.order, seed, self.window.epoch, self.window.first_batch


@dataclass(frozen=True)
class Turn:
    """What a seat waits for that is to read by itself: its turn, and no window in the slots."""


class Seat(HostSlots):
    """One run's place at a shared stream; use it where `HostSlots` are used."""

    def __init__(self, host: Host) -> None:
        # Slots are those of the host: none are allocated here.
        self._host = host
        self.memory, self.device, self.buffers = host.slots.memory, host.slots.device, []
        self.wanted: Wanted | Turn | None = None
        """What the run waits for; None while it works, and when it has ended."""
        self.error: BaseException | None = None
        """How the run ended, unless it came to its end."""
        self.is_over = False
        self._given: DeviceWindow | BaseException | None = None
        """None for a turn."""
        self._go, self._back = threading.Semaphore(0), threading.Semaphore(0)
        self._before_s = dict.fromkeys(("reading", "copying"), 0.0)

    def __enter__(self) -> Seat:
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the slots to the host."""

    # ---- for the host ------------------------------------------------------------------------

    def begin(self, work: Callable[[], None]) -> None:
        """Run `work` in a thread until it waits for a window, or ends."""

        def body() -> None:
            self._go.acquire()
            try:
                work()
            except BaseException as error:  # noqa: BLE001  # for the host, which raises it
                self.error = error
            self.wanted, self.is_over = None, True
            self._back.release()

        self._thread = threading.Thread(target=body, name="streamkm-seat", daemon=True)
        self._thread.start()
        self._take_turn()

    def give(self, given: DeviceWindow | BaseException | None) -> None:
        """Hand over what is wanted, None for a turn, or an error; return at the next wait."""
        self._given, self.wanted = given, None
        self._take_turn()

    def abandon(self) -> None:
        """End the run where it waits, or where it would wait next: no window comes any more.

        Nobody waits for the end of one that is at work: then the host itself was interrupted.
        """
        if self.is_over:
            return
        waits = self.wanted is not None
        self._given = KeyboardInterrupt()
        self._go.release()
        if waits:
            self._thread.join()

    def _take_turn(self) -> None:
        self._go.release()
        self._back.acquire()

    # ---- for the run -------------------------------------------------------------------------

    @contextmanager
    def stream(
        self, windows: Iterator[Window], times: StageTimes, order: int | None
    ) -> Iterator[Iterator[DeviceWindow]]:
        """As `streamkm.stream.pipeline.stream`; with `order` None nobody else gets the windows."""
        if order is None:
            # Others may still be about to get the window that this run has had last.
            self._waited_for(Turn())
            with self._host.alone(windows, times) as own:
                yield own
            return
        with closing(self._shared(ListedWindows(windows), times, order)) as shared:
            yield shared

    def _shared(
        self, listed: ListedWindows, times: StageTimes, order: int
    ) -> Generator[DeviceWindow]:
        number = 0
        times.n_readers = 1  # The host has divided the readers' time by their number.
        self._before_s |= {stage: self._host.times.busy_s[stage] for stage in self._before_s}
        while (window := listed.at(number)) is not None:
            with times.waiting("arithmetic"):
                given = self._waited_for(Wanted(listed, number, window, order))
            assert given is not None
            self._count(times, given.x_ND.nbytes)
            with times.working("arithmetic"):
                yield given
            number += 1
            listed.forget_before(number)

    def _waited_for(self, wanted: Wanted | Turn) -> DeviceWindow | None:
        self.wanted = wanted
        self._back.release()
        self._go.acquire()
        given, self._given = self._given, None
        if isinstance(given, BaseException):
            raise given
        return given

    def _count(self, times: StageTimes, n_bytes: int) -> None:
        """Add what the host has spent on windows since the last one to the times of the run."""
        for stage, before_s in self._before_s.items():
            now_s = self._host.times.busy_s[stage]
            times.add(stage, busy=now_s - before_s, n_bytes=n_bytes * (stage == "reading"))
            self._before_s[stage] = now_s
