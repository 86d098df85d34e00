"""Reads rows in C order behind an optional header: raw, fbin, u8bin, i8bin and most npy files."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import numpy as np

from streamkm.errors import SourceError
from streamkm.sources.base import DTYPES, ArraySpec, Described, RowRange, check_dtype, check_shape
from streamkm.sources.layout import check_read, check_reads, rows_for_bytes
from streamkm.sources.pagecache import BUFFER_BYTES
from streamkm.sources.rowfile import RowFile, row_file

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from streamkm.sources.base import Grid
    from streamkm.sources.rowfile import ByteFile, Stored

__all__ = ["BIN_DTYPES", "BLOCK_BYTES", "PIECE_BYTES", "FlatSource", "open_bin", "open_raw"]

#: Bytes of a block in a file without chunks: enough that the latency of a request does not
#: matter, few enough that a window mixes many blocks.
BLOCK_BYTES = 1 << 20

#: Bytes of a piece (`ArraySpec.piece_rows`): enough to be worth a request of its own.
PIECE_BYTES = 64 << 10

#: Element type by suffix, for files whose header is two uint32: rows and features.
BIN_DTYPES = {".fbin": "float32", ".u8bin": "uint8", ".i8bin": "int8"}

_BIN_HEADER = struct.Struct("<II")


class FlatSource(Described):
    """Rows one after the other in a file, read straight into `out`.

    Parameters
    ----------
    file : ByteFile
        The open file; closed with the source.
    n_rows, n_features : int
        Extents of the array.
    dtype : str
        A key of `DTYPES`.
    offset : int
        Bytes before the first row.
    swapped : bool
        Whether the stored byte order is not the machine's.
    kind : str
        Name of the format in `ArraySpec.layout`.
    remarks : tuple of str
        What `notes` returns.
    grid : Grid, optional
        The axes that rows count through.
    member : str
        See `ArraySpec.member`.
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
        grid: Grid | None = None,
        member: str = "",
    ) -> None:
        row_bytes = n_features * DTYPES[dtype].itemsize
        self._file = file
        self._offset = offset
        self._swapped = swapped
        self._remarks = remarks
        self._spec = ArraySpec(
            n_rows=n_rows,
            n_features=n_features,
            dtype=dtype,
            block_rows=rows_for_bytes(BLOCK_BYTES, row_bytes, n_rows),
            layout=f"{kind}, C order" + (", byte-swapped" if swapped else ""),
            scratch_bytes=max(BUFFER_BYTES, file.is_remote * BLOCK_BYTES),
            piece_rows=rows_for_bytes(PIECE_BYTES, row_bytes, n_rows),
            is_remote=file.is_remote,
            grid=grid,
            member=member,
            file="" if file.is_remote else str(file.path),
            first_byte=0 if file.is_remote else offset,
        )

    @property
    def name(self) -> str:
        """Path of the file."""
        return str(self._file.path)

    @property
    def spec(self) -> ArraySpec:
        """Shape, dtype and layout."""
        return self._spec

    def read(self, rows: RowRange, out: np.ndarray) -> None:
        """Fill `out` with `rows`; see `Source.read`."""
        check_read(self.name, self._spec, rows, out, closed=self._file.closed)
        self._file.read_into(out, self._offset + rows.start * self._spec.row_bytes, rows)
        if self._swapped:
            out.byteswap(inplace=True)

    def read_together(self, reads: Sequence[RowRange], out: np.ndarray) -> bool:
        """Fill `out` with `reads`, if the file is on this machine; see `ReadsTogether`."""
        if not isinstance(self._file, RowFile):
            return False
        check_reads(self.name, self._spec, reads, out, closed=self._file.closed)
        first, row_bytes = self._offset, self._spec.row_bytes
        self._file.read_each(out, [(first + rows.start * row_bytes, rows) for rows in reads])
        if self._swapped:
            out.byteswap(inplace=True)
        return True

    def fingerprint(self) -> str:
        """Hex digest of the layout and the file's size and modification time."""
        spec = self._spec
        return self._file.fingerprint(
            f"{spec.layout} {spec.dtype} {spec.n_rows} {spec.n_features} {self._offset}"
        )

    def notes(self) -> list[str]:
        """The remarks of whoever opened the file."""
        return list(self._remarks)

    def close(self) -> None:
        """Release the file."""
        self._file.close()


