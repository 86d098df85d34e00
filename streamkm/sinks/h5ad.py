"""Outputs as AnnData: a copy of the source's ``.h5ad`` file, with the values as a column of obs.

An unfinished output is an ``.npy`` file, because HDF5 promises nothing about a file after a crash.
The copy is made when all values are there. The source is never written to: a crash in the middle of
that could cost the user's data. anndata is not needed.
"""

from __future__ import annotations

import errno
import zlib
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from streamkm.errors import ConfigError, ReadError, ResumeError
from streamkm.files import OutputFile, fsync_file, pieces_of
from streamkm.sinks.base import JoiningSink
from streamkm.sinks.npy import NpySink
from streamkm.sinks.places import COLUMN_BYTES
from streamkm.sources.layout import one_line

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["H5adSink"]

#: The column of obs.
COLUMN = "cluster"
#: Rows that are copied into the column, or checked, at once.
_ROWS = 1 << 18
#: Raised by h5py for what is no HDF5 file, or holds something else, or is damaged.
_DAMAGED = (OSError, RuntimeError, ValueError, KeyError, TypeError, AttributeError)


class H5adSink(JoiningSink, NpySink):
    """A copy of an ``.h5ad`` file whose obs has one column more.

    Parameters
    ----------
    target, n_rows, dtype, state
        See `Sink`.
    origin : Path or None
        The file that is copied.
    """

    def __init__(
        self,
        target: Path,
        *,
        n_rows: int,
        dtype: np.dtype[Any],
        state: dict[str, Any] | None,
        origin: Path | None,
    ) -> None:
        self._origin = self.check_origin(target, origin, n_rows, dtype)
        self._identity = _identity(self._origin)
        super().__init__(target, n_rows=n_rows, dtype=dtype, state=state)

    @classmethod
    def check_origin(
        cls, target: Path, origin: Path | None, n_rows: int, dtype: np.dtype[Any]
    ) -> Path:
        """`origin`, if its obs has `n_rows` and room for a column of `dtype`.

        Raises
        ------
        ConfigError
            If it has not, or is no AnnData.
        """
        elsewhere = "write the labels as .npy or .parquet"
        if dtype.shape:
            raise ConfigError(
                f"{target}: a column of obs holds one label a row, not those of the "
                f"{dtype.shape[0]} nearest centroids; {elsewhere}"
            )
        if origin is None or not h5py.is_hdf5(origin):
            raise ConfigError(
                f"{target}: is a copy of the source with its labels, so the source must be one "
                f"local .h5ad file; {elsewhere}"
            )
        try:
            with h5py.File(origin, "r") as file:
                obs = file["obs"]
                if _text(obs.attrs["encoding-type"]) != "dataframe":
                    raise KeyError("encoding-type is not dataframe")
                index = obs[_text(obs.attrs["_index"])]
                found = _length(index)
                is_taken = COLUMN in obs or COLUMN in _columns(obs)
        except _DAMAGED as error:
            raise ConfigError(
                f"{target}: is a copy of the source with its labels, so the source must be an "
                f".h5ad file of anndata 0.7 or later; {origin} has no such obs: {one_line(error)}; "
                f"write it again with anndata, or {elsewhere}"
            ) from error
        if found != n_rows:
            raise ConfigError(
                f"{target}: obs of {origin} has {found:,} rows, there are {n_rows:,} labels; "
                f"{elsewhere}"
            )
        if is_taken:
            raise ConfigError(
                f"{target}: obs of {origin} has a column {COLUMN} already; rename it there, or "
                f"{elsewhere}"
            )
        return origin

    @classmethod
    def stored_crc32(cls, path: Path, n_rows: int, dtype: np.dtype[Any]) -> int | None:
        """See `Sink`."""
        try:
            with h5py.File(path, "r") as file:
                column = file["obs"][COLUMN]
                if column.shape != (n_rows,) or column.dtype != dtype:
                    return None
                crc = 0
                for start in range(0, n_rows, _ROWS):
                    crc = zlib.crc32(column[start : start + _ROWS].view(np.uint8).data, crc)
        except _DAMAGED:
            return None
        return crc

    def _open(self) -> OutputFile:
        """Open the unfinished output, which may be the copy of an interrupted commit."""
        if self._durable_rows == self.n_rows and h5py.is_hdf5(self._partial):
            if self.stored_crc32(self._partial, self.n_rows, self.dtype) != self._crc:
                raise ResumeError(
                    f"{self._partial}: the {self.n_rows:,} rows in it are not those that were "
                    "written; check the disk, and start again without resuming"
                )
            self._is_joined = True
            return OutputFile(self._partial)
        return super()._open()

    def _join(self) -> None:
        """See `JoiningSink`: copy the source, and add the column."""
        self._copy()
        self._add_column()
        fsync_file(self._joined)

    def _copy(self) -> None:
        """Copy the source, with room for the column behind it."""
        file = OutputFile(self._joined, create=True)
        try:
            # A disk that is full says so here, and not within HDF5, which cuts off what is left.
            file.reserve(self._identity[0] + self.n_rows * self.dtype.itemsize + COLUMN_BYTES)
            position = 0
            for piece in pieces_of(self._origin):
                file.write(position, piece)
                position += len(piece)
        finally:
            file.close()
        if _identity(self._origin) != self._identity:
            raise ReadError(
                f"{self._origin}: has changed since the labels were begun; start again without "
                "resuming"
            )

    def _add_column(self) -> None:
        rows = np.load(self._partial, mmap_mode="r")
        try:
            with h5py.File(self._joined, "r+") as file:
                obs = file["obs"]
                names = _columns(obs)
                column = obs.create_dataset(COLUMN, (self.n_rows,), self.dtype)
                for start in range(0, self.n_rows, _ROWS):
                    column[start : start + _ROWS] = rows[start : start + _ROWS]
                column.attrs["encoding-type"] = "array"
                column.attrs["encoding-version"] = "0.2.0"
                obs.attrs.create("column-order", [*names, COLUMN], dtype=h5py.string_dtype())
        except OSError:
            raise
        except _DAMAGED as error:
            raise OSError(errno.EIO, one_line(error), str(self._joined)) from error


def _identity(path: Path) -> tuple[int, int]:
    """Size and modification time of a file."""
    found = path.stat()
    return found.st_size, found.st_mtime_ns


def _columns(obs: h5py.Group) -> list[str]:
    """Names of the columns of obs; anndata writes no names as an empty array of floats."""
    return [_text(name) for name in obs.attrs["column-order"]]


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _length(index: h5py.Dataset | h5py.Group) -> int:
    """Rows of an index: an array, or a group of values and a mask, or of codes and categories."""
    if isinstance(index, h5py.Group):
        index = index["values" if "values" in index else "codes"]
    return int(index.shape[0])
