"""Reads one file by position, for all formats that are rows behind a header.

A read is `os.preadv` into the caller's memory. A memory map was rejected: its page tables and
resident size grow with the file, a read error arrives as a signal and not as an exception, and
copying out of it is slower when the file is not cached. `streamkm.sources.pagecache` decides which
reads go around the page cache.

A format that reads through `row_file` reads an object in a bucket as well
(`streamkm.sources.objects`): it has the members of `ByteFile`, too.
"""

from __future__ import annotations

import hashlib
import io
import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from streamkm.errors import ReadError, SourceError
from streamkm.sources.base import RowRange
from streamkm.sources.pagecache import OpenFile, has_spare_memory

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["ByteFile", "RowFile", "Stored", "row_file", "stream_of"]


class Stored(Protocol):
    """The place of a file that is not on this machine: its address is its `str`."""

    @property
    def suffix(self) -> str:
        """The suffix of its name."""

    def row_file(self) -> ByteFile:
        """The open file; `SourceError` if it is not there."""


class ByteFile(Protocol):
    """Bytes that any number of threads read at any offset; see `RowFile` for the members."""

    size: int
    closed: bool
    is_remote: bool
    """Whether reads wait for a network; each then allocates as many bytes as it reads."""

    @property
    def path(self) -> Path | Stored:
        """Where it lies."""

    def read_into(self, out: np.ndarray, offset: int, rows: RowRange) -> None:
        """Fill `out` with the file's bytes from `offset` on."""

    def check_unchanged(self, rows: RowRange) -> None:
        """Raise `ReadError` if the file was replaced or changed since it was opened."""

    def fingerprint(self, layout: str) -> str:
        """Hex digest of `layout` and of what tells that the file changed."""

    def close(self) -> None:
        """Refuse further reads; closing twice is no error."""


def row_file(path: Path | Stored, *, keep_open: bool = True) -> ByteFile:
    """The file at `path`, on this machine or behind an address; `keep_open` as for `RowFile`."""
    if isinstance(path, Path):
        return RowFile(path, keep_open=keep_open)
    return path.row_file()


def stream_of(file: ByteFile, buffer_bytes: int = 16 << 10) -> io.BufferedReader:
    """`file` as a stream, for libraries that read one; closing it leaves `file` open."""
    return io.BufferedReader(_Stream(file), buffer_bytes)


class _Stream(io.RawIOBase):
    """A position in a `ByteFile`."""

    def __init__(self, file: ByteFile) -> None:
        self._file = file
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._file.size}[whence]
        if start + offset < 0:
            raise OSError("a position before the start of the file")
        self._at = start + offset
        return self._at

    def readinto(self, buffer: Any) -> int:
        memory = np.frombuffer(buffer, np.uint8)
        memory = memory[: max(0, min(len(memory), self._file.size - self._at))]
        self._file.read_into(memory, self._at, RowRange(0, 0))
        self._at += len(memory)
        return len(memory)


class RowFile:
    """One file that any number of threads read at any offset.

    Parameters
    ----------
    path : Path
        An existing file.
    keep_open : bool
        Hold one descriptor until `close`. If not, each read opens the file anew, so that an array
        of thousands of files does not pass the process's limit of descriptors. Opening a file
        takes microseconds. A pool of descriptors was rejected: it would need a lock and reference
        counts, because a thread may be reading from the descriptor to be evicted.

    Raises
    ------
    SourceError
        If the file cannot be opened.
    """

    def __init__(self, path: Path, *, keep_open: bool = True) -> None:
        self.path: Path | Stored = path
        self.closed = False
        self.is_remote = False
        self._local = path
        self._kept: OpenFile | None = None
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise SourceError(f"{path}: cannot be opened: {error.strerror}") from error
        self._identity = _identity(fd)
        self.size = os.fstat(fd).st_size
        self._fits = has_spare_memory(self.size)
        file = OpenFile(fd, str(path), fits=self._fits)
        if keep_open:
            self._kept = file
        else:
            file.close()

    def read_into(self, out: np.ndarray, offset: int, rows: RowRange) -> None:
        """Fill `out` with the file's bytes from `offset` on.

        Parameters
        ----------
        out : ndarray, C order
            Any shape and dtype; its memory is filled completely.
        offset : int
            Position in the file, in bytes.
        rows : RowRange
            The rows that are read, for the message.

        Raises
        ------
        ReadError
            If the file ends too early, cannot be read, was replaced or is closed.
        """
        if out.size == 0:
            return
        memory = out.reshape(-1).view(np.uint8)
        try:
            with self._opened(rows) as file:
                done = file.read([memory], offset)
        except OSError as error:
            raise ReadError(f"{self.path}: {rows} cannot be read: {error.strerror}") from error
        if done < memory.size:
            raise ReadError(
                f"{self.path}: ends at byte {offset + done} in the middle of {rows}; "
                f"it had {self.size} bytes when it was opened, has it been truncated?"
            )

    def read_each(self, out: np.ndarray, places: Sequence[tuple[int, RowRange]]) -> None:
        """As `read_into`, of rows that lie at several places: one after the other in `out`.

        A place is a position in bytes and the rows that begin there.
        """
        memory = out.reshape(-1).view(np.uint8)
        row_bytes = out[:1].nbytes
        try:
            with self._opened(places[0][1]) as file:
                ranges = ((offset, (rows.stop - rows.start) * row_bytes) for offset, rows in places)
                if file.read_each(memory, ranges):
                    return
        except OSError:
            pass
        # Read once more one by one, which tells the rows that cannot be read, and why.
        at = 0
        for offset, rows in places:
            self.read_into(out[at : at + len(rows)], offset, rows)
            at += len(rows)

    @contextmanager
    def _opened(self, rows: RowRange) -> Iterator[OpenFile]:
        """The file as it was first opened; `ReadError` if it has been replaced or changed."""
        if self.closed:
            raise ReadError(f"{self.path}: cannot read {rows}, the source is closed; open it again")
        if (kept := self._kept) is not None:
            yield kept
            return
        fd = os.open(self._local, os.O_RDONLY | os.O_CLOEXEC)
        file = OpenFile(fd, str(self.path), fits=self._fits)
        try:
            if _identity(fd) != self._identity:
                raise ReadError(
                    f"{self.path}: has been replaced or changed since it was opened, "
                    f"{rows} may be others by now; start again"
                )
            yield file
        finally:
            file.close()

    def check_unchanged(self, rows: RowRange) -> None:
        """Raise `ReadError` if the file was replaced or changed since it was opened, or is gone."""
        try:
            with self._opened(rows):
                pass
        except OSError as error:
            raise ReadError(f"{self.path}: {rows} cannot be read: {error.strerror}") from error

    def fingerprint(self, layout: str) -> str:
        """Hex digest of `layout` and the file's size and modification time."""
        try:
            stat = self._local.stat() if self._kept is None else os.fstat(self._kept.fd)
        except OSError as error:
            raise ReadError(f"{self.path}: is gone: {error.strerror}") from error
        text = f"{layout}\n{stat.st_size}\n{stat.st_mtime_ns}"
        return hashlib.sha256(text.encode()).hexdigest()

    def close(self) -> None:
        """Release the descriptors; closing twice is no error."""
        self.closed = True
        kept, self._kept = self._kept, None
        if kept is not None:
            kept.close()


def _identity(fd: int) -> tuple[int, int, int, int]:
    """Numbers that stay the same while a path leads to the same unchanged file."""
    stat = os.fstat(fd)
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns
