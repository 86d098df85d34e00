"""Opens the weights of an array's rows: one number for each, in a file or an array of their own.

Opening reads all weights once. So bad ones are refused before anything is computed, and their
digest tells later whether they have changed.
"""

from __future__ import annotations

import hashlib
import os
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from streamkm.errors import SourceError
from streamkm.files import expanded
from streamkm.machine import memory_limit
from streamkm.sources.base import RowRange, check_dtype
from streamkm.sources.chosen import ChosenRows
from streamkm.sources.layout import one_line
from streamkm.sources.memory import MemorySource
from streamkm.sources.npy import open_npy

if TYPE_CHECKING:
    from pathlib import Path

    from streamkm.sources.base import Source
    from streamkm.sources.choice import Choice

__all__ = ["MAX_HEAVY", "Weights", "open_weights"]

#: Weights that are read and checked at a time.
SCAN_ROWS = 1 << 17
#: Heaviest rows that are remembered, at most.
MAX_HEAVY = 4096


class Weights:
    """N weights that several threads read by row range at once.

    Parameters
    ----------
    source : Source
        N rows of one feature.
    resident_bytes : int
        Bytes that the source itself holds in memory.

    Raises
    ------
    SourceError
        If a weight is negative or not finite, or all weights are 0.
    """

    def __init__(self, source: Source, *, resident_bytes: int = 0) -> None:
        self._source = source
        self.name = source.name
        self.n_rows = source.spec.n_rows
        self.resident_bytes = resident_bytes
        digest = hashlib.sha256(f"{self.n_rows}".encode())
        self.n_positive = 0
        """Rows of positive weight."""
        self.total = 0.0
        """Sum of all weights."""
        heaviest, rows_of = np.empty(0), np.empty(0, np.int64)
        weights = np.empty(min(SCAN_ROWS, self.n_rows))
        for rows in RowRange(0, self.n_rows).split(SCAN_ROWS):
            part = weights[: len(rows)]
            self.read(rows, part)
            bad = np.flatnonzero(~((part >= 0) & (part < np.inf)))
            if len(bad):
                row, choice = rows.start + int(bad[0]), source.spec.choice
                raise SourceError(
                    f"{self.name}: weights must be finite and not negative, that of row "
                    f"{row if choice is None else choice.whole_row(row)} "
                    f"is {part[bad[0]]}; a weight of 0 leaves a row out"
                )
            self.n_positive += int(np.count_nonzero(part))
            self.total += float(part.sum())
            light = heaviest[-1] if len(heaviest) > MAX_HEAVY else 0.0
            found = np.flatnonzero(part > light)
            heaviest = np.concatenate((heaviest, part[found]))
            rows_of = np.concatenate((rows_of, rows.start + found))
            kept = np.argsort(-heaviest, kind="stable")[: MAX_HEAVY + 1]
            heaviest, rows_of = heaviest[kept], rows_of[kept]
            digest.update(part.data)
        if not self.n_positive:
            raise SourceError(
                f"{self.name}: at least one weight must be positive, all {self.n_rows:,} are zero"
            )
        self.fingerprint = digest.hexdigest()
        """Hex digest of the weights as float64."""
        self._heaviest, self._rows_of = heaviest, rows_of
        self.unit = float(np.ldexp(1.0, np.frexp(heaviest[0])[1]))
        """The power of two just above the largest weight."""

    def read(self, rows: RowRange, out: np.ndarray) -> None:
        """Fill `out`, float64 of shape (len(rows),), with the weights of `rows`; any thread may."""
        stored = np.empty((len(rows), 1), self._source.spec.storage)
        self._source.read(rows, stored)
        # A signalling NaN would warn here; __init__ refuses it by its row.
        with np.errstate(invalid="ignore"):
            out[:] = stored[:, 0]

    def heavy(self, share: float, n_most: int) -> tuple[float, np.ndarray]:
        """The rows whose weight exceeds a share of the sum of all weights.

        Parameters
        ----------
        share : float
            Part of the sum of all weights.
        n_most : int
            Rows to return at most; never more than `MAX_HEAVY`.

        Returns
        -------
        bound : float
            `share` of the sum, or a larger weight if too many rows exceed that.
        rows : ndarray of int64
            The rows whose weight exceeds `bound`, in order.
        """
        n_most = min(n_most, MAX_HEAVY)
        bound = share * self.total
        if n_most < len(self._heaviest):
            bound = max(bound, float(self._heaviest[n_most]))
        return bound, np.sort(self._rows_of[self._heaviest > bound])

    def close(self) -> None:
        """Release files."""
        self._source.close()


