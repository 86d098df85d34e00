"""Reads a file's bytes through the page cache or around it, whichever suits the machine.

Bytes that are in the page cache are copied from there. Others are read with O_DIRECT, unless the
machine has spare memory for the whole array: then they go through the cache, and the next pass
finds them there. So a run does not evict what other programs keep in the cache, and does not read a
small array from the disk in every epoch. The choice decides how fast bytes are read, never which.

O_DIRECT reads whole pages. Memory that lies in its pages as the bytes do in those of the file is
read into where it is: so are chunks of whole pages, and blocks of whole pages of a file whose slots
begin where its rows do (`ArraySpec.first_byte`). For other memory each thread has one aligned
buffer on huge pages, and copies out of it. That takes a quarter of the processor time of a read
through the cache.
"""

from __future__ import annotations

import errno
import functools
import logging
import mmap
import os
import sys
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

import numpy as np

from streamkm.machine import memory_limit

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["BUFFER_BYTES", "OpenFile", "forget", "has_spare_memory", "is_cached"]

logger = logging.getLogger("streamkm")

#: Bytes of a read with O_DIRECT, at least; smaller ones go through the page cache.
DIRECT_BYTES = 64 << 10
#: Bytes of a thread's buffer, and of one request.
BUFFER_BYTES = 4 << 20
#: Offsets, lengths and addresses are multiples of this number, which suits every disk.
_ALIGNMENT = 4096
_HUGE_PAGE = 2 << 20
#: The machine has spare memory while more than this part of it, an eighth, is free.
_SPARE_PART = 8

_thread = threading.local()
#: Devices whose filesystem does not take O_DIRECT.
_refused: set[int] = set()


