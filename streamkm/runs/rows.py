"""Finding the first row that cannot be used, to name it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from streamkm.errors import NonFiniteError, Option
from streamkm.sources.base import RowRange

if TYPE_CHECKING:
    from streamkm.sources.base import Source

__all__ = ["as_float", "non_finite_error", "sampled_row_error", "unusable_rows"]


def non_finite_error(source: Source, n_found: int) -> NonFiniteError:
    """The error for `n_found` rows that are not finite, with the number of the first.

    Reads from the first row on: the stream, in its own order, met some other one first.
    """
    spec = source.spec
    too_long: int | None = None
    dtype = as_float(np.empty((0, 1), spec.storage), spec.dtype).dtype
    for rows in RowRange(0, spec.n_rows).split(spec.block_rows):
        block = np.empty((len(rows), spec.n_features), spec.storage)
        source.read(rows, block)
        values = as_float(block, spec.dtype)
        bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
        if len(bad):
            found = f"{n_found} such rows so far"
            return sampled_row_error(source.name, rows.start + int(bad[0]), values[bad[0]], found)
        if too_long is None:
            overflowed = np.flatnonzero(unusable_rows(values))
            too_long = rows.start + int(overflowed[0]) if len(overflowed) else None
    return _too_long(source.name, too_long, dtype, f"{n_found} such rows so far")


def sampled_row_error(name: str, row: int, values_D: np.ndarray, found: str) -> NonFiniteError:
    """The error for row number `row`, one of those of `unusable_rows`; `found` counts them."""
    bad = np.flatnonzero(~np.isfinite(values_D))
    if not len(bad):
        return _too_long(name, row, values_D.dtype, found)
    return NonFiniteError(
        f"{name}: row {row} holds {values_D[bad[0]]} (feature {bad[0]}; {found}); ",
        Option("nan", "drop"),
        " leaves rows with NaN or infinity out",
    )


def unusable_rows(values_SD: np.ndarray) -> np.ndarray:
    """Which rows are not finite, or have a squared length too large for their dtype."""
    with np.errstate(over="ignore", invalid="ignore"):
        unusable: np.ndarray = ~np.isfinite(4 * np.square(values_SD).sum(axis=1))
    return unusable


def _too_long(
    name: str, row: int | None, dtype: np.dtype[np.generic], found: str
) -> NonFiniteError:
    row_text = "a row" if row is None else f"row {row}"
    return NonFiniteError(
        f"{name}: the squared length of {row_text} overflows {dtype} ({found}); use ",
        Option("scale", "zscore"),
        ", or ",
        Option("nan", "drop"),
        " to leave such rows out",
    )


def as_float(block: np.ndarray, dtype: str) -> np.ndarray:
    """Stored rows as the dtype in which their lengths are taken, float32 or float64."""
    if dtype == "bfloat16":
        return (block.astype(np.uint32) << 16).view(np.float32)
    return block if block.dtype == np.float64 else block.astype(np.float32)
