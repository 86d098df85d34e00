"""Weights of the rows of an array: one number for each, from a file or an array of their own.

All of them are looked at once before a run, which costs one number for each row: bad
ones are refused before anything is computed, and their digest says later whether they
have changed.
"""

from __future__ import annotations

import hashlib
import os
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from streamkm.errors import SourceError
from streamkm.files import expanded
from streamkm.sources.base import RowRange, check_dtype
from streamkm.sources.layout import one_line
from streamkm.sources.memory import MemorySource
from streamkm.sources.npy import open_npy

if TYPE_CHECKING:
    from pathlib import Path

    from streamkm.sources.base import Source

__all__ = ["MAX_HEAVY", "Weights", "open_weights"]

#: Weights that are looked at together.
SCAN_ROWS = 1 << 17
#: So many rows are known as the heaviest.
MAX_HEAVY = 4096


class Weights:
    """N weights that are read by row range from several threads at once.

    Parameters
    ----------
    source : Source
        N rows of one feature.
    resident_bytes : int
        Bytes that the source itself holds in memory.

    Raises
    ------
    SourceError
        If a weight is negative or not finite, or all of them are 0.
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
                raise SourceError(
                    f"{self.name}: weights must be finite and not negative, that of row "
                    f"{rows.start + int(bad[0])} is {part[bad[0]]}; a weight of 0 leaves a row out"
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

    def read(self, rows: RowRange, out: np.ndarray) -> None:
        """Fill `out`, float64 of shape (len(rows),), with the weights of `rows`."""
        stored = np.empty((len(rows), 1), self._source.spec.storage)
        self._source.read(rows, stored)
        # (Some NaN is signalling; that it is one is found afterwards.)
        with np.errstate(invalid="ignore"):
            out[:] = stored[:, 0]

    def heavy(self, share: float, n_most: int) -> tuple[float, np.ndarray]:
        """A weight that at most `n_most` (or `MAX_HEAVY`) rows exceed, and those rows, in order.

        It is `share` of the sum of all weights, or more where too many rows exceed that.
        """
        n_most = min(n_most, MAX_HEAVY)
        bound = share * self.total
        if n_most < len(self._heaviest):
            bound = max(bound, float(self._heaviest[n_most]))
        return bound, np.sort(self._rows_of[self._heaviest > bound])

    def close(self) -> None:
        """Release files."""
        self._source.close()


def open_weights(location: Any, n_rows: int) -> Weights:
    """Weights of the rows of an array, wherever they lie.

    Parameters
    ----------
    location : str, Path or array-like
        A ``.npy`` file or a Zarr array of N numbers (or N x 1), or an array of them. Those of
        a ``.npy`` file are read along with the rows; Zarr, whose chunks would be decoded again
        and again in the order of the rows, is held in memory.
    n_rows : int
        Rows of the array that they are for.

    Raises
    ------
    SourceError
        If there is no such location, it holds no array of N real numbers, or `Weights`
        refuses them.
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
        return Weights(source, resident_bytes=resident_bytes)
    except BaseException:
        source.close()
        raise


def _spare_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def _column(weights: np.ndarray, name: str) -> Source:
    if weights.ndim == 0:
        raise SourceError(f"{name}: one weight is needed for each row, not {weights}")
    return MemorySource(weights[:, None] if weights.ndim == 1 else weights, name)


def _read_zarr(path: Path, n_rows: int) -> np.ndarray:
    """A Zarr array of one column of `n_rows` numbers, as a whole."""
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
