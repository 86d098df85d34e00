"""Positional reads of one file, for all formats that are rows behind a header.

Reads are `os.preadv` into the caller's memory. A memory map was rejected: its
page tables and resident size grow with the file, a read error arrives as a
signal instead of an exception, and a cold copy out of it is slower. Large reads
go around the page cache where that is better, see `pagecache`.
"""

from __future__ import annotations

import hashlib
import os
import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from streamkm.errors import ReadError, SourceError
from streamkm.sources.pagecache import (
    DIRECT_BYTES,
    DirectFile,
    forget,
    has_spare_memory,
    is_cached,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from streamkm.sources.base import RowRange

__all__ = ["RowFile"]


class RowFile:
    """One file, read at given offsets by any number of threads.

    Parameters
    ----------
    path : Path
        An existing file.
    keep_open : bool
        Hold one descriptor from now to `close`. Otherwise each read opens the
        file anew: for arrays of thousands of files, whose descriptors would
        pass the limit of the process. Opening costs microseconds beside a
        block's read; a pool of descriptors would need a lock and reference
        counts, because a thread may be reading from the one to be evicted.

    Raises
    ------
    SourceError
        If the file cannot be opened.
    """

    def __init__(self, path: Path, *, keep_open: bool = True) -> None:
        self.path = path
        self.closed = False
        self._lock = threading.Lock()
        self._fd: int | None = None
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise SourceError(f"{path}: cannot be opened: {error.strerror}") from error
        try:
            self._identity = _identity(fd)
            self.size = os.fstat(fd).st_size
            self._fits = has_spare_memory(self.size)
            self._direct: DirectFile | None = None
        finally:
            if keep_open:
                self._expect_blocks(fd)
                self._fd = fd
            else:
                os.close(fd)

    def read_into(self, out: np.ndarray, offset: int, rows: RowRange) -> None:
        """Fill `out` with the file's bytes from `offset` on.

        Parameters
        ----------
        out : ndarray, C order
            Any shape and dtype; its memory is filled completely.
        offset : int
            Position in the file, in bytes.
        rows : RowRange
            What is read, for the message.

        Raises
        ------
        ReadError
            If the file ends too early, cannot be read or was replaced.
        """
        if out.size == 0:
            return
        memory = out.reshape(-1).view(np.uint8)
        try:
            with self._descriptor(rows) as fd:
                may_stay = memory.size < DIRECT_BYTES or (self._fits and has_spare_memory())
                if may_stay or is_cached(fd, offset, memory.size):
                    done = _read_cached(fd, memory, offset)
                else:
                    done = self._read_past_cache(fd, memory, offset)
        except OSError as error:
            raise ReadError(f"{self.path}: {rows} cannot be read: {error.strerror}") from error
        if done < memory.size:
            raise ReadError(
                f"{self.path}: ends at byte {offset + done} in the middle of {rows}; "
                f"it had {self.size} bytes when it was opened, has it been truncated?"
            )

    def _read_past_cache(self, fd: int, memory: np.ndarray, offset: int) -> int:
        """Read what is not in the page cache, and leave it out of there."""
        direct = self._direct or DirectFile(str(self.path))
        try:
            done = direct.read(memory, offset)
        finally:
            if self._fd is None:
                direct.close()
            else:
                self._keep(direct)
        if done is None:
            done = _read_cached(fd, memory, offset)
        # Of a direct read, only the page that was looked for.
        forget(fd, offset, memory.size)
        return done

    def _expect_blocks(self, fd: int) -> None:
        """Where little is to stay in the page cache, let the system bring in only what is read."""
        if sys.platform == "linux" and not self._fits:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)

    def _keep(self, direct: DirectFile) -> None:
        """Hold `direct` open, unless another thread's came first."""
        with self._lock:
            if self._direct is None and not self.closed:
                self._direct = direct
        if self._direct is not direct:
            direct.close()

    @contextmanager
    def _descriptor(self, rows: RowRange) -> Iterator[int]:
        """A descriptor of the same file that was opened at first."""
        if self.closed:
            raise ReadError(f"{self.path}: cannot read {rows}, the source is closed; open it again")
        if self._fd is not None:
            yield self._fd
            return
        fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._expect_blocks(fd)
            if _identity(fd) != self._identity:
                raise ReadError(
                    f"{self.path}: has been replaced or changed since it was opened, "
                    f"{rows} may be others by now; start again"
                )
            yield fd
        finally:
            os.close(fd)

    def fingerprint(self, layout: str) -> str:
        """Hex digest of `layout` and the file's size and modification time."""
        try:
            stat = self.path.stat() if self._fd is None else os.fstat(self._fd)
        except OSError as error:
            raise ReadError(f"{self.path}: is gone: {error.strerror}") from error
        text = f"{layout}\n{stat.st_size}\n{stat.st_mtime_ns}"
        return hashlib.sha256(text.encode()).hexdigest()

    def close(self) -> None:
        """Release the descriptors; closing twice is no error."""
        with self._lock:
            self.closed = True
            direct, self._direct = self._direct, None
        if direct is not None:
            direct.close()
        if self._fd is not None:
            fd, self._fd = self._fd, None
            os.close(fd)


def _read_cached(fd: int, memory: np.ndarray, offset: int) -> int:
    """Fill `memory` with a file's bytes through the page cache; returns how many there were."""
    view = memory.data
    # One call gives at most 2 GiB, and fewer bytes when a signal arrives.
    while view:
        count = os.preadv(fd, [view], offset)
        if count == 0:
            break
        view = view[count:]
        offset += count
    return memory.size - len(view)


def _identity(fd: int) -> tuple[int, int, int, int]:
    """What stays the same as long as a path leads to the same unchanged file."""
    stat = os.fstat(fd)
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns
