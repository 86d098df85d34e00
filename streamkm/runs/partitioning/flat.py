"""An ``.npy`` file of rows that are written at any place, in any order."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.lib import format as npy_format

from streamkm.errors import ResumeError
from streamkm.files import OutputFile, fsync_directory, remove_file, rename_durably

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["FlatOutput", "open_flat"]


class FlatOutput:
    """An ``.npy`` file of its final size, which `publish` gives its name.

    Parameters
    ----------
    path : Path
        The unfinished file.
    shape : tuple of int
        Shape of the array; the first axis is rows.
    dtype : dtype
        Of the elements.
    resumed : bool
        Whether an earlier attempt has begun the file, and its cursor claims what is in it.
    """

    align_rows = 1

    def __init__(
        self, path: Path, shape: tuple[int, ...], dtype: np.dtype[Any], *, resumed: bool
    ) -> None:
        header = io.BytesIO()
        descr = npy_format.dtype_to_descr(dtype)
        about = {"descr": descr, "fortran_order": False, "shape": shape}
        npy_format.write_array_header_1_0(header, about)
        self._path, self._first = path, header.tell()
        self._width = int(np.prod(shape[1:], dtype=np.int64)) * dtype.itemsize
        self._end, self._is_closed = 0, False
        self._file = open_flat(path, self._first + shape[0] * self._width, resumed=resumed)
        # Also if it was resumed: a cursor may claim buckets before the output is synced.
        self._file.write(0, header.getvalue())

    def put(self, start: int, rows: np.ndarray) -> None:
        """Write `rows`, uint8 of shape (n, bytes of a row), from row `start` on."""
        self._file.write(self._first + start * self._width, rows.reshape(-1).data)
        self._end = start + len(rows)

    def sync(self) -> int:
        """Bring what was written to disk; the row after the last one that was put."""
        self._file.sync()
        return self._end

    def publish(self, target: Path) -> None:
        """Give the complete file its name."""
        self._file.sync()
        self.close()
        rename_durably(self._path, target)

    def close(self) -> None:
        """Release the file, which can be resumed; may be done twice."""
        if not self._is_closed:  # Its number may be that of another file by now.
            self._is_closed = True
            self._file.close()


def open_flat(path: Path, size: int, *, resumed: bool) -> OutputFile:
    """The file `path` of `size` bytes: the one that is there if `resumed`, else a new one."""
    if not resumed:
        remove_file(path)
    file = OutputFile(path, create=not resumed)
    try:
        if resumed:
            if file.size != size:
                raise ResumeError(
                    f"{path}: has {file.size:,} bytes in place of {size:,}, so it was altered; "
                    "remove the partition and start again"
                )
            return file
        file.reserve(size)
        file.sync()
        fsync_directory(path.parent)
    except BaseException:
        file.close()
        raise
    return file