def is_cached(fd: int, offset: int, size: int) -> bool:
    """Whether a range of a file is in the page cache, judged by three of its pages.

    One page would not do: asking for an absent page brings it in, and a fast disk may do so in
    time for the answer. True on systems that cannot tell.
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
    """Drop a range of a file, which this run has read, from the page cache."""
    if sys.platform == "linux":
        os.posix_fadvise(fd, offset, size, os.POSIX_FADV_DONTNEED)


def has_spare_memory(size: int = 0) -> bool:
    """Whether an eighth of the machine's memory is free, and twice `size` bytes of the job's.

    The page cache counts towards the limit of a control group.
    """
    if sys.platform != "linux":
        return True
    free, all_ = os.sysconf("SC_AVPHYS_PAGES"), _all_pages()
    if free * _SPARE_PART <= all_:
        return False
    # Every read asks without a size: the limit is looked up for a whole array only.
    return not size or min(free * mmap.PAGESIZE, memory_limit().n_bytes) > 2 * size


@functools.cache
def _all_pages() -> int:
    return os.sysconf("SC_PHYS_PAGES")


class OpenFile:
    """An open file that any number of threads read at any offset.

    Parameters
    ----------
    fd : int
        Its descriptor, closed with the file.
    path : str
        Its path, for the log.
    fits : bool
        Whether the machine had spare memory for the whole array, by `has_spare_memory`.
    """

    def __init__(self, fd: int, path: str, *, fits: bool) -> None:
        self.fd, self._path, self._fits = fd, path, fits
        self._lock = threading.Lock()
        self._direct_fd: int | None = None
        if sys.platform == "linux" and not fits:
            # Readahead would bring bytes into the cache that nobody asked for.
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)

    def read(self, memories: Sequence[np.ndarray], offset: int) -> int:
        """Fill arrays, one after the other, with the bytes from `offset` on.

        Parameters
        ----------
        memories : sequence of ndarray of uint8
            The memory to fill, in order.
        offset : int
            Position in the file, in bytes.

        Returns
        -------
        int
            Bytes filled; fewer than all only if the file ends.

        Raises
        ------
        OSError
            If the bytes cannot be read.
        """
        size = sum(memory.size for memory in memories)
        if (self._fits and has_spare_memory()) or is_cached(self.fd, offset, size):
            return _read_cached(self.fd, memories, offset)
        done = self._read_direct(memories, size, offset) if size >= DIRECT_BYTES else None
        if done is None:
            done = _read_cached(self.fd, memories, offset)
        # After a direct read, only the page that is_cached has brought in.
        forget(self.fd, offset, size)
        return done

    def read_each(self, memory: np.ndarray, places: Iterable[tuple[int, int]]) -> bool:
        """Fill `memory`, uint8, with ranges of the file, one after the other, from the page cache.

        Each place is an offset and a length. False, with any bytes in `memory`, if one was not read
        in a single call, or where reads may have to go around the cache: then `read` is to be used,
        and tells why. It takes several times as long for a small range as to copy it.
        """
        if not (self._fits and has_spare_memory()):
            return False
        view, at = memory.data, 0
        for offset, size in places:
            if os.preadv(self.fd, (view[at : at + size],), offset) != size:
                return False
            at += size
        return True

    def close(self) -> None:
        """Release the descriptors."""
        if self._direct_fd is not None:
            os.close(self._direct_fd)
        os.close(self.fd)

    def _read_direct(self, memories: Sequence[np.ndarray], size: int, offset: int) -> int | None:
        """Read with O_DIRECT; None if the filesystem does not take it."""
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
        """A descriptor of this file with O_DIRECT, even if its path names another one by now."""
        with self._lock:
            if self._direct_fd is None:
                flags = os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT
                with suppress(OSError):
                    self._direct_fd = os.open(f"/proc/self/fd/{self.fd}", flags)
            return self._direct_fd


def _read_cached(fd: int, memories: Sequence[np.ndarray], offset: int) -> int:
    """Fill `memories` through the page cache; returns the number of bytes read."""
    views = [memory.data for memory in memories if memory.size]
    done = 0
    # One call reads at most 2 GiB, and fewer bytes when a signal arrives.
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
    """Fill `memories` with aligned reads; returns the bytes read."""
    rest = [memory for memory in memories if memory.size]
    done = 0
    if len(rest) == 1 and _lies_alike(rest[0], offset):
        done = _read_in_place(fd, rest[0], offset)
        rest = [rest[0][done:]]
    buffer = _buffer()
    while done < size:
        begin = (offset + done) // _ALIGNMENT * _ALIGNMENT
        skip = offset + done - begin
        wanted = min(skip + size - done, BUFFER_BYTES)
        count = os.preadv(fd, [buffer[: _aligned(wanted)].data], begin)
        found = buffer[skip : min(count, wanted)]
        if not found.size:
            break
        done += found.size
        while found.size:
            n = min(found.size, rest[0].size)
            rest[0][:n] = found[:n]
            rest[0], found = rest[0][n:], found[n:]
            if not rest[0].size:
                del rest[0]
    return done


def _read_in_place(fd: int, memory: np.ndarray, offset: int) -> int:
    """Fill `memory`, which lies in its pages as the bytes do in the file's; returns the bytes read.

    Of its first and last page others may have a part: those two go through the thread's buffer.
    """
    head, tail = -offset % _ALIGNMENT, (offset + memory.size) % _ALIGNMENT
    body, skip = slice(head, memory.size - tail), -head % _ALIGNMENT
    pages = _buffer()
    first, last = pages[:_ALIGNMENT], pages[_ALIGNMENT : 2 * _ALIGNMENT]
    views = [*[first.data] * (head > 0), memory[body].data, *[last.data] * (tail > 0)]
    done = min(max(os.preadv(fd, views, offset - skip) - skip, 0), memory.size)
    n_first, n_last = min(head, done), max(done - body.stop, 0)
    memory[:n_first] = first[skip : skip + n_first]
    memory[body.stop : body.stop + n_last] = last[:n_last]
    return done


def _lies_alike(memory: np.ndarray, offset: int) -> bool:
    """Whether `memory` has a whole page, and lies in its pages as the file's bytes do there."""
    address: int = memory.__array_interface__["data"][0]
    return (address - offset) % _ALIGNMENT == 0 and memory.size >= 2 * _ALIGNMENT


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
