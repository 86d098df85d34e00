"""Makes rows of a CSR matrix dense in the caller's memory, wherever its three arrays lie.

A row of D features is `indptr`'s range of `indices` and `data`: the column and the value of each
entry. A read fills `out` with zeros and puts the entries in their places, so that whatever follows
(scaling, kernels, weights) knows nothing of sparse rows, and the result is that of the same rows
dense. Kernels on sparse rows were rejected: scaling and centroids are dense anyway.
"""

from __future__ import annotations

import hashlib
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from streamkm.errors import Option, ReadError, SourceError
from streamkm.sources.base import ArraySpec, Described, RowRange, check_dtype, check_shape
from streamkm.sources.layout import check_read, rows_for_bytes
from streamkm.sources.within import would_take

if TYPE_CHECKING:
    from collections.abc import Container, Iterator, Mapping
    from contextlib import AbstractContextManager
    from pathlib import Path

    from streamkm.sources.axes import FeatureDims
    from streamkm.sources.decoded import Decoding

__all__ = [
    "CSR_MEMBERS",
    "PIECE_ENTRIES",
    "CsrArrays",
    "CsrInMemory",
    "CsrSource",
    "CsrStore",
    "csr_shape",
    "refuse_dense_options",
    "sparse_format",
]

#: The names of the three arrays, as AnnData and scipy store them.
CSR_MEMBERS = ("indptr", "indices", "data")

#: Bytes of a block of dense rows: enough that three requests a block do not matter.
BLOCK_BYTES = 4 << 20
#: Bytes of a block, at most, if it takes a whole chunk of entries.
SLAB_BYTES = 64 << 20
#: Entries that are put in their places at a time.
PIECE_ENTRIES = 1 << 18


class Vector(Protocol):
    """An array of one dimension that is read by slices: of NumPy, h5py or zarr."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of its elements."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its length, alone."""

    def __getitem__(self, selection: slice, /) -> Any:
        """Those elements, as an ndarray."""


class CsrArrays(NamedTuple):
    """The three arrays of a CSR matrix."""

    indptr: Vector
    """Row i has the entries ``indptr[i]`` up to but not including ``indptr[i + 1]``."""
    indices: Vector
    """Column of each entry."""
    data: Vector
    """Value of each entry."""


class CsrStore(Protocol):
    """Where the arrays of a CSR matrix lie."""

    @property
    def name(self) -> str:
        """Path or name, for errors."""

    def opened(self, rows: RowRange) -> AbstractContextManager[CsrArrays]:
        """The arrays, for a read of `rows`; a failure within becomes a `ReadError`."""

    def fingerprint(self, layout: str) -> str:
        """Hex digest of `layout` and of what the arrays hold; see `Source.fingerprint`."""

    def notes(self) -> list[str]:
        """What a user should see before a run."""

    def close(self) -> None:
        """Release files."""


