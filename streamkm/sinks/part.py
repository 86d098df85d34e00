"""Parts: what each of several processes writes of one output.

A part writes whole spans of rows, such as the chunks of a Zarr array, and no span is written by
two. So processes need not know of each other while they write, and what one of them leaves behind
when it is killed is no half of what another has written.
"""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, NamedTuple, Self

import numpy as np

if TYPE_CHECKING:
    from streamkm.files import FileLock

__all__ = ["Part", "Written"]


class Written(NamedTuple):
    """Rows that a part has brought to disk."""

    start: int
    stop: int
    crc32: int
    """Checksum of their values."""


class Part(ABC):
    """The rows of one output that one process writes, from the first to the last.

    Parameters
    ----------
    n_rows : int
        Rows of the output.
    start_row : int
        Where the rows begin that are not written yet.
    """

    def __init__(self, n_rows: int, start_row: int) -> None:
        self.n_rows = n_rows
        self.next_row = start_row
        """The row after those that were written or left to others."""
        self._stored_rows: list[Written] = []
        self._is_closed = False
        self._lock: FileLock | None = None

    @abstractmethod
    def span_end(self, row: int) -> int:
        """The row after the span that `row` is in; one process writes all rows of a span."""

    def write(self, start_row: int, values: np.ndarray) -> None:
        """Write contiguous `values`, of the output's dtype, of the rows from `start_row` on.

        Rows from `next_row` to there are left to other processes.

        Raises
        ------
        ValueError
            If rows were written or left out before, or a part of a span is left out.
        OSError
            If the disk is full or refuses.
        """
        if start_row < self.next_row:
            raise ValueError(f"row {start_row} comes after row {self.next_row - 1}")
        if start_row > self.next_row:
            self._pass_over(start_row)
        self._put(values)
        self.next_row += len(values)

    def flush(self) -> list[Written]:
        """Wait until what was written is on disk; the rows that were not there before.

        Rows of a span that is not whole yet may be missing.
        """
        if self._stored_rows:
            self._sync()
        written, self._stored_rows = self._stored_rows, []
        return written

    def hold(self, lock: FileLock) -> None:
        """Keep `lock`, by which nobody begins this output anew, until `close`."""
        self._lock = lock

    def close(self) -> None:
        """Release files and the lock; may be done twice."""
        try:
            if not self._is_closed:
                self._is_closed = True
                self._release()
        finally:
            if self._lock is not None:
                self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _note(self, start: int, values: np.ndarray) -> None:
        """Take note that the `values` of the rows from `start` on are stored."""
        stop, crc32 = start + len(values), 0
        if self._stored_rows and self._stored_rows[-1].stop == start:
            start, _, crc32 = self._stored_rows.pop()
        crc32 = zlib.crc32(values.view(np.uint8).data, crc32)
        self._stored_rows.append(Written(start, stop, crc32))

    def _pass_over(self, stop: int) -> None:
        """Leave out the rows from `next_row` to `stop`."""
        self.next_row = stop

    @abstractmethod
    def _put(self, values: np.ndarray) -> None:
        """Store or keep `values` of the rows from `next_row` on; `_note` what is stored."""

    @abstractmethod
    def _sync(self) -> None:
        """Bring what was stored to disk."""

    @abstractmethod
    def _release(self) -> None:
        """Release files."""
