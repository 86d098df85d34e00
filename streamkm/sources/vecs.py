"""Reads ``.fvecs`` and ``.bvecs`` files, in which an int32 before each row gives its length."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from streamkm.errors import ReadError, SourceError
from streamkm.sources.base import DTYPES, ArraySpec, Described, RowRange
from streamkm.sources.flat import BLOCK_BYTES, PIECE_BYTES
from streamkm.sources.layout import check_read, rows_for_bytes
from streamkm.sources.pagecache import BUFFER_BYTES
from streamkm.sources.rowfile import row_file

if TYPE_CHECKING:
    from pathlib import Path

    from streamkm.sources.rowfile import Stored

__all__ = ["VECS_DTYPES", "VecsSource"]

#: Element type by suffix.
VECS_DTYPES = {".fvecs": "float32", ".bvecs": "uint8"}

_LENGTH = np.dtype("<i4")


class VecsSource(Described):
    """Rows that each follow an int32, their length; all little-endian.

    Records pass through a scratch of one block. Reading rows straight into `out` was rejected: it
    takes two I/O vectors a row, which cost more than the copy.

    Parameters
    ----------
    path : Path
        The file; its suffix gives the element type.
    keep_open : bool
        See `RowFile`.

    Raises
    ------
    SourceError
        If the size is no whole number of rows, the first length is not positive, or the last
        differs from it.
    """

    def __init__(self, path: Path | Stored, *, keep_open: bool = True) -> None:
        kind = path.suffix.lower()
        dtype = VECS_DTYPES[kind]
        self._file = row_file(path, keep_open=keep_open)
        try:
            n_rows, n_features = self._shape(DTYPES[dtype].itemsize)
        except SourceError:
            self._file.close()
            raise
        self._record = np.dtype(
            [("length", _LENGTH), ("row", DTYPES[dtype].newbyteorder("<"), (n_features,))]
        )
        block_rows = rows_for_bytes(BLOCK_BYTES, self._record.itemsize, n_rows)
        self._spec = ArraySpec(
            n_rows=n_rows,
            n_features=n_features,
            dtype=dtype,
            block_rows=block_rows,
            layout=kind[1:],
            scratch_bytes=BUFFER_BYTES
            + (1 + self._file.is_remote) * block_rows * self._record.itemsize,
            piece_rows=rows_for_bytes(PIECE_BYTES, self._record.itemsize, n_rows),
            is_remote=self._file.is_remote,
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
        """Fill `out` with `rows`, checking the length of each; see `Source.read`."""
        spec = self._spec
        check_read(self.name, spec, rows, out, closed=self._file.closed)
        scratch = np.empty(min(spec.block_rows, len(rows)), self._record)
        for part in rows.split(spec.block_rows):
            records = scratch[: len(part)]
            self._file.read_into(records, part.start * self._record.itemsize, part)
            wrong = records["length"] != spec.n_features
            if wrong.any():
                index = int(wrong.argmax())
                raise ReadError(
                    f"{self.name}: row {part.start + index} says it has "
                    f"{records['length'][index]} features, row 0 has {spec.n_features}; "
                    "the file is corrupt or mixes lengths"
                )
            out[part.start - rows.start : part.stop - rows.start] = records["row"]

    def fingerprint(self) -> str:
        """Hex digest of the layout and the file's size and modification time."""
        spec = self._spec
        return self._file.fingerprint(f"{spec.layout} {spec.n_rows} {spec.n_features}")

    def notes(self) -> list[str]:
        """No notes."""
        return []

    def close(self) -> None:
        """Release the file."""
        self._file.close()

    def _shape(self, itemsize: int) -> tuple[int, int]:
        """(N, D) from the first row's length and the file's size, checked with the last row's."""
        path, size = self._file.path, self._file.size
        if size < _LENGTH.itemsize:
            raise SourceError(f"{path}: {size} bytes hold no row; is the file complete?")
        n_features = self._length_at(0)
        if n_features <= 0:
            raise SourceError(
                f"{path}: row 0 says it has {n_features} features, at least 1 is needed; "
                f"is this a {path.suffix} file?"
            )
        record_bytes = _LENGTH.itemsize + n_features * itemsize
        n_rows, rest = divmod(size, record_bytes)
        if rest:
            raise SourceError(
                f"{path}: {size} bytes are no whole number of rows of {record_bytes} bytes "
                f"({n_features} features, as row 0 says); is the file complete?"
            )
        last = self._length_at((n_rows - 1) * record_bytes)
        if last != n_features:
            raise SourceError(
                f"{path}: the last row says it has {last} features, row 0 has {n_features}; "
                "the file is corrupt or mixes lengths"
            )
        return n_rows, n_features

    def _length_at(self, offset: int) -> int:
        length = np.empty(1, _LENGTH)
        self._file.read_into(length, offset, RowRange(0, 0))
        return int(length[0])