class CsrSource(Described):
    """A CSR matrix as a source of dense rows.

    Entries of a row may be in any order. Entries of the same place are summed in their order, in
    the type of `data`, as scipy does.

    Parameters
    ----------
    store : CsrStore
        The arrays; closed with the source.
    shape : tuple of int
        Rows and features.
    kind : str
        Where the arrays lie, for `ArraySpec.layout`.
    chunk_entries : int
        Entries of a stored chunk, which are decoded together; 0 if there are no chunks.
    library_bytes : int
        Bytes that a library holds to read a range, at most.
    file : str
        See `ArraySpec.file`.

    Raises
    ------
    SourceError
        If the matrix is empty, holds no real numbers, or its arrays do not fit each other.
    """

    def __init__(
        self,
        store: CsrStore,
        shape: tuple[int, ...],
        kind: str,
        *,
        chunk_entries: int = 0,
        library_bytes: int = 0,
        file: str = "",
    ) -> None:
        n_rows, n_features = check_shape(shape, store.name)
        with store.opened(RowRange(0, 0)) as arrays:
            _check_arrays(arrays, n_rows, store.name)
            dtype = check_dtype(arrays.data.dtype, store.name)
            self._n_entries = arrays.data.shape[0]
            indptr_bytes = arrays.indptr.dtype.itemsize
            entry_bytes = arrays.data.dtype.itemsize + arrays.indices.dtype.itemsize
        self._store = store
        self._closed = False
        # Less than a chunk would decode it twice.
        self._piece = max(PIECE_ENTRIES, chunk_entries)
        row_bytes = n_features * arrays.data.dtype.itemsize
        block_rows = rows_for_bytes(BLOCK_BYTES, row_bytes, n_rows)
        if chunk_entries and self._n_entries:
            # A whole chunk, so that most are decoded once: chunks do not begin where rows do.
            chunk_rows = chunk_entries * n_rows // self._n_entries
            largest = rows_for_bytes(SLAB_BYTES, row_bytes, n_rows)
            block_rows = min(max(block_rows, chunk_rows), largest)
        filled = 100 * self._n_entries / (n_rows * n_features)
        self._spec = ArraySpec(
            n_rows=n_rows,
            n_features=n_features,
            dtype=dtype,
            block_rows=block_rows,
            layout=f"{kind}, CSR, {filled:.3g} % filled, made dense",
            # Of a piece: the entries as stored, their places twice, and two comparisons.
            scratch_bytes=self._piece * (entry_bytes + 2 * 8 + 2)
            + (block_rows + 1) * (2 * indptr_bytes + 3 * 8)
            + library_bytes,
            file=file,
        )

    @property
    def name(self) -> str:
        """Path or name of the matrix."""
        return self._store.name

    @property
    def spec(self) -> ArraySpec:
        """Shape, dtype and layout."""
        return self._spec

    def read(self, rows: RowRange, out: np.ndarray) -> None:
        """Fill `out` with `rows`, dense; see `Source.read`."""
        check_read(self.name, self._spec, rows, out, closed=self._closed)
        out.fill(0)
        if not len(rows):
            return
        with self._store.opened(rows) as arrays:
            bounds = np.asarray(arrays.indptr[rows.start : rows.stop + 1]).astype(np.int64)
            self._check_bounds(bounds, rows)
            for start in range(bounds[0], bounds[-1], self._piece):
                stop = min(start + self._piece, int(bounds[-1]))
                self._scatter(arrays, slice(start, stop), bounds, rows, out)

    def fingerprint(self) -> str:
        """Hex digest of shape, type and the arrays; see `CsrStore.fingerprint`."""
        spec = self._spec
        return self._store.fingerprint(f"{spec.n_rows} {spec.n_features} {spec.dtype} csr")

    def would_take(self, path: Path) -> bool:
        """Whether what is written at `path` would become part of the matrix."""
        return would_take(self._store, path)

    def notes(self) -> list[str]:
        """The notes of the store."""
        return self._store.notes()

    def close(self) -> None:
        """Close the store."""
        self._closed = True
        self._store.close()

    def _scatter(
        self, arrays: CsrArrays, piece: slice, bounds: np.ndarray, rows: RowRange, out: np.ndarray
    ) -> None:
        """Put the entries of `piece` in their places in `out`."""
        first = int(np.searchsorted(bounds, piece.start, "right")) - 1
        last = int(np.searchsorted(bounds, piece.stop, "left"))
        counts = np.diff(bounds[first : last + 1].clip(piece.start, piece.stop))
        columns = np.asarray(arrays.indices[piece])
        if columns.min() < 0 or columns.max() >= self._spec.n_features:
            self._refuse_column(columns, counts, rows.start + first)
        places = np.repeat(np.arange(first, last) * self._spec.n_features, counts)
        places += columns
        values = np.asarray(arrays.data[piece])
        flat = out.reshape(-1)
        # If places only grow, none is there twice. A row may have begun in the piece before.
        if bounds[first] == piece.start and bool((places[1:] > places[:-1]).all()):
            flat[places] = values
        else:
            np.add.at(flat, places, values.astype(out.dtype, copy=False))

    def _check_bounds(self, bounds: np.ndarray, rows: RowRange) -> None:
        falls = np.flatnonzero(bounds[1:] < bounds[:-1])
        row = None
        if len(falls):
            row = rows.start + int(falls[0])
        elif bounds[0] < 0 or (rows.start == 0 and bounds[0] != 0):
            row = rows.start
        elif bounds[-1] > self._n_entries:
            row = rows.start + int(np.argmax(bounds[1:] > self._n_entries))
        if row is not None:
            begin, end = bounds[row - rows.start : row - rows.start + 2]
            raise ReadError(
                f"{self.name}: row {row} has the entries {begin}:{end} of {self._n_entries}; "
                "indptr must begin at 0, never fall and end within the entries; write the matrix "
                "again"
            )

    def _refuse_column(self, columns: np.ndarray, counts: np.ndarray, first_row: int) -> None:
        bad = int(np.argmax((columns < 0) | (columns >= self._spec.n_features)))
        row = first_row + int(np.searchsorted(np.cumsum(counts), bad, "right"))
        raise ReadError(
            f"{self.name}: row {row} has an entry in column {columns[bad]}, columns are "
            f"0 to {self._spec.n_features - 1}; write the matrix again, or correct its shape"
        )


