"""Outputs as Zarr arrays: written and synced chunk by chunk."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr
from zarr.storage import LocalStore

from streamkm.errors import ResumeError
from streamkm.files import fsync_directory, fsync_file, remove_file, remove_tree
from streamkm.sinks.base import Sink
from streamkm.sources.layout import one_line

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["ZarrSink"]


class ZarrSink(Sink):
    """A Zarr v3 array of one dimension, written in whole chunks only.

    Rows of an unfinished chunk stay in memory. If they were written early, the
    chunk would have to be written again, over the only copy of rows that a
    cursor may have claimed by then.

    Parameters
    ----------
    target, n_rows, dtype, state
        See `Sink`.
    chunk_rows : int
        Rows of a chunk; a resumed output keeps its own.
    """

    is_chunked = True

    def __init__(
        self,
        target: Path,
        *,
        n_rows: int,
        dtype: np.dtype[Any],
        state: dict[str, Any] | None,
        chunk_rows: int,
    ) -> None:
        super().__init__(target, n_rows=n_rows, dtype=dtype, state=state)
        self._array = self._create(chunk_rows) if state is None else self._check(chunk_rows)
        self._buffer = np.empty(self._array.chunks[0], dtype)
        self._filled = 0
        self._stored = self._durable_rows
        self._unsynced: list[Path] = []

    @classmethod
    def stored_crc32(cls, path: Path, n_rows: int, dtype: np.dtype[Any]) -> int | None:
        """See `Sink`."""
        try:
            array = zarr.open_array(LocalStore(path, read_only=True), mode="r")
            if array.shape != (n_rows,) or array.dtype != dtype:
                return None
            crc = 0
            for row in range(0, n_rows, array.chunks[0]):
                values = np.ascontiguousarray(array[row : row + array.chunks[0]])
                crc = zlib.crc32(values.view(np.uint8).data, crc)
        except Exception:  # noqa: BLE001  of whatever type, it means that the output was altered
            return None
        return crc

    def _create(self, chunk_rows: int) -> zarr.Array[Any]:
        array = zarr.create_array(
            LocalStore(self._partial),
            shape=(self.n_rows,),
            dtype=self.dtype,
            chunks=(min(chunk_rows, self.n_rows),),
            # Without it Zarr leaves out a chunk of zeros, which would look like a missing one.
            config={"write_empty_chunks": True},
        )
        fsync_file(self._partial / "zarr.json")
        fsync_directory(self._partial)
        fsync_directory(self._partial.parent)
        return array

    def _check(self, chunk_rows: int) -> zarr.Array[Any]:
        """Open the unfinished array, if it fits, and delete the chunks that no cursor claims."""
        try:
            # `open_array` ignores its own `config`, as of zarr 3.1.
            with zarr.config.set({"array.write_empty_chunks": True}):
                array = zarr.open_array(LocalStore(self._partial), mode="r+")
        except Exception as error:
            if self._durable_rows == 0:
                # A crash came before the metadata were on disk, so there is nothing to lose.
                remove_tree(self._partial)
                return self._create(chunk_rows)
            raise ResumeError(
                f"{self._partial}: cannot be opened: {one_line(error)}; "
                "start again without resuming"
            ) from error
        if array.shape != (self.n_rows,) or array.dtype != self.dtype:
            raise self._mismatch(array.shape[0] if array.shape else 0, array.dtype)
        size = array.chunks[0]
        if self._durable_rows % size and self._durable_rows != self.n_rows:
            raise ResumeError(
                f"{self._partial}: its cursor claims {self._durable_rows} rows, no whole number "
                f"of chunks of {size}; start again without resuming"
            )
        self._drop_unclaimed(array)
        self._check_stored(self._stored_values(array))
        return array

    def _stored_values(self, array: zarr.Array[Any]) -> Iterator[np.ndarray]:
        for row in self._rows_of_chunks(array):
            try:
                values = array[row : min(row + array.chunks[0], self._durable_rows)]
            except Exception as error:
                raise ResumeError(
                    f"{self._chunk_path(array, row)}: cannot be read: {one_line(error)}; "
                    "check the disk, and start again without resuming"
                ) from error
            yield np.ascontiguousarray(values)

    def _drop_unclaimed(self, array: zarr.Array[Any]) -> None:
        """Delete chunks after the durable rows, and parts of chunks that a killed run left."""
        claimed = {self._chunk_path(array, row) for row in self._rows_of_chunks(array)}
        missing = [path for path in sorted(claimed) if not path.is_file()]
        if missing:
            raise ResumeError(
                f"{missing[0]}: is gone, but its rows are claimed; start again without resuming"
            )
        for path in self._partial.rglob("*"):
            if path.is_file() and path not in claimed and path.name != "zarr.json":
                remove_file(path)

    def _rows_of_chunks(self, array: zarr.Array[Any]) -> range:
        """First row of each durable chunk."""
        return range(0, self._durable_rows, array.chunks[0])

    def _chunk_path(self, array: zarr.Array[Any], row: int) -> Path:
        return self._partial / array.metadata.encode_chunk_key((row // array.chunks[0],))

    def _put(self, values: np.ndarray) -> None:
        while values.size:
            taken = values[: self._buffer.size - self._filled]
            self._buffer[self._filled : self._filled + taken.size] = taken
            self._filled += taken.size
            values = values[taken.size :]
            last = self._stored + self._filled == self.n_rows
            if self._filled == self._buffer.size or last:
                values_C = self._buffer[: self._filled]
                self._array[self._stored : self._stored + self._filled] = values_C
                self._count(values_C)
                self._unsynced.append(self._chunk_path(self._array, self._stored))
                self._stored += self._filled
                self._filled = 0

    def _sync(self) -> int:
        folders = {self._partial}
        for path in self._unsynced:
            fsync_file(path)
            folders.add(path.parent)
        if self._unsynced:
            for folder in sorted(folders):
                fsync_directory(folder)
        self._unsynced.clear()
        return self._stored

    def _release(self) -> None:
        """Zarr keeps no file open."""
