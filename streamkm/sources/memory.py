"""Reads arrays in memory, with any strides and in either byte order.

Of a masked array, what is masked reads as NaN, so that its row is refused or dropped as any other
with NaN. Integers are then read as the floats that the device would widen them to.
"""

from __future__ import annotations

import hashlib
import mmap

import numpy as np

from streamkm.sources.base import (
    DTYPES,
    ArraySpec,
    Described,
    RowRange,
    Source,
    check_dtype,
    check_shape,
)
from streamkm.sources.layout import check_read, row_boxes, rows_for_bytes

__all__ = ["MemorySource", "digest_of_rows", "spec_in_memory"]

#: Bytes of a block, the rows that are copied or hashed at a time.
BLOCK_BYTES = 1 << 20
#: Bytes of a piece (`ArraySpec.piece_rows`), as in files without chunks.
PIECE_BYTES = 64 << 10
#: The bits of a NaN in bfloat16.
BFLOAT16_NAN = 0x7FC0

#: The type that integers with masked values are read as: what they are widened to anyway.
_WITH_NAN = {
    **dict.fromkeys(("int8", "int16", "uint8", "uint16"), "float32"),
    **dict.fromkeys(("int32", "int64", "uint32", "uint64"), "float64"),
}


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
        If the array is empty, has fewer than two dimensions, or holds no real numbers.
    """

    def __init__(
        self,
        array: np.ndarray,
        name: str = "array in memory",
        *,
        feature_names: tuple[str, ...] = (),
    ) -> None:
        dtype = check_dtype(array.dtype, name)
        # Most masks mask nothing.
        self._mask = np.ma.getmaskarray(array) if np.ma.is_masked(array) else None
        if self._mask is not None and dtype in _WITH_NAN:
            dtype = _WITH_NAN[dtype]
        self._no_value = BFLOAT16_NAN if dtype == "bfloat16" else np.nan
        n_rows, n_features = check_shape(array.shape, name)
        # A plain ndarray, because an np.matrix stays two-dimensional when it is sliced.
        self._array = np.asarray(np.ma.getdata(array))
        if dtype == "bfloat16":
            self._array = self._array.view(np.uint16)
        self._name = name
        self._closed = False
        order = "C" if array.flags.c_contiguous else "F" if array.flags.f_contiguous else "strided"
        layout = f"in memory, {order}{' order' if order != 'strided' else ''}"
        layout += ", masked" if self._mask is not None else ""
        self._spec = spec_in_memory((n_rows, n_features), dtype, layout, feature_names)

    @property
    def name(self) -> str:
        """Name of the array, for errors."""
        return self._name

    @property
    def spec(self) -> ArraySpec:
        """Shape, dtype and layout."""
        return self._spec

    @property
    def rows_there(self) -> np.ndarray | None:
        """The array itself as N x D rows, which must not be changed.

        None if they do not lie in memory as `read` gives them: strided, masked, in the other byte
        order, or in a file that is mapped. None of a read-only array too, which torch warns of.
        """
        array = self._array
        lies_so = array.flags.carray and array.dtype.isnative and self._mask is None
        if not lies_so or _is_mapped(array):
            return None
        return array.reshape(self._spec.n_rows, self._spec.n_features)

    def read(self, rows: RowRange, out: np.ndarray) -> None:
        """Copy `rows` into `out`; see `Source.read`."""
        check_read(self._name, self._spec, rows, out, closed=self._closed)
        for box in row_boxes(self._array.shape[:-1], rows):
            target = out[box.start - rows.start : box.stop - rows.start]
            target = target.reshape(*box.shape, self._spec.n_features)
            target[...] = self._array[box.selection]
            if self._mask is not None:
                target[self._mask[box.selection]] = self._no_value

    def fingerprint(self) -> str:
        """Hex digest of shape, dtype and every byte; the same whatever the strides."""
        return digest_of_rows(self)

    def notes(self) -> list[str]:
        """How many rows have a masked value."""
        if self._mask is None:
            return []
        n_masked = int(self._mask.any(axis=-1).sum())
        return [f"{self._name}: {n_masked} rows have masked values, which are read as NaN"]

    def close(self) -> None:
        """Refuse further reads; the array stays the caller's."""
        self._closed = True


def _is_mapped(array: np.ndarray) -> bool:
    """Whether an array is a view of a file that is mapped into memory."""
    base: object = array
    while isinstance(base, np.ndarray):
        base = base.base
    return isinstance(base, mmap.mmap)


def spec_in_memory(
    shape: tuple[int, int], dtype: str, layout: str, feature_names: tuple[str, ...] = ()
) -> ArraySpec:
    """The spec of N x D numbers in memory, whose blocks and pieces are for it to choose."""
    n_rows, n_features = shape
    row_bytes = n_features * DTYPES[dtype].itemsize
    return ArraySpec(
        n_rows=n_rows,
        n_features=n_features,
        dtype=dtype,
        block_rows=rows_for_bytes(BLOCK_BYTES, row_bytes, n_rows),
        layout=layout,
        piece_rows=rows_for_bytes(PIECE_BYTES, row_bytes, n_rows),
        feature_names=feature_names,
    )


def digest_of_rows(source: Source) -> str:
    """Hex digest of shape, dtype and every byte of `source`, which are read."""
    spec = source.spec
    digest = hashlib.sha256(f"{spec.n_rows} {spec.n_features} {spec.dtype}".encode())
    scratch = np.empty((spec.block_rows, spec.n_features), spec.storage)
    for rows in RowRange(0, spec.n_rows).split(spec.block_rows):
        block = scratch[: len(rows)]
        source.read(rows, block)
        digest.update(block.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
