"""Reading a file's bytes beside the page cache, or through it without displacing others.

What is in the page cache is copied from there. What is not is read with
O_DIRECT, unless the machine has memory to spare that the array fits into: then
the next pass finds it there. So a run neither evicts what other programs keep
in the cache, nor reads a small array from the disk in every epoch. Nothing of
this decides what is read, only how fast.

The disk writes straight into memory that is aligned as it wants, which rows
in a slot are not: a thread has one such buffer, of huge pages, and copies out of
it. That takes a quarter of the processor time of a read through the cache.
"""

from __future__ import annotations

import errno
import logging
import mmap
import os
import sys
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["BUFFER_BYTES", "OpenFile", "forget", "has_spare_memory", "is_cached"]

logger = logging.getLogger("streamkm")

#: A read of less is left to the page cache.
DIRECT_BYTES = 64 << 10
#: A thread's buffer, and the most that is asked for at a time.
BUFFER_BYTES = 4 << 20
#: What offsets, lengths and addresses are multiples of, for any disk.
_ALIGNMENT = 4096
_HUGE_PAGE = 2 << 20
#: Memory is to spare while this part of the machine's holds nothing at all.
_SPARE_PART = 8

_thread = threading.local()
_refused: set[int] = set()


def is_cached(fd: int, offset: int, size: int) -> bool:
    """Whether a piece of a file is in the page cache, by three of its pages.

    One would not do: asking for a page that is not there brings it in, and a quick disk may
    do so in time for the answer. (Where nothing can be known, it is.)
    """
    if sys.platform != "linux":
        return True
    return all(_has_page(fd, offset + size * part // 4) for part in (2, 1, 3))


def _has_page(fd: int, offset: int) -> bool:
    try:
        os.preadv(fd, [bytearray(1)], offset, os.RWF_NOWAIT)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno == errno.EOPNOTSUPP:
            return True
        raise
    return True


def forget(fd: int, offset: int, size: int) -> None:
    """Drop a piece of a file from the page cache: what a run has brought there itself."""
    if sys.platform == "linux":
        os.posix_fadvise(fd, offset, size, os.POSIX_FADV_DONTNEED)


def has_spare_memory(size: int = 0) -> bool:
    """Whether the machine has memory that nobody uses, and twice `size` of it."""
    if sys.platform != "linux":
        return True
    free, all_ = os.sysconf("SC_AVPHYS_PAGES"), os.sysconf("SC_PHYS_PAGES")
    return free * _SPARE_PART > all_ and free * mmap.PAGESIZE > 2 * size


class OpenFile:
    """An open file, read from any place by any number of threads.

    Parameters
    ----------
    fd : int
        Its descriptor, closed with it.
    path : str
        Where it lies.
    fits : bool
        Whether there was memory to spare for all that is going to be read, by `has_spare_memory`.
    """

    def __init__(self, fd: int, path: str, *, fits: bool) -> None:
        self.fd, self._path, self._fits = fd, path, fits
        self._lock = threading.Lock()
        self._direct_fd: int | None = None
        if sys.platform == "linux" and not fits:
            # The system is to bring in only what is asked for.
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)

    def read(self, memories: Sequence[np.ndarray], offset: int) -> int:
        """Fill arrays of bytes, one after the other, with the file's from `offset` on.

        Returns
        -------
        int
            Bytes filled: all, or less where the file ends.

        Raises
        ------
        OSError
            If they cannot be read.
        """
        size = sum(memory.size for memory in memories)
        if (self._fits and has_spare_memory()) or is_cached(self.fd, offset, size):
            return _read_cached(self.fd, memories, offset)
        done = self._read_direct(memories, size, offset) if size >= DIRECT_BYTES else None
        if done is None:
            done = _read_cached(self.fd, memories, offset)
        # Of a direct read, only the page that was looked for.
        forget(self.fd, offset, size)
        return done

    def close(self) -> None:
        """Release the descriptors."""
        if self._direct_fd is not None:
            os.close(self._direct_fd)
        os.close(self.fd)

    def _read_direct(self, memories: Sequence[np.ndarray], size: int, offset: int) -> int | None:
        """As `read`, with O_DIRECT; None if the filesystem takes none."""
        device = os.fstat(self.fd).st_dev
        if device in _refused:
            return None
        fd = self._opened_direct()
        try:
            if fd is not None:
                return _read_aligned(fd, memories, size, offset)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
        _refused.add(device)
        logger.info("%s: its filesystem takes no O_DIRECT: read through the page cache", self._path)
        return None

    def _opened_direct(self) -> int | None:
        """A descriptor with O_DIRECT of the same file, wherever its path leads by now."""
        with self._lock:
            if self._direct_fd is None:
                flags = os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT
                with suppress(OSError):
                    self._direct_fd = os.open(f"/proc/self/fd/{self.fd}", flags)
            return self._direct_fd


def _read_cached(fd: int, memories: Sequence[np.ndarray], offset: int) -> int:
    """Fill `memories` through the page cache; returns how many bytes there were."""
    views = [memory.data for memory in memories if memory.size]
    done = 0
    # One call gives at most 2 GiB, and fewer bytes when a signal arrives.
    while views:
        count = os.preadv(fd, views, offset + done)
        if count == 0:
            break
        done += count
        while views and count >= len(views[0]):
            count -= len(views.pop(0))
        if count:
            views[0] = views[0][count:]
    return done


def _read_aligned(fd: int, memories: Sequence[np.ndarray], size: int, offset: int) -> int:
    """As `_read_cached`, from where the disk's blocks begin to the thread's buffer and on."""
    buffer = _buffer()
    rest = [memory for memory in memories if memory.size]
    done = 0
    while done < size:
        begin = (offset + done) // _ALIGNMENT * _ALIGNMENT
        skip = offset + done - begin
        wanted = min(skip + size - done, BUFFER_BYTES)
        count = os.preadv(fd, [buffer[: _aligned(wanted)].data], begin)
        piece = buffer[skip : min(count, wanted)]
        if not piece.size:
            break
        done += piece.size
        while piece.size:
            n = min(piece.size, rest[0].size)
            rest[0][:n] = piece[:n]
            rest[0], piece = rest[0][n:], piece[n:]
            if not rest[0].size:
                del rest[0]
    return done


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _buffer() -> np.ndarray:
    """The thread's buffer of `BUFFER_BYTES`, on huge pages where there are any."""
    buffer: np.ndarray | None = getattr(_thread, "buffer", None)
    if buffer is None:
        memory = mmap.mmap(-1, BUFFER_BYTES + _HUGE_PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            memory.madvise(mmap.MADV_HUGEPAGE)
        whole = np.frombuffer(memory, np.uint8)
        first = -whole.ctypes.data % _HUGE_PAGE
        buffer = _thread.buffer = whole[first : first + BUFFER_BYTES]
    return buffer
