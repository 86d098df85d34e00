"""The protocol of outputs: one value a row, resumable after a crash at any moment.

An output grows under a temporary name beside its target and is renamed when it
is complete, so a file of the target's name is always whole. A cursor beside it
says how far a run has come. The cursor claims only rows that are on disk, and
holds their checksum.
"""

from __future__ import annotations

import errno
import os
import zlib
from abc import ABC, abstractmethod
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from streamkm.errors import OutputExistsError, ResumeError
from streamkm.files import (
    discard,
    fsync_directory,
    remove_file,
    remove_tree,
    rename_durably,
    write_atomically,
)
from streamkm.sealed import seal
from streamkm.sinks.checksum import joined_crc32
from streamkm.sinks.places import beside

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from streamkm.files import FileLock
    from streamkm.sinks.part import Part, Written

__all__ = [
    "JoiningSink",
    "PartedSink",
    "PublishedSink",
    "Sink",
    "commit_together",
    "discard_partial",
    "refuse_existing",
]


def refuse_existing(target: Path) -> None:
    """Raise `OutputExistsError` if anything is at `target`, even a dangling link."""
    if os.path.lexists(target):
        raise OutputExistsError(f"{target}: exists already; remove it or choose another name")


def discard_partial(partial: Path, cursor: Path) -> None:
    """Delete an unfinished output: the cursor first, so that it never outlives its rows."""
    if cursor.exists():
        remove_file(cursor)
        fsync_directory(cursor.parent)
    remove_tree(partial)


