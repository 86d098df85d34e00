"""One stream for several runs: each window is read once, whoever is behind catches up first."""

from __future__ import annotations

import signal
import threading
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from streamkm.errors import ReadError
from streamkm.sources.memory import MemorySource
from streamkm.stream.pipeline import open_slots, stream
from streamkm.stream.plan import ReadingPlan
from streamkm.stream.shared import SharedStream
from streamkm.stream.slots import StreamMemory
from streamkm.stream.stages import StageTimes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from streamkm.sources.base import RowRange
    from streamkm.stream.seat import Seat
    from streamkm.stream.slots import HostSlots

X = np.arange(400, dtype=np.float32).reshape(100, 4)
READING = ReadingPlan(n_rows=100, block_rows=10, window_blocks=2, batch_rows=10, seed=0)


class Counted(MemorySource):
    """A source that says which rows it was asked for, and fails at one row if told to."""

    def __init__(self) -> None:
        super().__init__(X)
        self.n_rows_read, self.fails_at = 0, -1

    def read(self, rows: RowRange, out: np.ndarray) -> None:
        if rows.start <= self.fails_at < rows.stop:
            raise ReadError("the disk has gone")
        self.n_rows_read += len(rows)
        super().read(rows, out)


@pytest.fixture
def source() -> Counted:
    return Counted()


@pytest.fixture
def slots(source: Counted) -> Iterator[HostSlots]:
    memory = StreamMemory(3, 20, 20 * source.spec.row_bytes, 2)
    with open_slots(source, memory, torch.device("cpu")) as slots:
        yield slots


def shared(source: Counted, slots: HostSlots) -> SharedStream:
    return SharedStream(source, slots, on_window=lambda _window, _order: None)


def rows_of(source: Counted, seat: HostSlots, epoch: int = 0, start: int = 0) -> list[float]:
    """The first feature of every row of an epoch, in the order of use."""
    found: list[float] = []
    windows = READING.windows(epoch, start)
    with stream(source, windows, seat, StageTimes(), None, 2) as on_device:
        for window in on_device:
            for _, rows in window.batches(start):
                found += window.taken(rows)[:, 0].tolist()
    return found


def failed(_error: BaseException) -> None:
    """Nobody has to be stopped."""


# Breaks when a window is read once for each run, or given to a run in another's order.
def test_runs_share_every_window(source: Counted, slots: HostSlots) -> None:
    alone = rows_of(source, slots)
    source.n_rows_read = 0
    works: list[Callable[[Seat], list[float]]] = [lambda seat: rows_of(source, seat)] * 3
    assert shared(source, slots).run(works, failed) == [alone] * 3
    assert source.n_rows_read == 100


# Breaks when a run that goes on to read by itself does so over a window that others have not got.
def test_who_reads_by_itself_waits_until_others_have_their_window(
    source: Counted, slots: HostSlots
) -> None:
    def also_alone(seat: Seat) -> list[float]:
        found = rows_of(source, seat)
        for _ in range(4):
            with stream(source, READING.windows(7), seat, StageTimes()) as windows:
                for window in windows:
                    assert not window.is_shared
                    found += window.taken(slice(0, 1))[:, 0].tolist()
        return found + rows_of(source, seat, epoch=1)

    expected = rows_of(source, slots)
    works = [also_alone, also_alone, lambda seat: rows_of(source, seat)]
    one, other, last = shared(source, slots).run(works, failed)
    assert one == other
    assert one[:100] == last == expected
    assert one[-100:] == rows_of(source, slots, epoch=1)


# Breaks when a run that was resumed from an earlier step reads on alone to its end.
def test_who_is_behind_catches_up(source: Counted, slots: HostSlots) -> None:
    def late(seat: Seat) -> list[float]:
        return rows_of(source, seat, start=6)

    ends = {start: rows_of(source, slots, start=start) for start in (0, 6)}
    source.n_rows_read = 0
    works = [late, lambda seat: rows_of(source, seat)]
    assert shared(source, slots).run(works, failed) == [ends[6], ends[0]]
    assert source.n_rows_read == 100


# Breaks when a run that ends early takes its windows with it, or others wait for it.
def test_runs_may_end_early(source: Counted, slots: HostSlots) -> None:
    def brief(seat: Seat) -> list[float]:
        windows = READING.windows(0)
        with stream(source, windows, seat, StageTimes(), None, 2) as on_device:
            return next(on_device).x_ND[:, 0].tolist()

    both = rows_of(source, slots) + rows_of(source, slots, epoch=1)
    works = [brief, lambda seat: rows_of(source, seat) + rows_of(source, seat, epoch=1)]
    assert shared(source, slots).run(works, failed)[1] == both


# Breaks when an error of one leaves the threads of the others waiting.
def test_an_error_of_one_is_told_and_the_others_end(source: Counted, slots: HostSlots) -> None:
    told: list[str] = []

    def broken(seat: Seat) -> list[float]:
        rows_of(source, seat)
        raise ValueError("no such thing")

    works = [lambda seat: rows_of(source, seat), broken]
    with pytest.raises(ValueError, match="no such thing"):
        shared(source, slots).run(works, lambda error: told.append(str(error)))
    assert told == ["no such thing"]


# Breaks when the error of a run that was stopped hides the one that it was stopped for.
def test_the_error_that_came_first_is_raised(source: Counted, slots: HostSlots) -> None:
    stopped: list[str] = []

    def other(seat: Seat) -> None:
        with stream(source, READING.windows(0), seat, StageTimes(), None, 2) as windows:
            for _ in windows:
                if stopped:
                    raise ValueError("stopped by the error of another")

    def broken(seat: Seat) -> None:
        with stream(source, READING.windows(0), seat, StageTimes(), None, 2) as windows:
            next(windows)
            raise ValueError("no such thing")

    with pytest.raises(ValueError, match="no such thing"):
        shared(source, slots).run([other, broken], lambda error: stopped.append(str(error)))


# Breaks when a run goes on waiting, and holds its folder, after somebody has pressed Ctrl-C twice.
def test_no_thread_is_left_after_an_interrupt(source: Counted, slots: HostSlots) -> None:
    interrupted, ended = threading.Event(), []

    def run(seat: Seat, *, interrupts: bool) -> None:
        try:
            with stream(source, READING.windows(0), seat, StageTimes(), None, 2) as windows:
                next(windows)
                if interrupts:
                    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
                    interrupted.wait(10)
                next(windows)
        finally:
            ended.append(threading.current_thread())

    works = [partial(run, interrupts=False), partial(run, interrupts=True)]
    with pytest.raises(KeyboardInterrupt):
        shared(source, slots).run(works, failed)
    interrupted.set()
    for thread in threading.enumerate():
        if thread.name == "streamkm-seat":
            thread.join(10)
            assert not thread.is_alive()
    assert len(ended) == 2


# Breaks when a run waits for a window that cannot be read.
def test_rows_that_cannot_be_read_end_every_run(source: Counted, slots: HostSlots) -> None:
    source.fails_at = 55
    told: list[str] = []
    works: list[Callable[[Seat], list[float]]] = [lambda seat: rows_of(source, seat)] * 2
    with pytest.raises(ReadError, match="the disk has gone"):
        shared(source, slots).run(works, lambda error: told.append(str(error)))
    assert len(told) == 2
