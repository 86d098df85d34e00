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
from typing import TYPE_CHECKING

import numpy as np

from streamkm.errors import ReadError, StreamkmError
from streamkm.ranges import named
from streamkm.stream.slots import WEIGHT_BYTES, weights_offset

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from streamkm.sources.base import RowRange, Source
    from streamkm.sources.weights import Weights
    from streamkm.stream.plan import Window
    from streamkm.stream.slots import HostSlots
    from streamkm.stream.stages import StageTimes

__all__ = ["HostWindow", "prefetch"]


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
    unfinished: int = 0
    """Tasks that are left: one for each read, and one for the order."""


@contextmanager
def prefetch(
    source: Source,
    windows: Iterator[Window],
    slots: HostSlots,
    n_threads: int,
    times: StageTimes,
    weights: Weights | None = None,
    *,
    rows: bool = True,
) -> Iterator[Iterator[HostWindow]]:
    """Read `windows` of `source` in order with `n_threads` threads, as far ahead as slots allow.

    With `weights` those of the rows are read with them. With `rows` false only weights and the
    order of rows are made: the rows of the slots hold anything.

    Yields an iterator of `HostWindow`. Each keeps its slot until it is released. When the
    ``with`` block ends, for whatever reason, the threads stop and are joined. With 0 threads
    the calling thread reads a window when it is asked for.

    Raises
    ------
    ReadError
        From the iterator, if a read failed; the message names the source and the rows.
    """
    readers = _Readers(source, windows, slots, times, weights, rows=rows)
    if n_threads == 0:
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
        *,
        rows: bool,
    ) -> None:
        self._source = source
        self._reads_rows = rows
        self._weights = weights
        self._windows = windows
        self._times = times
        self._free = deque(slots.buffers)
        self._tasks: deque[tuple[HostWindow, Callable[[], None]]] = deque()
        self._opened: deque[HostWindow] = deque()
        self._exhausted = False
        self._stopping = False
        self._error: BaseException | None = None
        self._changed = threading.Condition()

    def work(self) -> None:
        """Body of a reader thread."""
        try:
            while (task := self._next_task()) is not None:
                host_window, run = task
                run()
                with self._changed:
                    host_window.unfinished -= 1
                    if host_window.unfinished == 0:
                        self._changed.notify_all()
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

    def _next_task(self) -> tuple[HostWindow, Callable[[], None]] | None:
        with self._times.waiting("reading"), self._changed:
            while not (self._stopping or self._error):
                if self._tasks:
                    return self._tasks.popleft()
                if self._exhausted:
                    break
                if self._free:
                    self._open_window()
                else:
                    self._changed.wait()
            return None

    def _open_window(self) -> None:
        window = next(self._windows, None)
        if window is None:
            self._exhausted = True
            self._changed.notify_all()
            return
        buffer = self._free.popleft()
        spec = self._source.spec
        n_bytes = window.n_rows * spec.row_bytes
        rows_ND = buffer[:n_bytes].view(spec.storage).reshape(window.n_rows, spec.n_features)
        host_window = HostWindow(window, rows_ND, release=self._releaser(buffer))
        if self._weights is not None:
            start = weights_offset(n_bytes)
            weights = buffer[start : start + window.n_rows * WEIGHT_BYTES].view(np.float64)
            host_window.weights_N = weights
        self._tasks.append((host_window, self._orderer(host_window)))
        offset = 0
        reads = window.reads if self._reads_rows or self._weights is not None else ()
        for rows in reads:
            part = slice(offset, offset + len(rows))
            self._tasks.append((host_window, self._reader(rows, host_window, part)))
            offset += len(rows)
        host_window.unfinished = len(reads) + 1
        self._opened.append(host_window)
        self._changed.notify_all()

    def _orderer(self, host_window: HostWindow) -> Callable[[], None]:
        def run() -> None:
            host_window.window = host_window.window.dealt()
            host_window.order = host_window.window.order()

        return run

    def _reader(self, rows: RowRange, host_window: HostWindow, part: slice) -> Callable[[], None]:
        out, weights_N = host_window.rows_ND[part], host_window.weights_N

        def run() -> None:
            n_bytes = out.nbytes if self._reads_rows else 0
            with named("read"), self._times.working("reading", n_bytes):
                try:
                    if self._reads_rows:
                        self._source.read(rows, out)
                    if self._weights is not None and weights_N is not None:
                        self._weights.read(rows, weights_N[part])
                except StreamkmError:
                    raise
                except Exception as error:
                    raise ReadError(
                        f"{self._source.name}: {rows} cannot be read: "
                        f"{type(error).__name__}: {error}"
                    ) from error

        return run

    def _releaser(self, buffer: np.ndarray) -> Callable[[], None]:
        def release() -> None:
            with self._changed:
                self._free.append(buffer)
                self._changed.notify_all()

        return release