class Sink(ABC):
    """An output of values of each row, written from the first row to the last by one thread.

    Parameters
    ----------
    target : Path
        Where the output appears at `commit`.
    n_rows : int
        Rows of the output.
    dtype : dtype
        Type of the values, in native byte order. A subarray type, such as ``(int32, (3,))``, is
        that of rows of several values.
    state : dict or None
        ``durable_rows``, ``crc32`` and ``cursor`` as `write_cursor` saved them, to resume
        an unfinished output; None begins a new one.
    """

    is_chunked = False
    """Whether the constructor takes ``chunk_rows``."""
    has_parts = False
    """Whether several processes can write the output together, each a `Part` of it; such a sink is
    a `PartedSink`."""

    @classmethod
    def stored_crc32(cls, path: Path, n_rows: int, dtype: np.dtype[Any]) -> int | None:
        """Checksum of the values of the finished output at `path`; None if it is no such array.

        A format without a checksum returns None: its outputs never count as finished.
        """
        del path, n_rows, dtype
        return None

    def __init__(
        self, target: Path, *, n_rows: int, dtype: np.dtype[Any], state: dict[str, Any] | None
    ) -> None:
        self.path = target
        self.n_rows = n_rows
        self.dtype = dtype
        self._partial = beside(target, ".partial")
        self._cursor_path = self._partial.with_name(self._partial.name + ".json")
        self._durable_rows = 0 if state is None else int(state["durable_rows"])
        self._cursor: dict[str, Any] | None = None if state is None else state["cursor"]
        self._next_row = self._durable_rows
        self._crc = 0 if state is None else int(state["crc32"])
        self._closed = self._failed = False
        self._lock: FileLock | None = None
        self._ahead: list[Written] = []

    @property
    def durable_rows(self) -> int:
        """Rows, from the first on, that the last `flush` brought to disk: a cursor may claim them.

        Only whole chunks of a ``.zarr`` or ``.parquet`` output are written, so there this is
        a multiple of the chunk until the last row is written.
        """
        return self._durable_rows

    @property
    def next_row(self) -> int:
        """The row after the last one written: the next `write` starts here or before."""
        return self._next_row

    @property
    def crc32(self) -> int:
        """Checksum of the stored values."""
        return self._crc

    def write(self, start_row: int, values: np.ndarray) -> None:
        """Write values of consecutive rows.

        Parameters
        ----------
        start_row : int
            Row of the first value; at most `next_row`. Values of rows before
            `next_row` were written before and are passed over, so a resumed run
            may begin at the start of a batch.
        values : ndarray of shape (rows,) and the sink's dtype, or (rows, M) of a subarray type
            Copied, or written, before the call returns.

        Raises
        ------
        ValueError
            If rows would be skipped or pass the end, or if the values have another dtype.
        OSError
            If the disk is full or refuses.
        """
        if values.shape[1:] != self.dtype.shape or values.dtype != self.dtype.base:
            raise ValueError(
                f"{self.path}: values must be rows of {_said(self.dtype)}, "
                f"got {values.ndim} dimensions, {values.shape}, of {values.dtype}"
            )
        stop = start_row + len(values)
        if not 0 <= start_row <= self._next_row or stop > self.n_rows:
            raise ValueError(
                f"{self.path}: rows {start_row}:{stop} cannot be written, "
                f"the next is {self._next_row} of {self.n_rows}"
            )
        fresh = values[self._next_row - start_row :]
        if fresh.size:
            with self._once_failed_always_failed():
                self._put(np.ascontiguousarray(fresh))
            self._next_row = stop

    def flush(self) -> None:
        """Wait until all that was written is on disk, and move `durable_rows` up to it.

        Raises
        ------
        OSError
            If the disk refuses. After that the sink refuses everything: a second
            attempt would succeed without the rows that were lost.
        """
        with self._once_failed_always_failed():
            self._durable_rows = self._sync()

    def claim(self, written: Iterable[Written]) -> None:
        """Move `durable_rows` over `written`, which parts have brought to disk, in any order.

        Rows behind some that are missing count once those are there, too.

        Raises
        ------
        ValueError
            If rows were written twice.
        """
        self._ahead = sorted([*self._ahead, *written])
        n_claimed = 0
        for start, stop, crc32 in self._ahead:
            if start < self._durable_rows:
                raise ValueError(f"{self.path}: rows {start}:{stop} were written twice")
            if start > self._durable_rows:
                break
            self._crc = joined_crc32(self._crc, crc32, (stop - start) * self.dtype.itemsize)
            self._durable_rows, n_claimed = stop, n_claimed + 1
        del self._ahead[:n_claimed]
        self._next_row = max(self._next_row, self._durable_rows)

    def write_cursor(self, cursor: dict[str, Any]) -> None:
        """Flush, then save the place where a resumed run goes on.

        Parameters
        ----------
        cursor : dict
            Anything that JSON can hold; it must claim no rows beyond the
            `durable_rows` that this flush reaches.
        """
        self.flush()
        with self._once_failed_always_failed():
            state = {"durable_rows": self._durable_rows, "crc32": self._crc, "cursor": cursor}
            write_atomically(self._cursor_path, seal(state))
        self._cursor = cursor

    def read_cursor(self) -> dict[str, Any] | None:
        """The cursor that was saved last, here or by the run that is resumed; None if none was."""
        return self._cursor

    def commit(self) -> None:
        """Flush, give the output its name, and close; `commit_together` does so for several.

        Raises
        ------
        ValueError
            If rows are missing.
        OutputExistsError
            If the target has appeared meanwhile; the unfinished output stays.
        """
        commit_together([self])

    def hold(self, lock: FileLock) -> None:
        """Keep `lock`, by which this process alone writes the output, until `close`."""
        self._lock = lock

    def admit_others(self) -> None:
        """Let other processes write parts; until all have closed theirs nobody begins anew.

        Raises
        ------
        RunError
            If a process of another run takes the output in this very moment.
        """
        assert self._lock is not None
        self._lock.share()

    def discard(self) -> None:
        """Delete everything written, so that nothing can be resumed, and close."""
        self._shut()
        discard_partial(self._partial, self._cursor_path)
        self.close()

    def finish(self) -> None:
        """Flush, save in the cursor's file that every row is durable, and end writing."""
        if self._next_row != self.n_rows:
            raise ValueError(
                f"{self.path}: cannot be completed, {self._next_row} of {self.n_rows} rows written"
            )
        self.write_cursor(self._cursor or {})
        # From here on only another program can take the name: streamkm takes the lock first.
        refuse_existing(self.path)
        self._shut()

    def publish(self) -> None:
        """Give the finished output its name."""
        rename_durably(self._partial, self.path)
        self.announce(self.path)

    @classmethod
    def announce(cls, path: Path) -> None:
        """Tell what surrounds the output that has got the name `path`; may be done twice."""
        del path  # A file stands alone.

    def forget(self) -> None:
        """Delete the cursor, after which there is nothing to resume."""
        remove_file(self._cursor_path)
        fsync_directory(self._cursor_path.parent)

    def close(self) -> None:
        """Release files and the lock; an output that was not committed can be resumed."""
        try:
            self._shut()
        finally:
            if self._lock is not None:
                self._lock.release(remove=True)

    def _shut(self) -> None:
        if not self._closed:
            self._closed = True
            self._release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def _once_failed_always_failed(self) -> Iterator[None]:
        if self._closed:
            raise ValueError(f"{self.path}: the output is closed")
        if self._failed:
            raise OSError(errno.EIO, "an earlier write failed; start again", str(self._partial))
        self._failed = True
        yield
        self._failed = False

    def _check_stored(self, parts: Iterable[np.ndarray]) -> None:
        """Raise `ResumeError` unless `parts`, the values of the durable rows, have the checksum."""
        crc = 0
        for values in parts:
            crc = zlib.crc32(values.view(np.uint8).data, crc)
        if crc != self._crc:
            raise ResumeError(
                f"{self._partial}: the {self._durable_rows:,} rows in it are not those that were "
                "written (their checksum differs); check the disk, and start again without resuming"
            )

    def _mismatch(self, n_rows: int, dtype: np.dtype[Any] | str) -> ResumeError:
        return ResumeError(
            f"{self._partial}: holds {n_rows} rows of {_said(dtype)}, this run writes "
            f"{self.n_rows} of {_said(self.dtype)}; start again without resuming"
        )

    @abstractmethod
    def _put(self, values: np.ndarray) -> None:
        """Store or keep contiguous `values` of the rows from `next_row` on."""

    @abstractmethod
    def _sync(self) -> int:
        """Bring what was written to disk, and return the number of rows that are there."""

    @abstractmethod
    def _release(self) -> None:
        """Release files."""


