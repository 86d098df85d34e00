"""The interface of a source: an array of rows, whatever its format.

A source is a two-dimensional array of numbers, N rows by D features, that several threads read by
row range at once. It knows NumPy and its own format, but nothing of torch or of clustering. A new
format is one class with the members of `Source`, one line in `streamkm.sources.formats`, and one
subclass of the contract test in ``tests/sources/contract.py``.

A read fills memory that the caller owns. Returning arrays was rejected: slots are allocated once
(and pinned for a GPU), and a source that decodes straight into them copies no byte a second time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np

from streamkm.errors import NoRowsError, SourceError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from streamkm.sources.choice import Choice

__all__ = [
    "DTYPES",
    "ArraySpec",
    "Described",
    "Grid",
    "ReadsTogether",
    "RowRange",
    "Source",
    "check_dtype",
    "check_shape",
    "common_nodata",
]

#: The NumPy dtype of the stored elements, in native byte order, by the name of the element type.
#: NumPy has no bfloat16: its bits travel as uint16, and the device reinterprets them.
DTYPES: dict[str, np.dtype[np.generic]] = {
    "bfloat16": np.dtype(np.uint16),
    **{
        name: np.dtype(name)
        for name in (
            "float16", "float32", "float64",
            "int8", "int16", "int32", "int64",
            "uint8", "uint16", "uint32", "uint64",
        )
    },
}  # fmt: skip


@dataclass(frozen=True, slots=True, order=True)
class RowRange:
    """Rows from `start` up to but not including `stop`.

    Raises
    ------
    ValueError
        Unless ``0 <= start <= stop``.
    """

    start: int
    """First row."""
    stop: int
    """Row after the last one."""

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.stop:
            raise ValueError(f"a row range needs 0 <= start <= stop, got {self.start}:{self.stop}")

    def __len__(self) -> int:
        return self.stop - self.start

    def __str__(self) -> str:
        return f"rows {self.start}:{self.stop}"

    def split(self, size: int) -> Iterator[RowRange]:
        """Cut the range into consecutive ranges.

        Parameters
        ----------
        size : int
            Rows of each range; the last one may have fewer.

        Yields
        ------
        RowRange
        """
        for start in range(self.start, self.stop, size):
            yield RowRange(start, min(start + size, self.stop))


@dataclass(frozen=True, slots=True)
class Grid:
    """The axes that rows count through, in C order: ``y, x`` of a cube of bands."""

    shape: tuple[int, ...]
    """Their extents; the product is the number of rows."""
    dims: tuple[str, ...] = ()
    """Their names, ``""`` for one without a name; empty if the format has no names."""
    group: str = ""
    """Where the arrays lie that hold their coordinates, each with the name of its axis: the folder
    of a Zarr group, or its address; of HDF5, whose datasets name them, the file and below it the
    dataset; ``""`` if there is no such place."""


@dataclass(frozen=True, slots=True)
class ArraySpec:
    """Shape, element type and layout of an array, known before any row is read."""

    n_rows: int
    """Number of rows, N."""
    n_features: int
    """Number of features, D."""
    dtype: str
    """Name of the element type, a key of `DTYPES`."""
    block_rows: int
    """Rows of a block, such as those of a chunk. A block is best read at once, and begins at a
    multiple of this number."""
    layout: str
    """One phrase for people: ``npy, C order``, ``zarr v3, chunks of 16384 x 128, blosc``."""
    scratch_bytes: int = 0
    """Bytes that reading one block allocates beside `out`, at most."""
    piece_rows: int = 0
    """Rows of a piece, a part of a block that costs about its share of the block when it is read
    alone. A piece begins at a multiple of this number. 0 if only whole blocks are worth reading."""
    is_remote: bool = False
    """Whether reads wait for a network, so that more readers than cores are of use."""
    feature_names: tuple[str, ...] = ()
    """Names of the features, in their order; empty if the format has none."""
    repeated_name: str = ""
    """A name that several features have. Then `feature_names` is empty, and what has names for its
    features cannot be matched with these; else empty."""
    grid: Grid | None = None
    """The axes that rows count through; None where rows are one axis without a name."""
    nodata: tuple[float | int, ...] = ()
    """Stored values that mean "no data". `streamkm.sources.open_source` has a source with such
    values read as floats, with NaN in their place: a row that holds one counts as one with NaN.
    Of several files or variables, those that all of them have."""
    marked: tuple[float | int, ...] = ()
    """Those of `nodata` that only attributes name. They are no data in a file that marks none; one
    with marks of its own may hold them as numbers."""
    is_decoded: bool = False
    """Whether NaN is read in place of all such values already, those of each file or variable."""
    is_scaled: bool = False
    """Whether ``scale_factor`` and ``add_offset`` of its attributes are applied."""
    member: str = ""
    """Name of the array within its file, such as an HDF5 dataset, if it was chosen for being the
    only one; else empty. Shards must agree in it."""
    choice: Choice | None = None
    """Which rows of the source these are; None if they are all."""
    file: str = ""
    """Path of the local file that all rows lie in, or of the folder of a Zarr array; empty if there
    are several, or the format has another kind of place."""
    first_byte: int = 0
    """Byte of that file at which rows begin that lie in it as they are: memory that begins as far
    into a page can be filled without a copy. 0 where that is of no use."""

    @property
    def storage(self) -> np.dtype[np.generic]:
        """NumPy dtype of the stored elements, in native byte order."""
        return DTYPES[self.dtype]

    @property
    def row_bytes(self) -> int:
        """Bytes of one row in its stored dtype."""
        return self.n_features * self.storage.itemsize

    @property
    def nbytes(self) -> int:
        """Bytes of the whole array in its stored dtype, decoded."""
        return self.n_rows * self.row_bytes


@runtime_checkable
class Source(Protocol):
    """An array of N rows by D features that is read by row range."""

    @property
    def name(self) -> str:
        """Where the rows come from, as errors name it: usually a path."""

    @property
    def spec(self) -> ArraySpec:
        """Shape, element type and layout; the same for the life of the source."""

    def read(self, rows: RowRange, out: np.ndarray) -> None:
        """Fill `out` with `rows`; several threads may do so at once.

        Parameters
        ----------
        rows : RowRange
            Any range within the array, aligned to blocks or not.
        out : ndarray of shape (len(rows), n_features), dtype ``spec.storage``, C order
            Filled completely. A read of one block allocates ``spec.scratch_bytes`` at most.

        Raises
        ------
        ReadError
            If the rows cannot be read; the message names the file and the rows.
        ValueError
            If `out` has another shape, dtype or order.
        """

    def fingerprint(self) -> str:
        """Hex digest that changes when the content does, without reading the whole array.

        It is made of the layout, and of the size and modification time of every file behind the
        array. A source in memory hashes its bytes.

        Returns
        -------
        str

        Raises
        ------
        ReadError
            If the files behind the array are gone.
        """

    def notes(self) -> list[str]:
        """Messages that a user should see before a run, such as chunks that were never written.

        Returns
        -------
        list of str
            One line each; empty if there is nothing to say.
        """

    def close(self) -> None:
        """Release files. A later read is an error, a later close is not."""


@runtime_checkable
class ReadsTogether(Protocol):
    """A source that reads several ranges of rows at less cost than one by one."""

    def read_together(self, reads: Sequence[RowRange], out: np.ndarray) -> bool:
        """Fill `out` with `reads`, one after the other, as `Source.read` does with each of them.

        At most a few blocks: a read is not broken off in the middle of a call.

        Returns
        -------
        bool
            False, with any numbers in `out`, if they must be read one by one.
        """


class Described:
    """Gives a source a ``repr``: its class, name, shape, element type and layout."""

    def __repr__(self: Source) -> str:
        spec = self.spec
        shape = f"{spec.n_rows:,} rows x {spec.n_features:,} features"
        return f"<{type(self).__name__} {self.name}: {shape}, {spec.dtype}, {spec.layout}>"


def check_dtype(dtype: np.dtype[np.generic] | str, name: str) -> str:
    """The key of `DTYPES` for an element type of either byte order.

    Parameters
    ----------
    dtype : dtype or str
        A NumPy dtype, or a key of `DTYPES`.
    name : str
        The source, for the message.

    Returns
    -------
    str

    Raises
    ------
    SourceError
        If `DTYPES` has no such type.
    """
    if not isinstance(dtype, str) and dtype.names is not None:
        raise SourceError(
            f"{name}: elements are records of {', '.join(dtype.names)}; store them as an array of "
            "rows x features (numpy.lib.recfunctions.structured_to_unstructured makes one)"
        )
    key = dtype if isinstance(dtype, str) else dtype.name
    if key not in DTYPES:
        remedy = "; store 0 and 1 as uint8 (array.view(numpy.uint8))" if key == "bool" else ""
        raise SourceError(
            f"{name}: elements must be real numbers ({', '.join(DTYPES)}), not {dtype}{remedy}"
        )
    return key


def check_shape(shape: tuple[int, ...], name: str) -> tuple[int, int]:
    """N and D of an array, whose last axis is features and whose others are rows.

    Parameters
    ----------
    shape : tuple of int
        Shape of the array.
    name : str
        The source, for the message.

    Returns
    -------
    n_rows, n_features : int

    Raises
    ------
    NoRowsError
        If the array has no rows.
    SourceError
        If the array has fewer than two dimensions, or no features.
    """
    if len(shape) < 2:
        raise SourceError(
            f"{name}: an array of at least two dimensions is needed (rows x features), "
            f"this one has the shape {shape}"
        )
    n_rows = 1
    for extent in shape[:-1]:
        n_rows *= extent
    if n_rows == 0 or shape[-1] == 0:
        error = NoRowsError if shape[-1] else SourceError
        raise error(f"{name}: the array is empty, its shape is {shape}; write rows into it first")
    return n_rows, shape[-1]


def common_nodata(specs: Sequence[ArraySpec]) -> tuple[float | int, ...]:
    """The values that mean "no data" in all of several arrays, in the order of the first.

    What a single one has is a number in the others, and its own attributes tell it again.
    """
    return tuple(value for value in specs[0].nodata if all(value in s.nodata for s in specs[1:]))
