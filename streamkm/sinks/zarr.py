"""Outputs as Zarr arrays: written and synced chunk by chunk.

A chunk holds rows that follow each other, also where the array has more than one axis: it is as
large as the array along the last axes, and one element long along the first.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr
from zarr.storage import LocalStore

from streamkm.errors import ResumeError
from streamkm.files import fsync_directory, fsync_file, remove_file, remove_tree
from streamkm.sinks.base import PartedSink
from streamkm.sinks.part import Part
from streamkm.sources.layout import one_line

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["ZarrSink"]

#: Files of a Zarr array, of either version, that are no chunks.
_METADATA = {"zarr.json", ".zarray", ".zattrs"}


@dataclass(frozen=True, slots=True)
class RowChunks:
    """Chunks of an array whose rows are its elements in C order.

    If rows have several values, an array has one more axis, of which every chunk holds all.
    """

    shape: tuple[int, ...]
    chunks: tuple[int, ...]

    @classmethod
    def of_array(cls, array: zarr.Array[Any], dtype: np.dtype[Any]) -> RowChunks:
        """The chunks of an array whose rows are of `dtype`."""
        n_axes = len(array.shape) - len(dtype.shape)
        return cls(array.shape[:n_axes], array.chunks[:n_axes])

    @classmethod
    def of_rows(cls, shape: tuple[int, ...], chunk_rows: int) -> RowChunks:
        """Chunks of about `chunk_rows`, at most those unless the last axes are longer."""
        chunks = [1] * len(shape)
        left = max(chunk_rows, 1)
        for axis in reversed(range(len(shape))):
            chunks[axis] = min(shape[axis], left)
            left //= shape[axis]
            if left < 1:
                break
        return cls(shape, tuple(chunks))

    @property
    def axis(self) -> int:
        """The axis that chunks cut: they are whole along all that follow."""
        cut = (axis for axis in reversed(range(len(self.shape))) if self._is_cut(axis))
        return next(cut, 0)

    def _is_cut(self, axis: int) -> bool:
        return self.chunks[axis] < self.shape[axis]

    @property
    def are_rows(self) -> bool:
        """Whether each chunk holds rows that follow each other."""
        return all(size == 1 for size in self.chunks[: self.axis])

    @property
    def unit(self) -> int:
        """Rows of one element of `axis`."""
        return prod(self.shape[self.axis + 1 :])

    @property
    def most_rows(self) -> int:
        """Rows of a chunk that is no last one."""
        return self.chunks[self.axis] * self.unit

    def starts(self, n_rows: int) -> list[int]:
        """First row of each chunk before row `n_rows`, and the row after the last of them."""
        period = self.shape[self.axis] * self.unit
        within = range(0, period, self.most_rows)
        starts = [
            outer + start
            for outer in range(0, n_rows, period)
            for start in within
            if outer + start < n_rows
        ]
        last = min(starts[-1] + self.most_rows, starts[-1] // period * period + period)
        return [*starts, last]

    def rows_at(self, row: int) -> int:
        """Rows of the chunk that begins at `row`."""
        period = self.shape[self.axis] * self.unit
        return min(self.most_rows, period - row % period)

    def end(self, row: int) -> int:
        """The row after the chunk that `row` is in."""
        within = row % (self.shape[self.axis] * self.unit)
        return row - within % self.most_rows + self.rows_at(row - within % self.most_rows)

    def index(self, row: int) -> tuple[int, ...]:
        """The place of the chunk that begins at `row` among the chunks."""
        corner = self._corner(row)
        return tuple(at // size for at, size in zip(corner, self.chunks, strict=True))

    def selection(self, row: int) -> tuple[slice, ...]:
        """The elements of the chunk that begins at `row`."""
        return tuple(
            slice(at, min(at + size, extent))
            for at, size, extent in zip(self._corner(row), self.chunks, self.shape, strict=True)
        )

    def _corner(self, row: int) -> tuple[int, ...]:
        return tuple(int(at) for at in np.unravel_index(row, self.shape))


class ZarrPart(Part):
    """Chunks of a Zarr array.

    Rows of an unfinished chunk stay in memory. If they were written early, the
    chunk would have to be written again, over the only copy of rows that a
    cursor may have claimed by then.

    Parameters
    ----------
    folder : Path
        The folder of the array.
    array : zarr.Array
        The array; it is written to.
    dtype : dtype
        Type of its rows, as in `Sink`.
    start_row : int
        See `Part`; where a chunk begins.
    """

    def __init__(
        self, folder: Path, array: zarr.Array[Any], dtype: np.dtype[Any], start_row: int
    ) -> None:
        self._layout = RowChunks.of_array(array, dtype)
        super().__init__(prod(self._layout.shape), start_row)
        self._folder, self._array, self._dtype = folder, array, dtype
        self._buffer = np.empty(self._layout.most_rows, dtype)
        self._filled = 0
        self._stored = start_row
        self._unsynced: list[Path] = []

    def span_end(self, row: int) -> int:
        """See `Part`."""
        return self._layout.end(row)

    def _pass_over(self, stop: int) -> None:
        if self._filled:
            raise ValueError(f"{self._folder}: the chunk of row {self._stored} is not whole")
        super()._pass_over(stop)
        self._stored = stop

    def _put(self, values: np.ndarray) -> None:
        while values.size:
            size = self._layout.rows_at(self._stored)
            taken = values[: size - self._filled]
            self._buffer[self._filled : self._filled + len(taken)] = taken
            self._filled += len(taken)
            values = values[len(taken) :]
            if self._filled == size:
                selection = self._layout.selection(self._stored)
                values_C = self._buffer[:size]
                shape = [along.stop - along.start for along in selection]
                self._array[selection] = values_C.reshape(*shape, *self._dtype.shape)
                self._note(self._stored, values_C)
                path = _chunk_path(self._folder, self._array, self._dtype, self._stored)
                self._unsynced.append(path)
                self._stored += size
                self._filled = 0

    def _sync(self) -> None:
        folders = {self._folder}
        for path in self._unsynced:
            fsync_file(path)
            folders.update(folder for folder in path.parents if self._folder in folder.parents)
        for folder in sorted(folders):
            fsync_directory(folder)
        self._unsynced.clear()

    def _release(self) -> None:
        """Zarr keeps no file open."""


class ZarrSink(PartedSink):
    """A Zarr v3 array of one dimension, or of two, written in whole chunks only.

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
        array = self._create(chunk_rows) if state is None else self._check(chunk_rows)
        self.part = ZarrPart(self._partial, array, dtype, self._durable_rows)

    @classmethod
    def open_part(
        cls, partial: Path, n_rows: int, dtype: np.dtype[Any], start_row: int
    ) -> ZarrPart:
        """See `PartedSink`."""
        del n_rows  # The array knows them.
        return ZarrPart(partial, _opened(partial), dtype, start_row)

    @classmethod
    def stored_crc32(cls, path: Path, n_rows: int, dtype: np.dtype[Any]) -> int | None:
        """See `Sink`."""
        try:
            array = zarr.open_array(LocalStore(path, read_only=True), mode="r")
            layout = RowChunks.of_array(array, dtype)
            is_such = _value_shape(array, dtype) == dtype.shape and array.dtype == dtype.base
            if prod(layout.shape) != n_rows or not is_such or not layout.are_rows:
                return None
            crc = 0
            for row in layout.starts(n_rows)[:-1]:
                values = np.ascontiguousarray(array[layout.selection(row)]).reshape(-1)
                crc = zlib.crc32(values.view(np.uint8).data, crc)
        except Exception:  # noqa: BLE001  of whatever type, it means that the output was altered
            return None
        return crc

    def _create(self, chunk_rows: int) -> zarr.Array[Any]:
        layout = RowChunks.of_rows(self._shape(), chunk_rows)
        array = zarr.create_array(
            LocalStore(self._partial),
            shape=(*layout.shape, *self.dtype.shape),
            dtype=self.dtype.base,
            chunks=(*layout.chunks, *self.dtype.shape),
            # Without it Zarr leaves out a chunk of zeros, which would look like a missing one.
            config={"write_empty_chunks": True},
            **self._about(),
        )
        for name in sorted(_METADATA):
            if (self._partial / name).is_file():
                fsync_file(self._partial / name)
        fsync_directory(self._partial)
        fsync_directory(self._partial.parent)
        return array

    def _shape(self) -> tuple[int, ...]:
        """Axes of the rows; their elements in C order are the rows."""
        return (self.n_rows,)

    def _about(self) -> dict[str, Any]:
        """More arguments of `zarr.create_array`."""
        return {}

    def _check(self, chunk_rows: int) -> zarr.Array[Any]:
        """Open the unfinished array, if it fits, and delete the chunks that no cursor claims."""
        try:
            array = _opened(self._partial)
        except Exception as error:
            if self._durable_rows == 0:
                # A crash came before the metadata were on disk, so there is nothing to lose.
                remove_tree(self._partial)
                return self._create(chunk_rows)
            raise ResumeError(
                f"{self._partial}: cannot be opened: {one_line(error)}; "
                "start again without resuming"
            ) from error
        layout = RowChunks.of_array(array, self.dtype)
        values = _value_shape(array, self.dtype)
        is_such = values == self.dtype.shape and array.dtype == self.dtype.base
        if layout.shape != self._shape() or not is_such:
            raise self._mismatch(prod(array.shape) // prod(values), np.dtype((array.dtype, values)))
        claimed = self._durable_rows
        if not layout.are_rows or (claimed and layout.starts(claimed)[-1] != claimed):
            raise ResumeError(
                f"{self._partial}: its cursor claims {claimed} rows, no whole number "
                f"of chunks of {layout.most_rows}; start again without resuming"
            )
        self._drop_unclaimed(array)
        self._check_stored(self._stored_values(array))
        return array

    def _stored_values(self, array: zarr.Array[Any]) -> Iterator[np.ndarray]:
        layout = RowChunks.of_array(array, self.dtype)
        for row in self._durable_chunks(array):
            try:
                values = array[layout.selection(row)]
            except Exception as error:
                raise ResumeError(
                    f"{self._chunk_path(array, row)}: cannot be read: {one_line(error)}; "
                    "check the disk, and start again without resuming"
                ) from error
            yield np.ascontiguousarray(values).reshape(-1)

    def _drop_unclaimed(self, array: zarr.Array[Any]) -> None:
        """Delete chunks after the durable rows, and parts of chunks that a killed run left."""
        claimed = {self._chunk_path(array, row) for row in self._durable_chunks(array)}
        missing = [path for path in sorted(claimed) if not path.is_file()]
        if missing:
            raise ResumeError(
                f"{missing[0]}: is gone, but its rows are claimed; start again without resuming"
            )
        for path in self._partial.rglob("*"):
            if path.is_file() and path not in claimed and path.name not in _METADATA:
                remove_file(path)

    def _durable_chunks(self, array: zarr.Array[Any]) -> list[int]:
        """First row of each durable chunk."""
        claimed = self._durable_rows
        return RowChunks.of_array(array, self.dtype).starts(claimed)[:-1] if claimed else []

    def _chunk_path(self, array: zarr.Array[Any], row: int) -> Path:
        return _chunk_path(self._partial, array, self.dtype, row)


def _opened(folder: Path) -> zarr.Array[Any]:
    """The array in `folder`, to be written to."""
    # `open_array` ignores its own `config`, as of zarr 3.1.
    with zarr.config.set({"array.write_empty_chunks": True}):
        return zarr.open_array(LocalStore(folder), mode="r+")


def _chunk_path(folder: Path, array: zarr.Array[Any], dtype: np.dtype[Any], row: int) -> Path:
    """Path of the chunk of the array in `folder`, of rows of `dtype`, that begins at `row`."""
    index = RowChunks.of_array(array, dtype).index(row)
    whole = (0,) * len(dtype.shape)
    return folder / array.metadata.encode_chunk_key((*index, *whole))


def _value_shape(array: zarr.Array[Any], dtype: np.dtype[Any]) -> tuple[int, ...]:
    """Shape of the values of a row, if the rows of `array` are of `dtype`."""
    return array.shape[len(array.shape) - len(dtype.shape) :]
