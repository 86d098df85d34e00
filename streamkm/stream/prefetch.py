"""Reads windows ahead of the arithmetic: reader threads fill a fixed set of host slots.

The threads share one queue of block reads. A window is opened when a slot is
free. Idle threads read its blocks, and it is handed over in the order of the
reading plan when its last block has arrived. The number of slots bounds the
memory, and the order never depends on which thread was faster.

Threads were chosen over processes: NumPy, numcodecs and the operating system
release the interpreter lock while they read and decode, and no slot has to be
shared between processes.
"""

from __future__ import annotations

import threading
from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import compress
from typing import TYPE_CHECKING

import numpy as np

from streamkm.devices import is_host
from streamkm.errors import ReadError, StreamkmError
from streamkm.ranges import named
from streamkm.sources.base import ReadsTogether
from streamkm.sources.kept import KeptRows, held_rows
from streamkm.stream.slots import WEIGHT_BYTES, weights_offset

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from streamkm.sources.base import RowRange, Source
    from streamkm.sources.weights import Weights
    from streamkm.stream.plan import Window
    from streamkm.stream.residency import DeviceRows
    from streamkm.stream.slots import HostSlots
    from streamkm.stream.stages import StageTimes

__all__ = ["HostWindow", "prefetch"]

#: Bytes of the blocks that a thread takes from the queue at once, about: to take a task and to
#: account for it costs as much as to copy 200 KiB.
TASK_BYTES = 8 << 20


@dataclass
class HostWindow:
    """A window whose rows lie in a host slot until `release` is called."""

    window: Window
    rows_ND: np.ndarray
    """Rows in the order of reading, in their stored dtype."""
    weights_N: np.ndarray | None = None
    """Weights of the rows, float64; None where they have none."""
    order: np.ndarray | None = None
    """Positions in `rows_ND` in the order of use, int32; None for the order of reading."""
    release: Callable[[], None] = field(default=lambda: None)
    """Give the slot back to the readers; `rows_ND` must not be used afterwards."""
    is_shared: bool = False
    """Whether `rows_ND` are memory of the source, in place of the slot's: to be read into, if they
    are not there yet, and not to be changed."""
    on_device: tuple[bool, ...] = ()
    """Of each read of the window, whether its rows lie on the device and were not read; empty if
    all were."""
    unfinished: int = 0
    """Tasks that are left: the reads, some at a time, and the order."""

    @property
    def bytes_on_device(self) -> int:
        """Bytes of the rows that were not read, because they lie on the device."""
        reads, row_bytes = self.window.reads, self.rows_ND.strides[0]
        return row_bytes * sum(map(len, compress(reads, self.on_device)))


@contextmanager
def prefetch(
    source: Source,
    windows: Iterator[Window],
    slots: HostSlots,
    n_threads: int,
    times: StageTimes,
    weights: Weights | None = None,
    resident: DeviceRows | None = None,
) -> Iterator[Iterator[HostWindow]]:
    """Read `windows` of `source` in order with `n_threads` threads, as far ahead as slots allow.

    With `weights` those of the rows are read with them. Rows that are `resident` on the device by
    then are not read: the slot holds anything in their place. On the CPU, rows that follow one
    another in host memory are used there.

    Yields an iterator of `HostWindow`. Each keeps its slot until it is released. When the
    ``with`` block ends, for whatever reason, the threads stop and are joined. With 0 threads, or
    where all rows are used where they lie, the calling thread takes each window when it is asked
    for: to start threads and to wait for them takes a tenth of a short fit.

    Raises
    ------
    ReadError
        From the iterator, if a read failed; the message names the source and the rows.
    """
    readers = _Readers(source, windows, slots, times, weights, resident)
    if n_threads == 0 or readers.have_nothing_to_read():
        yield readers.one_by_one()
        return
    threads = [
        threading.Thread(target=readers.work, name=f"streamkm-reader-{i}", daemon=True)
        for i in range(n_threads)
    ]
    try:
        for thread in threads:
            thread.start()
        yield readers.results()
    finally:
        readers.stop()
        for thread in threads:
            if thread.ident is not None:
                thread.join()


