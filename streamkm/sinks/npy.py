"""Outputs as ``.npy`` files: the header first, then each row at its place."""

from __future__ import annotations

import io
import sys
import zlib
from itertools import chain
from math import gcd
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.lib import format as npy_format

from streamkm.errors import ResumeError, SourceError
from streamkm.files import OutputFile, discard, fsync_directory, pieces_of, remove_file
from streamkm.sinks.base import PartedSink
from streamkm.sinks.part import Part
from streamkm.sources.npy import read_npy_header

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["NpySink"]

#: Bytes read to learn the shape of an unfinished output: more than a header of two dimensions has.
_HEADER_BYTES = 4096
#: Bytes of one read when an unfinished output is checked.
_READ_BYTES = 1 << 20
#: Bytes of the file that one process writes, from a multiple of them on: those of the largest page
#: of memory. A computer writes whole pages to a network file system, and would put back what it
#: has read of the other bytes in them. Where no row ends at such a multiple, as may be with 64
#: values a row, one process writes all.
SPAN_BYTES = 1 << 16


class NpyPart(Part):
    """Rows of an ``.npy`` file, each written at its place.

    Parameters
    ----------
    file : OutputFile
        The file, of its final size.
    header_bytes : int
        Where its rows begin.
    row_bytes : int
        Bytes of a row.
    n_rows, start_row
        See `Part`.
    """

    def __init__(
        self, file: OutputFile, header_bytes: int, row_bytes: int, n_rows: int, start_row: int
    ) -> None:
        super().__init__(n_rows, start_row)
        self._file, self._header_bytes, self._row_bytes = file, header_bytes, row_bytes

    def span_end(self, row: int) -> int:
        """See `Part`."""
        return min(_span_end(row, self._header_bytes, self._row_bytes), self.n_rows)

    def _put(self, values: np.ndarray) -> None:
        position = self._header_bytes + self.next_row * self._row_bytes
        self._file.write(position, values.reshape(-1).view(np.uint8).data)
        self._note(self.next_row, values)

    def _sync(self) -> None:
        self._file.sync()

    def _release(self) -> None:
        self._file.close()


class NpySink(PartedSink):
    """An ``.npy`` file that has its final size from the start and is written by position.

    Parameters are those of `Sink`.
    """

    def __init__(
        self, target: Path, *, n_rows: int, dtype: np.dtype[Any], state: dict[str, Any] | None
    ) -> None:
        super().__init__(target, n_rows=n_rows, dtype=dtype, state=state)
        self._header = _header(n_rows, dtype)
        self._size = len(self._header) + n_rows * dtype.itemsize
        file = self._create() if state is None else self._open()
        self.part = NpyPart(file, len(self._header), dtype.itemsize, n_rows, self._durable_rows)

    @classmethod
    def open_part(cls, partial: Path, n_rows: int, dtype: np.dtype[Any], start_row: int) -> NpyPart:
        """See `PartedSink`."""
        header_bytes = len(_header(n_rows, dtype))
        return NpyPart(OutputFile(partial), header_bytes, dtype.itemsize, n_rows, start_row)

    @classmethod
    def stored_crc32(cls, path: Path, n_rows: int, dtype: np.dtype[Any]) -> int | None:
        """See `Sink`."""
        header = _header(n_rows, dtype)
        pieces = pieces_of(path)
        first = next(pieces, b"")
        crc, n_bytes = 0, 0
        for piece in chain((first[len(header) :],), pieces):
            crc, n_bytes = zlib.crc32(piece, crc), n_bytes + len(piece)
        is_whole = first.startswith(header) and n_bytes == n_rows * dtype.itemsize
        return crc if is_whole else None

    def _create(self) -> OutputFile:
        """Make a file of its header and reserved space."""
        file = OutputFile(self._partial, create=True)
        try:
            file.write(0, self._header)
            file.reserve(self._size)
            file.sync()
            fsync_directory(self._partial.parent)
        except OSError:
            file.close()
            discard(self._partial)
            raise
        return file

    def _open(self) -> OutputFile:
        """Open the unfinished file, if it fits this output and its durable rows are intact."""
        file = OutputFile(self._partial)
        try:
            begins_well = file.read(0, len(self._header)) == self._header
            if begins_well and file.size == self._size:
                self._check_stored(self._stored_values(file))
                return file
            if self._durable_rows:
                raise self._misfit(file)
            self._refuse_another(file)
        except BaseException:
            file.close()
            raise
        # A crash came before header and size were on disk, so there is nothing to lose.
        file.close()
        remove_file(self._partial)
        return self._create()

    def _stored_values(self, file: OutputFile) -> Iterator[np.ndarray]:
        position, left = len(self._header), self._durable_rows * self.dtype.itemsize
        while left:
            values = np.frombuffer(file.read(position, min(left, _READ_BYTES)), np.uint8)
            yield values
            position, left = position + len(values), left - len(values)

    def _refuse_another(self, file: OutputFile) -> None:
        """Raise `ResumeError` if the file has another length or dtype than this output."""
        try:
            shape, _, dtype = read_npy_header(
                io.BytesIO(file.read(0, _HEADER_BYTES)), self._partial
            )
        except SourceError:
            return
        if shape != (self.n_rows, *self.dtype.shape) or dtype != self.dtype.base:
            each = np.dtype((dtype, shape[1:]))
            raise self._mismatch(shape[0] if shape else 0, each)

    def _misfit(self, file: OutputFile) -> ResumeError:
        """The error for a file whose rows are claimed but that cannot be resumed."""
        self._refuse_another(file)
        return ResumeError(
            f"{self._partial}: its header is damaged, or it has {file.size} bytes instead of "
            f"{self._size}; start again without resuming"
        )


def _span_end(row: int, header_bytes: int, row_bytes: int) -> int:
    """The next row that begins at a multiple of `SPAN_BYTES`; far beyond the file if none does."""
    common = gcd(row_bytes, SPAN_BYTES)
    if header_bytes % common:
        return sys.maxsize
    period = SPAN_BYTES // common
    first = -(header_bytes // common) * pow(row_bytes // common, -1, period)
    return row + period - (row - first) % period


def _header(n_rows: int, dtype: np.dtype[Any]) -> bytes:
    header = io.BytesIO()
    descr = npy_format.dtype_to_descr(dtype.base)
    about = {"descr": descr, "fortran_order": False, "shape": (n_rows, *dtype.shape)}
    npy_format.write_array_header_1_0(header, about)
    return header.getvalue()
