"""A source of rows: the one interface between file formats and everything else.

A source is a two-dimensional array of numbers, N rows by D features, that can
be read by row range from several threads at once. It knows NumPy and its own
format, nothing of torch or of clustering. A new format is one class with the
members of `Source`, one line in `streamkm.sources.formats`, and one subclass of the
contract test in ``tests/sources/contract.py``.

Reading fills memory that the caller owns. That was chosen over returning
arrays: the pipeline's slots are allocated (and, for a GPU, pinned) once, and a
reader that can decode straight into them saves a pass over every byte.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np

from streamkm.errors import SourceError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["DTYPES", "ArraySpec", "RowRange", "Source", "check_dtype", "check_shape"]

#: dtype name of an array -> NumPy dtype of its stored elements, in native byte
#: order. NumPy has no bfloat16: its bits travel as uint16 and are reinterpreted
#: on the device.
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
    """Rows `start` up to but not including `stop`."""

    start: int
    stop: int

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.stop:
            raise ValueError(f"a row range needs 0 <= start <= stop, got {self.start}:{self.stop}")

    def __len__(self) -> int:
        return self.stop - self.start

    def __str__(self) -> str:
        return f"rows {self.start}:{self.stop}"

    def split(self, size: int) -> Iterator[RowRange]:
        """Consecutive ranges of `size` rows, the last one shorter if need be."""
        for start in range(self.start, self.stop, size):
            yield RowRange(start, min(start + size, self.stop))


@dataclass(frozen=True, slots=True)
class ArraySpec:
    """What is known of an array before any row is read."""

    n_rows: int
    """Number of rows, N."""
    n_features: int
    """Number of features, D."""
    dtype: str
    """Name of the element type, a key of `DTYPES`."""
    block_rows: int
    """Rows that are best read together, starting at a multiple of it: a chunk's, for example."""
    layout: str
    """One phrase for people: ``npy, C order``, ``zarr v3, chunks of 16384 x 128, blosc``."""
    scratch_bytes: int = 0
    """Bytes that one read of one block allocates beside `out`, at most."""
    piece_rows: int = 0
    """Rows that are read alone at about their share of a block's cost, starting at a multiple
    of it; 0 if a block is read as a whole or not at all."""
    is_remote: bool = False
    """Whether reads wait for a network, so that more at once than there are cores are of use."""

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
        """Where the rows come from, as errors name it: a path, usually."""

    @property
    def spec(self) -> ArraySpec:
        """Shape, dtype and layout; constant for the life of the source."""

    def read(self, rows: RowRange, out: np.ndarray) -> None:
        """Fill `out` with `rows`; safe to call from several threads at once.

        Parameters
        ----------
        rows : RowRange
            Any range within the array, aligned to blocks or not.
        out : ndarray of shape (len(rows), n_features), dtype ``spec.storage``, C order
            Filled completely. No copy of it is made beside ``spec.scratch_bytes``.

        Raises
        ------
        ReadError
            If the rows cannot be read; the message names the file and the rows.
        """

    def fingerprint(self) -> str:
        """Hex digest that changes when the content does; costs no read of the whole array.

        Made of the layout, and of the size and modification time of every file
        behind the array. (A source in memory hashes its bytes.)
        """

    def notes(self) -> list[str]:
        """What a user should be told before a run: chunks never written, for example."""

    def close(self) -> None:
        """Release files; reading afterwards is an error. Closing twice is none."""


def check_dtype(dtype: np.dtype[np.generic] | str, name: str) -> str:
    """Key of `DTYPES` for `dtype`, whatever its byte order; `SourceError` if there is none."""
    key = dtype if isinstance(dtype, str) else dtype.name
    if key not in DTYPES:
        remedy = "; store 0 and 1 as uint8 (array.view(numpy.uint8))" if key == "bool" else ""
        raise SourceError(
            f"{name}: elements must be real numbers ({', '.join(DTYPES)}), not {dtype}{remedy}"
        )
    return key


def check_shape(shape: tuple[int, ...], name: str) -> tuple[int, int]:
    """(N, D) of an array of `shape`: the last axis is features, the others are rows."""
    if len(shape) < 2:
        raise SourceError(
            f"{name}: an array of at least two dimensions is needed (rows x features), "
            f"this one has the shape {shape}"
        )
    n_rows = 1
    for extent in shape[:-1]:
        n_rows *= extent
    if n_rows == 0 or shape[-1] == 0:
        raise SourceError(f"{name}: the array is empty, its shape is {shape}")
    return n_rows, shape[-1]