class _Readers:
    """State that the reader threads and the consumer share, under one lock."""

    def __init__(
        self,
        source: Source,
        windows: Iterator[Window],
        slots: HostSlots,
        times: StageTimes,
        weights: Weights | None,
        resident: DeviceRows | None,
    ) -> None:
        self._source = source
        self._resident, self._uses_in_place = resident, is_host(slots.device)
        self._keeps = isinstance(source, KeptRows) or resident is not None
        self._together = source.read_together if isinstance(source, ReadsTogether) else None
        self._n_threads = max(slots.memory.n_readers, 1)
        self._weights = weights
        self._windows = windows
        self._times = times
        self._free = deque(slots.buffers)
        self._tasks: deque[tuple[HostWindow, Callable[[], None]]] = deque()
        self._opened: deque[HostWindow] = deque()
        # The next window, where it was looked at and must wait; and the epoch of the first one.
        self._next: Window | None = None
        self._first_epoch: int | None = None
        self._exhausted = False
        self._stopping = False
        self._error: BaseException | None = None
        self._changed = threading.Condition()

    def have_nothing_to_read(self) -> bool:
        """Whether rows are used where they lie, by the first window."""
        self._next = next(self._windows, None)
        if self._next is None or self._keeps or self._weights is not None:
            return False
        return self._in_place(self._next) is not None

    def work(self) -> None:
        """Body of a reader thread."""
        try:
            done = None
            while (task := self._next_task(done)) is not None:
                done, run = task
                run()
        # `results` raises it in the consumer: here nobody would see it.
        except BaseException as error:  # noqa: BLE001
            with self._changed:
                self._error = self._error or error
                self._changed.notify_all()

    def one_by_one(self) -> Iterator[HostWindow]:
        """Windows in the order of the reading plan, each read when it is asked for."""
        while not self._exhausted:
            with self._changed:
                self._open_window()
            while self._tasks:
                self._tasks.popleft()[1]()
            if self._opened:
                self._opened[0].unfinished = 0
                yield self._opened.popleft()

    def results(self) -> Iterator[HostWindow]:
        """Windows in the order of the reading plan, each when all its tasks are done."""
        while True:
            with self._changed:
                self._changed.wait_for(self._is_result_known)
                if self._error is not None:
                    raise self._error
                if not self._opened:
                    return
                host_window = self._opened.popleft()
                if self._next is not None:
                    self._changed.notify_all()
            yield host_window

    def stop(self) -> None:
        """Let every thread end after its current read."""
        with self._changed:
            self._stopping = True
            self._tasks.clear()
            self._changed.notify_all()

    def _is_result_known(self) -> bool:
        if self._error is not None:
            return True
        if self._opened:
            return self._opened[0].unfinished == 0
        return self._exhausted

    def _next_task(self, done: HostWindow | None) -> tuple[HostWindow, Callable[[], None]] | None:
        """The next task of a thread that has done one of the window `done`; None at the end."""
        with self._times.waiting("reading"), self._changed:
            if done is not None:
                done.unfinished -= 1
                if done.unfinished == 0:
                    self._changed.notify_all()
            while not (self._stopping or self._error):
                if self._tasks:
                    return self._tasks.popleft()
                if self._exhausted:
                    break
                if not self._free or not self._open_window():
                    self._changed.wait()
            return None

    def _open_window(self) -> bool:
        """Open the next window, if there is one; False if it must wait for those before it."""
        window = self._next = self._next or next(self._windows, None)
        if window is None:
            self._exhausted = True
            self._changed.notify_all()
            return True
        if self._must_wait(window):
            return False
        self._next = None
        buffer = self._free.popleft()
        spec, n_rows = self._source.spec, window.n_rows
        n_bytes = n_rows * spec.row_bytes
        rows_ND = in_place = self._in_place(window)
        if rows_ND is None:
            rows_ND = self._room(window)
        is_shared = rows_ND is not None
        if rows_ND is None:
            rows_ND = buffer[:n_bytes].view(spec.storage).reshape(n_rows, spec.n_features)
        host_window = HostWindow(window, rows_ND, release=self._releaser(buffer))
        host_window.is_shared = is_shared
        if self._resident is not None:
            there = tuple(map(self._resident.has, window.reads))
            host_window.on_device = there if any(there) else ()
        if self._weights is not None:
            start = weights_offset(n_bytes)
            weights = buffer[start : start + n_rows * WEIGHT_BYTES].view(np.float64)
            host_window.weights_N = weights
        self._tasks.append((host_window, self._orderer(host_window)))
        tasks = self._reading_tasks(host_window, are_there=in_place is not None)
        self._tasks += ((host_window, task) for task in tasks)
        host_window.unfinished = len(tasks) + 1
        self._opened.append(host_window)
        self._changed.notify_all()
        return True

    def _must_wait(self, window: Window) -> bool:
        """Whether the pass before must be read to its end first.

        What stays in memory of the first pass is there from then on. Of a small array all windows
        would else be opened at once, and read as often as there are slots.
        """
        if self._first_epoch is None:
            self._first_epoch = window.epoch
        if window.epoch != self._first_epoch + 1 or not self._keeps:
            return False
        # On a device, a window stays when it is copied there, which follows its being taken.
        return any(not self._uses_in_place or host.unfinished for host in self._opened)

    def _in_place(self, window: Window) -> np.ndarray | None:
        """Rows of `window` that lie in host memory as they are used there; else None."""
        one_read = window.one_read if self._uses_in_place else None
        return None if one_read is None else held_rows(self._source, one_read)

    def _room(self, window: Window) -> np.ndarray | None:
        """Where the rows of `window` will stay and can be read at once; else None.

        In the first pass alone: later ones may have the same rows in two windows at once, and one
        must not be filled again while the other is in use.
        """
        is_first = self._uses_in_place and window.epoch == self._first_epoch
        if not (is_first and isinstance(self._source, KeptRows)):
            return None
        return None if window.one_read is None else self._source.room(window.one_read)

    def _reading_tasks(
        self, host_window: HostWindow, *, are_there: bool
    ) -> list[Callable[[], None]]:
        """What is to be read of a window, in parts for the threads; `are_there` of the rows."""
        reads, parts, offset = host_window.window.reads, [], 0
        of_each = host_window.on_device or (are_there,) * len(reads)
        for rows, is_there in zip(reads, of_each, strict=True):
            end = offset + rows.stop - rows.start
            if not is_there or self._weights is not None:
                parts.append((rows, slice(offset, end), is_there))
            offset = end
        step = self._blocks_at_once(len(parts))
        return [
            self._reader(host_window, parts[first : first + step])
            for first in range(0, len(parts), step)
        ]

    def _blocks_at_once(self, n_blocks: int) -> int:
        """Blocks of a window of `n_blocks` that one thread takes together."""
        spec = self._source.spec
        if spec.is_remote:  # Each thread waits for one answer.
            return 1
        of_bytes = TASK_BYTES // (spec.block_rows * spec.row_bytes)
        return max(min(of_bytes, n_blocks // (2 * self._n_threads)), 1)

    def _orderer(self, host_window: HostWindow) -> Callable[[], None]:
        def run() -> None:
            host_window.window = host_window.window.dealt()
            host_window.order = host_window.window.order()

        return run

    def _reader(
        self, host_window: HostWindow, parts: list[tuple[RowRange, slice, bool]]
    ) -> Callable[[], None]:
        def run() -> None:
            with named("read"), self._times.working("reading") as span:
                span.n_bytes = self._read(host_window, parts)

        return run

    def _read(self, host_window: HostWindow, parts: list[tuple[RowRange, slice, bool]]) -> int:
        """Read rows that are not there, and weights; returns the bytes of the rows.

        It ends early where nobody waits for them any more.
        """
        weights_N, n_others = host_window.weights_N, len(parts) - 1
        asked = f"{parts[0][0]}" + (f", or {n_others:,} ranges with it," if n_others else "")
        try:
            n_bytes = self._read_together(host_window, parts)
            if n_bytes and weights_N is None:
                return n_bytes
            have_come = n_bytes > 0
            for rows, part, is_there in parts:
                if self._stopping or self._error is not None:
                    break
                asked = f"{rows}"
                if not (is_there or have_come):
                    out = host_window.rows_ND[part]
                    self._source.read(rows, out)
                    n_bytes += out.nbytes
                if self._weights is not None and weights_N is not None:
                    self._weights.read(rows, weights_N[part])
        except StreamkmError:
            raise
        except Exception as error:
            raise ReadError(
                f"{self._source.name}: {asked} cannot be read: {type(error).__name__}: {error}"
            ) from error
        return n_bytes

    def _read_together(
        self, host_window: HostWindow, parts: list[tuple[RowRange, slice, bool]]
    ) -> int:
        """Read all rows of `parts` by one call, if the source can; returns their bytes, or 0."""
        # Parts that are on the device leave gaps in the slot.
        if self._together is None or len(parts) == 1 or parts[0][2] or host_window.on_device:
            return 0
        out = host_window.rows_ND[parts[0][1].start : parts[-1][1].stop]
        return out.nbytes if self._together([rows for rows, _, _ in parts], out) else 0

    def _releaser(self, buffer: np.ndarray) -> Callable[[], None]:
        def release() -> None:
            with self._changed:
                self._free.append(buffer)
                self._changed.notify_all()

        return release
