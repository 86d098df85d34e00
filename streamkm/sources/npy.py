"""Reads ``.npy`` files: C order as flat rows, Fortran order transposed block by block."""

from __future__ import annotations

import warnings
from tokenize import TokenError
from typing import IO, TYPE_CHECKING

import numpy as np
from numpy.lib import format as npy_format

from streamkm.errors import SourceError
from streamkm.sources.base import DTYPES, ArraySpec, RowRange, check_dtype, check_shape
from streamkm.sources.flat import FlatSource
from streamkm.sources.layout import check_read, one_line, rows_for_bytes
from streamkm.sources.pagecache import BUFFER_BYTES
from streamkm.sources.rowfile import row_file, stream_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from streamkm.sources.base import Source
    from streamkm.sources.rowfile import ByteFile, Stored

__all__ = ["FortranSource", "npy_source", "open_npy", "read_npy_header"]

#: Bytes of a block in Fortran order: more than in C order, because each column is a request.
FORTRAN_BLOCK_BYTES = 4 << 20
#: Bytes of a header, at most: NumPy's own limit. An array of numbers takes about a hundred.
MAX_HEADER_BYTES = 10_000


def open_npy(path: Path | Stored, *, keep_open: bool = True, column: bool = False) -> Source:
    """Open an ``.npy`` file of two or more dimensions.

    Parameters
    ----------
    path : Path or Stored
        The file: format versions 1 to 3, either byte order. Fortran order is read in two
        dimensions only. Pickled objects are never read.
    keep_open : bool
        See `RowFile`.
    column : bool
        Read an array of one dimension as rows of one feature.

    Returns
    -------
    Source

    Raises
    ------
    SourceError
        If it is no such file, or is truncated.
    """
    file = row_file(path, keep_open=keep_open)
    try:
        return npy_source(file, str(path), 0, file.size, kind="npy", column=column)
    except SourceError:
        file.close()
        raise


def npy_source(
    file: ByteFile,
    name: str,
    start: int,
    stop: int,
    *,
    kind: str,
    column: bool = False,
    member: str = "",
) -> Source:
    """The array that lies in `file` between two offsets, in the format of ``.npy``.

    Parameters
    ----------
    file : ByteFile
        The open file; closed with the source.
    name : str
        What lies there, for errors.
    start, stop : int
        Its first byte and the byte after its last one.
    kind : str
        Name of the format in `ArraySpec.layout`.
    column : bool
        As in `open_npy`.
    member : str
        See `ArraySpec.member`.

    Returns
    -------
    Source

    Raises
    ------
    SourceError
        If no such array lies there, or its numbers do not fit.
    """
    with stream_of(file) as stream:
        stream.seek(start)
        shape, fortran, stored = read_npy_header(stream, name)
        offset = stream.tell()
    if column and len(shape) == 1:
        shape = (*shape, 1)
    dtype = check_dtype(stored, name)
    n_rows, n_features = check_shape(shape, name)
    if fortran and len(shape) > 2:
        raise SourceError(
            f"{name}: Fortran order is read for two dimensions only, this array has the shape "
            f"{shape}; save it again with np.save(..., np.ascontiguousarray(array))"
        )
    expected = offset + n_rows * n_features * stored.itemsize
    if stop < expected:
        raise SourceError(
            f"{name}: truncated: an array of shape {shape} and dtype {dtype} takes "
            f"{expected - start} bytes, the file has {stop - start}; copy or write it again"
        )
    remarks: tuple[str, ...] = ()
    if stop > expected:
        remarks = (f"{name}: {stop - expected} bytes after the array are ignored",)
    source = FortranSource if fortran else FlatSource
    return source(
        file,
        n_rows=n_rows,
        n_features=n_features,
        dtype=dtype,
        offset=offset,
        swapped=not stored.isnative,
        kind=kind,
        remarks=remarks,
        member=member,
    )


