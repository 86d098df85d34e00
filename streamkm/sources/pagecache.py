"""Reading a file's bytes beside the page cache, or through it without displacing others.

What is in the page cache is copied from there. What is not is read with
O_DIRECT, unless the machine has memory to spare that the file fits into: then
the next pass finds it there. So a run neither evicts what other programs keep
in the cache, nor reads a small file from the disk in every epoch. Nothing of
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

import numpy as np

__all__ = ["BUFFER_BYTES", "DIRECT_BYTES", "DirectFile", "forget", "has_spare_memory", "is_cached"]

logger = logging.getLogger("streamkm")

#: A read of less is left to the page cache.
DIRECT_BYTES = 256 << 10
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
    """Whether the middle of a piece of a file is in the page cache (where that can be known)."""
    if sys.platform != "linux":
        return True
    middle = offset + size // 2
    try:
        os.preadv(fd, [bytearray(1)], middle, os.RWF_NOWAIT)
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


class DirectFile:
    """A file opened with O_DIRECT, if its filesystem takes it.

    Parameters
    ----------
    path : str
        An existing file.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._fd: int | None = None
        flag = getattr(os, "O_DIRECT", 0)
        if not flag:
            return
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | flag)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            self._refuse(os.stat(path).st_dev)  # noqa: PTH116  the error's file, whatever it is

    def read(self, out: np.ndarray, offset: int) -> int | None:
        """Fill `out` with the file's bytes from `offset` on.

        Parameters
        ----------
        out : ndarray of uint8
            Any address.
        offset : int
            Any.

        Returns
        -------
        int or None
            Bytes filled: all, or less where the file ends; None if the filesystem refuses.
        """
        if self._fd is None:
            return None
        buffer = _buffer()
        done = 0
        while done < out.size:
            begin = (offset + done) // _ALIGNMENT * _ALIGNMENT
            skip = offset + done - begin
            wanted = min(skip + out.size - done, BUFFER_BYTES)
            try:
                count = os.preadv(self._fd, [buffer[: _aligned(wanted)].data], begin)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                self._refuse(os.fstat(self._fd).st_dev)
                return None
            usable = min(count, wanted) - skip
            if usable <= 0:
                break
            out[done : done + usable] = buffer[skip : skip + usable]
            done += usable
        return done

    def close(self) -> None:
        """Release the descriptor; closing twice is no error."""
        if self._fd is not None:
            fd, self._fd = self._fd, None
            os.close(fd)

    def _refuse(self, device: int) -> None:
        if device not in _refused:
            _refused.add(device)
            logger.info(
                "%s: its filesystem takes no O_DIRECT: read through the page cache", self.path
            )


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