def open_weights(location: Any, n_rows: int, choice: Choice | None = None) -> Weights:
    """Open the weights of an array's rows, wherever they lie.

    Parameters
    ----------
    location : str, Path or array-like
        A ``.npy`` file, a Zarr array or an array in memory, of N numbers or of N x 1. A run reads
        those of a ``.npy`` file along with the rows. Those in Zarr are held in memory, because
        reading them in the order of the rows would decode each chunk many times.
    n_rows : int
        N, the rows of the array that they weigh.
    choice : Choice, optional
        Which of these rows are read; only their weights are.

    Returns
    -------
    Weights
        To be closed after use.

    Raises
    ------
    SourceError
        If the location does not exist or holds no N real numbers, or if `Weights` refuses them.
    """
    resident_bytes = 0
    source: Source
    if not isinstance(location, str | os.PathLike):
        source = _column(np.asarray(location), "sample weights")
    else:
        path = expanded(location)
        if not path.exists():
            raise SourceError(f"{path}: does not exist; weights are a .npy file or a Zarr array")
        if path.is_dir():
            weights = _read_zarr(path, n_rows)
            source, resident_bytes = _column(weights, str(path)), weights.nbytes
        elif path.suffix.lower() == ".npy":
            source = open_npy(path, column=True)
        else:
            raise SourceError(f"{path}: weights are a .npy file or a Zarr array")
    spec = source.spec
    try:
        if spec.n_features != 1 or spec.n_rows != n_rows:
            raise SourceError(
                f"{source.name}: one weight is needed for each of {n_rows:,} rows, this array "
                f"has {spec.n_rows:,} rows of {spec.n_features:,}"
            )
        if spec.dtype == "bfloat16":
            raise SourceError(f"{source.name}: weights of bfloat16 cannot be read; use float32")
        source = source if choice is None else ChosenRows(source, choice)
        return Weights(source, resident_bytes=resident_bytes)
    except BaseException:
        source.close()
        raise


def _spare_bytes() -> int:
    """Half of the memory that this process may use."""
    return memory_limit().n_bytes // 2


def _column(weights: np.ndarray, name: str) -> Source:
    """An array of N numbers as a source of one feature."""
    if weights.ndim == 0:
        raise SourceError(f"{name}: one weight is needed for each row, not {weights}")
    return MemorySource(weights[:, None] if weights.ndim == 1 else weights, name)


def _read_zarr(path: Path, n_rows: int) -> np.ndarray:
    """All numbers of a Zarr array of `n_rows`, or `n_rows` x 1."""
    import zarr

    try:
        array = zarr.open_array(path, mode="r")
        if array.ndim > 1 and array.shape[1:] != (1,) * (array.ndim - 1):
            raise SourceError(
                f"{path}: one weight is needed for each row, this array has the shape {array.shape}"
            )
        if array.size != n_rows:
            raise SourceError(
                f"{path}: one weight is needed for each of {n_rows:,} rows, this array has "
                f"{array.size:,} rows of 1"
            )
        check_dtype(array.dtype, str(path))
        largest = max(array.nbytes, prod(array.shards or array.chunks) * array.dtype.itemsize)
        if largest > _spare_bytes():
            raise SourceError(
                f"{path}: weights from Zarr are held in memory, and {largest:,} bytes for the "
                "array, or for one of its chunks, are more than half of it; use a .npy file"
            )
        return np.asarray(array[...]).reshape(-1)
    except SourceError:
        raise
    except Exception as error:  # metadata and chunks may be wrong in any way
        raise SourceError(
            f"{path}: is no Zarr array that can be read: {one_line(error)}"
        ) from error