class CsrInMemory:
    """A CSR matrix of scipy, neither copied nor changed."""

    name = "CSR matrix in memory"

    def __init__(self, matrix: Any) -> None:
        self._arrays = CsrArrays(matrix.indptr, matrix.indices, matrix.data)

    @contextmanager
    def opened(self, rows: RowRange) -> Iterator[CsrArrays]:
        """The arrays of the matrix."""
        del rows
        yield self._arrays

    def fingerprint(self, layout: str) -> str:
        """Hex digest of `layout` and every byte of the arrays."""
        digest = hashlib.sha256(layout.encode())
        for vector in self._arrays:
            digest.update(np.ascontiguousarray(vector).view(np.uint8).data)
        return digest.hexdigest()

    def notes(self) -> list[str]:
        """No notes."""
        return []

    def close(self) -> None:
        """Nothing to release: the matrix stays the caller's."""


def _check_arrays(arrays: CsrArrays, n_rows: int, name: str) -> None:
    """`SourceError` unless the arrays fit each other and the number of rows."""
    for what, vector in arrays._asdict().items():
        if len(vector.shape) != 1 or (what != "data" and vector.dtype.kind not in "iu"):
            raise SourceError(
                f"{name}: {what} of a CSR matrix has one dimension"
                f"{'' if what == 'data' else ' of integers'}, this one {len(vector.shape)} of "
                f"{vector.dtype}; write the matrix again"
            )
    if arrays.indptr.shape[0] != n_rows + 1:
        raise SourceError(
            f"{name}: indptr must have a number more than there are rows, it has "
            f"{arrays.indptr.shape[0]} for {n_rows} rows; write the matrix again"
        )
    if arrays.indices.shape != arrays.data.shape:
        raise SourceError(
            f"{name}: indices and data must be of one length, they have "
            f"{arrays.indices.shape[0]} and {arrays.data.shape[0]}; write the matrix again"
        )


def sparse_format(attributes: Mapping[str, Any], members: Container[str]) -> str | None:
    """The format of a stored sparse matrix, such as ``csr`` or ``csc``; None if it is none.

    AnnData calls it ``encoding-type``, and called it ``h5sparse_format`` before 0.7. A group of the
    three arrays without either counts as CSR.
    """
    if not all(name in members for name in CSR_MEMBERS):
        return None
    encoding = _text(attributes.get("encoding-type", "")).removesuffix("_matrix")
    return encoding or _text(attributes.get("h5sparse_format", "")) or "csr"


def csr_shape(attributes: Mapping[str, Any], arrays: CsrArrays) -> tuple[tuple[int, ...], bool]:
    """The shape of a stored CSR matrix, and whether its attributes told it.

    Without a shape the largest column that has an entry is the last: columns after it are zeros.
    """
    for key in ("shape", "h5sparse_shape"):
        if key in attributes:
            return tuple(int(extent) for extent in attributes[key]), True
    columns = 0
    for start in range(0, arrays.indices.shape[0], PIECE_ENTRIES):
        columns = max(columns, 1 + int(arrays.indices[start : start + PIECE_ENTRIES].max()))
    return (arrays.indptr.shape[0] - 1, columns), False


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def refuse_dense_options(name: str, feature_dim: FeatureDims | None, how: Decoding) -> None:
    """Raise `SourceError` for options that have no meaning for a sparse matrix."""
    if feature_dim is not None:
        option = Option("feature_dim")
    elif how.nodata:
        option = Option("nodata")
    elif how.apply_scale:
        option = Option("apply_scale")
    else:
        return
    raise SourceError(f"{name}: ", option, " is for dense arrays, this one is sparse; leave it out")