def read_npy_header(
    stream: IO[bytes], path: Path | str
) -> tuple[tuple[int, ...], bool, np.dtype[np.generic]]:
    """Read the header of an ``.npy`` file, up to the first element.

    Parameters
    ----------
    stream : binary file
        At the first byte; left at the first element.
    path : Path or str
        The file, for the message.

    Returns
    -------
    shape : tuple of int
    fortran : bool
        Whether elements are stored in Fortran order.
    dtype : dtype

    Raises
    ------
    SourceError
        If it is no header of format version 1, 2 or 3.
    """
    try:
        with warnings.catch_warnings():
            # NumPy warns that headers written by Python 2 are slower to parse.
            warnings.simplefilter("ignore", UserWarning)
            version = npy_format.read_magic(stream)
            _check_header_length(stream, version)
            if version == (1, 0):
                shape, fortran, dtype = npy_format.read_array_header_1_0(stream)
            elif version in ((2, 0), (3, 0)):
                # NumPy has no public reader of version 3. It differs only in the encoding of
                # field names, and dtypes with fields are refused anyway.
                shape, fortran, dtype = npy_format.read_array_header_2_0(stream)
            else:
                raise ValueError(f"format version {version} is unknown")
    except (ValueError, OSError, SyntaxError, TokenError, RecursionError, MemoryError) as error:
        # The header is a Python literal, whose parser fails in all these ways.
        raise SourceError(f"{path}: is no readable .npy file: {one_line(error)}") from error
    if any(extent < 0 for extent in shape):
        raise SourceError(f"{path}: is no readable .npy file: its shape is {shape}")
    return shape, fortran, dtype


def _check_header_length(stream: IO[bytes], version: tuple[int, int]) -> None:
    """Refuse a header that is too long, before memory is allocated for it."""
    start, size = stream.tell(), 2 if version == (1, 0) else 4
    length = int.from_bytes(stream.read(size), "little")
    stream.seek(start)
    if length > MAX_HEADER_BYTES:
        raise ValueError(f"its header takes {length} bytes, {MAX_HEADER_BYTES} at most are read")


class FortranSource(FlatSource):
    """Columns one after the other in a file; a row is gathered from all of them.

    The parameters are those of `FlatSource`.
    """

    def __init__(
        self,
        file: ByteFile,
        *,
        n_rows: int,
        n_features: int,
        dtype: str,
        offset: int,
        swapped: bool,
        kind: str,
        remarks: tuple[str, ...] = (),
        member: str = "",
    ) -> None:
        super().__init__(
            file,
            n_rows=n_rows,
            n_features=n_features,
            dtype=dtype,
            offset=offset,
            swapped=swapped,
            kind=kind,
            remarks=remarks,
            member=member,
        )
        row_bytes = n_features * DTYPES[dtype].itemsize
        block_rows = rows_for_bytes(FORTRAN_BLOCK_BYTES, row_bytes, n_rows)
        self._spec = ArraySpec(
            n_rows=n_rows,
            n_features=n_features,
            dtype=dtype,
            block_rows=block_rows,
            layout=f"{kind}, Fortran order" + (", byte-swapped" if swapped else ""),
            scratch_bytes=BUFFER_BYTES + (1 + file.is_remote) * block_rows * row_bytes,
            is_remote=file.is_remote,
            member=member,
        )

    def read(self, rows: RowRange, out: np.ndarray) -> None:
        """Fill `out` with `rows`; see `Source.read`."""
        spec = self._spec
        check_read(self.name, spec, rows, out, closed=self._file.closed)
        itemsize = spec.storage.itemsize
        column_bytes = spec.n_rows * itemsize
        size = min(spec.block_rows, len(rows))
        scratch = np.empty(spec.n_features * size, spec.storage)
        for part in rows.split(spec.block_rows):
            columns = scratch[: spec.n_features * len(part)].reshape(spec.n_features, len(part))
            start = self._offset + part.start * itemsize
            if len(part) == spec.n_rows:
                self._file.read_into(columns, start, part)
            else:
                for index, column in enumerate(columns):
                    self._file.read_into(column, start + index * column_bytes, part)
            out[part.start - rows.start : part.stop - rows.start] = columns.T
        if self._swapped:
            out.byteswap(inplace=True)

    def read_together(self, reads: Sequence[RowRange], out: np.ndarray) -> bool:
        """False: each of them takes a request a column."""
        del reads, out
        return False
