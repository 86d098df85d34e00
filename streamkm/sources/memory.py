"""Reads arrays in memory, with any strides and in either byte order."""

from __future__ import annotations

import hashlib

import numpy as np

from streamkm.errors import SourceError
from streamkm.sources.base import ArraySpec, Described, RowRange, check_dtype, check_shape
from streamkm.sources.layout import check_read, row_boxes, rows_for_bytes

__all__ = ["MemorySource"]

#: Bytes of a block, the rows that are copied or hashed at a time.
BLOCK_BYTES = 1 << 20
#: Bytes of a piece (`ArraySpec.piece_rows`), as in files without chunks.
PIECE_BYTES = 64 << 10


class MemorySource(Described):
    """An ndarray as a source; the array is neither copied nor changed.

    Parameters
    ----------
    array : ndarray of shape (..., n_features)
        Any strides, either byte order. The axes before the last are rows, in C order. A dtype
        named bfloat16, such as that of ml_dtypes, is read as its bits.
    name : str
        Name of the array, for errors.
    feature_names : tuple of str
        Names of the features, such as those of a data frame's columns; empty if it has none.

    Raises
    ------
    SourceError
        If the array is masked or empty, has fewer than two dimensions, or holds no real numbers.
    """

    def __init__(
        self,
        array: np.ndarray,
        name: str = "array in memory",
        *,
        feature_names: tuple[str, ...] = (),
    ) -> None:
        if isinstance(array, np.ma.MaskedArray):
            raise SourceError(
                f"{name}: a masked array has values that are none; "
                "fill them (array.filled(...)) or drop their rows first"
            )
        dtype = check_dtype(array.dtype, name)
        n_rows, n_features = check_shape(array.shape, name)
        # A plain ndarray, because an np.matrix stays two-dimensional when it is sliced.
        self._array = np.asarray(array)
        if dtype == "bfloat16":
            self._array = self._array.view(np.uint16)
        self._name = name
        self._closed = False
        order = "C" if array.flags.c_contiguous else "F" if array.flags.f_contiguous else "strided"
        row_bytes = n_features * array.dtype.itemsize
        self._spec = ArraySpec(
            n_rows=n_rows,
            n_features=n_features,
            dtype=dtype,
            block_rows=rows_for_bytes(BLOCK_BYTES, row_bytes, n_rows),
            layout=f"in memory, {order} order" if order != "strided" else "in memory, strided",
            piece_rows=rows_for_bytes(PIECE_BYTES, row_bytes, n_rows),
            feature_names=feature_names,
        )

    @property
    def name(self) -> str:
        """Name of the array, for errors."""
        return self._name

    @property
    def spec(self) -> ArraySpec:
        """Shape, dtype and layout."""
        return self._spec

    def read(self, rows: RowRange, out: np.ndarray) -> None:
        """Copy `rows` into `out`; see `Source.read`."""
        check_read(self._name, self._spec, rows, out, closed=self._closed)
        for box in row_boxes(self._array.shape[:-1], rows):
            target = out[box.start - rows.start : box.stop - rows.start]
            target.reshape(*box.shape, self._spec.n_features)[...] = self._array[box.selection]

    def fingerprint(self) -> str:
        """Hex digest of shape, dtype and every byte; the same whatever the strides."""
        spec = self._spec
        digest = hashlib.sha256(f"{spec.n_rows} {spec.n_features} {spec.dtype}".encode())
        scratch = np.empty((spec.block_rows, spec.n_features), spec.storage)
        for rows in RowRange(0, spec.n_rows).split(spec.block_rows):
            block = scratch[: len(rows)]
            self.read(rows, block)
            digest.update(block.reshape(-1).view(np.uint8).data)
        return digest.hexdigest()

    def notes(self) -> list[str]:
        """No notes."""
        return []

    def close(self) -> None:
        """Refuse further reads; the array stays the caller's."""
        self._closed = True
