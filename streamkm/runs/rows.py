"""Finding the first row that cannot be used, to name it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from streamkm.errors import NonFiniteError
from streamkm.sources.base import RowRange

if TYPE_CHECKING:
    from streamkm.sources.base import Source

__all__ = ["non_finite_error"]


def non_finite_error(source: Source, n_found: int) -> NonFiniteError:
    """The error for `n_found` rows that are not finite, with the number of the first.

    Reads from the first row on: the stream, in its own order, met some other one first.
    """
    spec = source.spec
    too_long: int | None = None
    dtype = _as_float(np.empty((0, 1), spec.storage), spec.dtype).dtype
    for rows in RowRange(0, spec.n_rows).split(spec.block_rows):
        block = np.empty((len(rows), spec.n_features), spec.storage)
        source.read(rows, block)
        values = _as_float(block, spec.dtype)
        bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
        if len(bad):
            row = rows.start + int(bad[0])
            column = int(np.flatnonzero(~np.isfinite(values[bad[0]]))[0])
            return NonFiniteError(
                f"{source.name}: row {row} holds {values[bad[0], column]} (feature {column}; "
                f"{n_found} such rows so far); --nan drop leaves rows with NaN or infinity out"
            )
        if too_long is None:
            with np.errstate(over="ignore"):
                squares = 4 * np.square(values).sum(axis=1)
            overflowed = np.flatnonzero(~np.isfinite(squares))
            too_long = rows.start + int(overflowed[0]) if len(overflowed) else None
    row_text = "a row" if too_long is None else f"row {too_long}"
    return NonFiniteError(
        f"{source.name}: the squared length of {row_text} overflows {dtype} "
        f"({n_found} such rows so far); use --scale zscore, or --nan drop to leave such rows out"
    )


def _as_float(block: np.ndarray, dtype: str) -> np.ndarray:
    if dtype == "bfloat16":
        return (block.astype(np.uint32) << 16).view(np.float32)
    return block if block.dtype == np.float64 else block.astype(np.float32)