def open_raw(
    path: Path,
    *,
    dtype: str | np.dtype[np.generic],
    n_features: int,
    offset: int = 0,
    keep_open: bool = True,
) -> FlatSource:
    """Open a file of rows that does not describe itself.

    Parameters
    ----------
    path : Path
        The file.
    dtype : str or dtype
        A key of `DTYPES`, in native byte order, or a NumPy dtype in its own.
    n_features : int
        Elements of one row.
    offset : int
        Bytes before the first row.
    keep_open : bool
        See `RowFile`.

    Returns
    -------
    FlatSource

    Raises
    ------
    SourceError
        If the size is no whole number of rows, or the file is empty.
    """
    key = check_dtype(dtype, str(path))
    swapped = not isinstance(dtype, str) and not dtype.isnative
    row_bytes = n_features * DTYPES[key].itemsize
    file = row_file(path, keep_open=keep_open)
    payload = file.size - offset
    if payload <= 0 or payload % row_bytes:
        file.close()
        skipped = f" after {offset} bytes are skipped" if offset else ""
        raise SourceError(
            f"{path}: {max(payload, 0)} bytes{skipped} are no whole number of rows of {row_bytes} "
            f"bytes ({n_features} features of {key}); check dtype, n_features and offset"
        )
    return FlatSource(
        file,
        n_rows=payload // row_bytes,
        n_features=n_features,
        dtype=key,
        offset=offset,
        swapped=swapped,
        kind="raw",
    )


def open_bin(path: Path | Stored, *, keep_open: bool = True) -> FlatSource:
    """Open an ``.fbin``, ``.u8bin`` or ``.i8bin`` file.

    Parameters
    ----------
    path : Path
        The file: rows and features as two little-endian uint32, then the rows.
    keep_open : bool
        See `RowFile`.

    Returns
    -------
    FlatSource

    Raises
    ------
    SourceError
        If the header does not agree with the file's size.
    """
    dtype = BIN_DTYPES[path.suffix.lower()]
    file = row_file(path, keep_open=keep_open)
    try:
        n_rows, n_features = _read_bin_header(file, DTYPES[dtype].itemsize, dtype)
    except SourceError:
        file.close()
        raise
    return FlatSource(
        file,
        n_rows=n_rows,
        n_features=n_features,
        dtype=dtype,
        offset=_BIN_HEADER.size,
        swapped=not np.dtype("<u4").isnative,
        kind=path.suffix.lower()[1:],
    )


def _read_bin_header(file: ByteFile, itemsize: int, dtype: str) -> tuple[int, int]:
    """(N, D) from the header, checked against the file's size."""
    if file.size < _BIN_HEADER.size:
        raise SourceError(
            f"{file.path}: {file.size} bytes are too few for the header of {_BIN_HEADER.size} "
            "(rows and features, two uint32); is the file complete?"
        )
    header = np.empty(_BIN_HEADER.size, np.uint8)
    file.read_into(header, 0, RowRange(0, 0))
    n_rows, n_features = _BIN_HEADER.unpack(header.tobytes())
    check_shape((n_rows, n_features), str(file.path))
    expected = _BIN_HEADER.size + n_rows * n_features * itemsize
    if file.size != expected:
        raise SourceError(
            f"{file.path}: the header's {n_rows} rows of {n_features} features of {dtype} take "
            f"{expected} bytes, the file has {file.size}; is it complete, and the suffix right?"
        )
    return n_rows, n_features
