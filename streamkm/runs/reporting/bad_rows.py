"""Finds the first row that cannot be used, so that the error names it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from streamkm.errors import NonFiniteError, Option
from streamkm.sources.base import RowRange

if TYPE_CHECKING:
    from streamkm.sources.base import Source

__all__ = ["as_float", "non_finite_error", "sampled_row_error"]


def non_finite_error(
    source: Source, n_found: int, *, of_fit: bool = False, within: RowRange | None = None
) -> NonFiniteError:
    """The error for `n_found` rows that are not finite, with the number of the first.

    With `of_fit` the remedies are those of a fit, which may still choose a scaling. Otherwise the
    rows meet centroids whose scaling is settled.

    Reads the source from its first row on, because a shuffled stream meets another one first; only
    `within`, if that is where the first lies.
    """
    spec = source.spec
    too_long, largest = 0, -1.0
    dtype = as_float(np.empty((0, 1), spec.storage), spec.dtype).dtype
    for rows in (within or RowRange(0, spec.n_rows)).split(spec.block_rows):
        block = np.empty((len(rows), spec.n_features), spec.storage)
        source.read(rows, block)
        values = as_float(block, spec.dtype)
        bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
        if len(bad):
            found = f"{n_found} such rows so far"
            return sampled_row_error(source, rows.start + int(bad[0]), values[bad[0]], found)
        largest_B = np.abs(values).max(axis=1)
        if (most := float(largest_B.max())) > largest:
            too_long, largest = rows.start + int(largest_B.argmax()), most
    what = (
        f"{source.name}: the squared length of row {_in_whole(source, too_long)} "
        f"overflows {dtype}, it holds {largest:.3g} ({n_found} such rows so far); use "
    )
    scale, drop = Option("scale", "zscore"), Option("nan", "drop")
    if of_fit:
        return NonFiniteError(
            what, scale, ", which looks at every row first, or ", drop, " to leave such rows out"
        )
    return NonFiniteError(
        what, drop, " to leave such rows out, or let fit make another model, with ", scale,
        ", from rows as long as these",
    )  # fmt: skip


def sampled_row_error(source: Source, row: int, values_D: np.ndarray, found: str) -> NonFiniteError:
    """The error for row number `row`, which is not finite; `found` counts such rows in words.

    NaN may stand for a stored value that is no data, see `ArraySpec.nodata`.
    """
    bad = int(np.flatnonzero(~np.isfinite(values_D))[0])
    row = _in_whole(source, row)
    names, nodata = source.spec.feature_names, source.spec.nodata
    value = str(values_D[bad])
    if nodata and np.isnan(values_D[bad]):
        value = f"no data, {' or '.join(f'{each:.9g}' for each in nodata)}"
    feature = f"feature {bad}, {names[bad]!r}" if names else f"feature {bad}"
    return NonFiniteError(
        f"{source.name}: row {row} holds {value} ({feature}; {found}); ",
        Option("nan", "drop"),
        " leaves rows with NaN or infinity out",
    )


def _in_whole(source: Source, row: int) -> int:
    """The number of row `row` in the whole source, of which `source` may have some rows only."""
    choice = source.spec.choice
    return row if choice is None else choice.whole_row(row)


def as_float(block: np.ndarray, dtype: str) -> np.ndarray:
    """Stored rows as float64 if they are that, else as float32."""
    if dtype == "bfloat16":
        return (block.astype(np.uint32) << 16).view(np.float32)
    return block if block.dtype == np.float64 else block.astype(np.float32)