class PartedSink(Sink):
    """An output that several processes can write together, each a part of it.

    One process has the sink, writes through `part` as others do through theirs, and claims the rows
    of all. Alone it writes the rows to the sink.
    """

    has_parts = True
    part: Part
    """What this process writes."""

    @classmethod
    @abstractmethod
    def open_part(cls, partial: Path, n_rows: int, dtype: np.dtype[Any], start_row: int) -> Part:
        """What another process writes of the unfinished output at `partial`, from a row on."""

    def _put(self, values: np.ndarray) -> None:
        self.part.write(self._next_row, values)

    def _sync(self) -> int:
        self.claim(self.part.flush())
        return self._durable_rows

    def _release(self) -> None:
        self.part.close()


class JoiningSink(Sink):
    """An output that gets its format when all its rows are there.

    Its final file is written under a third name, which it loses only when it is on disk: a crash
    before that leaves the unfinished output to be resumed.
    """

    def __init__(self, target: Path, **options: Any) -> None:
        self._joined = beside(target, ".partial.joined")
        self._is_joined = False
        remove_file(self._joined)
        super().__init__(target, **options)

    def finish(self) -> None:
        """See `Sink`; the final file takes the place of the unfinished output."""
        super().finish()
        if self._is_joined:
            return
        try:
            self._join()
        except BaseException:
            discard(self._joined)  # It may be what fills the disk.
            raise
        rename_durably(self._joined, self._partial)
        self._is_joined = True

    def discard(self) -> None:
        """See `Sink`."""
        remove_file(self._joined)
        super().discard()

    @abstractmethod
    def _join(self) -> None:
        """Write and sync the final file under the name `_joined`, from the unfinished output."""


class PublishedSink(Sink):
    """An output that an interrupted `commit_together` had already given its name.

    Parameters
    ----------
    kind : type
        The class of sink that wrote it.
    """

    def __init__(self, target: Path, *, kind: type[Sink], **options: Any) -> None:
        super().__init__(target, **options)
        self._kind = kind

    def _put(self, values: np.ndarray) -> None:
        raise AssertionError(f"{self.path} is complete, yet {len(values)} rows came")

    def _sync(self) -> int:
        return self.n_rows

    def _release(self) -> None:
        pass

    def finish(self) -> None:
        """Do nothing: the rows are there."""

    def publish(self) -> None:
        """See `Sink`; the output has its name."""
        self._kind.announce(self.path)


def commit_together(sinks: Iterable[Sink]) -> None:
    """Commit several outputs so that a run can resume after a crash at any moment.

    The cursors are deleted last. While one output may still lack its name, a cursor
    tells each named one from a file that was there before.
    """
    sinks = list(sinks)
    for sink in sinks:
        sink.finish()
    for sink in sinks:
        sink.publish()
    for sink in sinks:
        sink.forget()
        sink.close()


def _said(dtype: np.dtype[Any] | str) -> str:
    """A type of rows in words, such as ``int32`` or ``3 x int32``."""
    return " x ".join(map(str, (*getattr(dtype, "shape", ()), getattr(dtype, "base", dtype))))
