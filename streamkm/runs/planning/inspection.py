"""Looks at some rows from all over an array for reasons not to cluster it as asked.

A finding is true of the rows that were looked at. The lack of findings proves nothing. Imports
no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from streamkm.runs.reporting.bad_rows import as_float, sampled_row_error
from streamkm.sources.base import RowRange
from streamkm.text import format_bytes

if TYPE_CHECKING:
    from collections.abc import Callable

    from streamkm.config import FitConfig
    from streamkm.errors import InputError
    from streamkm.sources.base import ArraySpec, Source
    from streamkm.stream.plan import ReadingPlan

__all__ = ["Look", "look_at"]

#: Places to read rows from, at least and at most, and bytes that reading their blocks may take:
#: with large blocks there are fewer places.
MIN_PLACES, MAX_PLACES, READ_BYTES = 4, 32, 256 << 20
#: Rows to look at, at most, and bytes that they may take in float64.
LOOK_ROWS, LOOK_BYTES = 16384, 32 << 20
#: Rows look sorted if the median squared distance of neighbours is below this share of that of
#: random pairs.
SORTED_SHARE = 0.5
#: A window of fewer blocks mixes sorted rows badly.
FEW_BLOCKS = 8
#: Larger float16 values suggest that others were cut off at its end, 65,504.
FLOAT16_END = 65000.0
#: With fewer rows a cluster on average, clusters say little.
FEW_ROWS_A_CLUSTER = 10


@dataclass(frozen=True)
class Look:
    """Findings of a look at an array."""

    notes: list[str]
    """Findings that a user should know."""
    error: InputError | None
    """The error that the run itself would raise; None if it can go on."""


def look_at(
    source: Source,
    reading: ReadingPlan | None,
    config: FitConfig,
    pause: Callable[[], None] = lambda: None,
) -> Look:
    """Look at some rows of `source`, which is to be clustered as `config` and `reading` say.

    If `reading` is None, the rows are only to be labelled, and the look finds only whether
    they can be used. `pause` is called after each read and may raise.
    """
    spec = source.spec
    pieces = _read(source, pause)
    rows = np.concatenate([np.arange(piece.start, piece.stop) for piece, _ in pieces])
    stored_SD = np.concatenate([values for _, values in pieces])
    x_SD, bad_S = _usable(stored_SD, spec)
    notes, error = [], None
    if bad_S.any():
        share = f"{np.count_nonzero(bad_S):,} of {len(rows):,} rows in a sample"
        if config.nan == "error":
            first = int(np.flatnonzero(bad_S)[0])
            error = sampled_row_error(source, int(rows[first]), x_SD[first], share)
        else:
            notes.append(f"{share} hold NaN or infinity: they are left out")
    if reading is None:
        return Look(notes, error)
    kept_SD = x_SD[~bad_S].astype(np.float64)
    notes += _notes_on_values(kept_SD, spec, config)
    of_piece_S = np.repeat(np.arange(len(pieces)), [len(piece) for piece, _ in pieces])[~bad_S]
    order = _order(kept_SD, of_piece_S, reading, spec.row_bytes)
    notes += [order] if order is not None else []
    notes += _notes_on_k(kept_SD, spec.n_rows, config)
    return Look(notes, error)


def _read(source: Source, pause: Callable[[], None]) -> list[tuple[RowRange, np.ndarray]]:
    """Consecutive rows from each of several places, spread evenly over the array."""
    spec = source.spec
    unit = min(spec.piece_rows or spec.block_rows, spec.n_rows)
    n_units = -(-spec.n_rows // unit)
    n_places = min(max(READ_BYTES // (unit * spec.row_bytes), MIN_PLACES), MAX_PLACES, n_units)
    n_rows = min(LOOK_ROWS, max(LOOK_BYTES // (8 * spec.n_features), 2 * n_places))
    pieces = []
    for place in range(n_places):
        start = place * n_units // n_places * unit
        stop = min(start + min(unit, -(-n_rows // n_places)), spec.n_rows)
        values = np.empty((stop - start, spec.n_features), spec.storage)
        source.read(RowRange(start, stop), values)
        pieces.append((RowRange(start, stop), values))
        pause()
    return pieces


def _usable(stored_SD: np.ndarray, spec: ArraySpec) -> tuple[np.ndarray, np.ndarray]:
    """Rows as floats, and for each whether it holds NaN or infinity."""
    if stored_SD.dtype.kind != "f" and spec.dtype != "bfloat16":
        return stored_SD.astype(np.float64), np.zeros(len(stored_SD), bool)
    x_SD = as_float(stored_SD, spec.dtype)
    return x_SD, ~np.isfinite(x_SD).all(axis=1)


def _notes_on_values(x_SD: np.ndarray, spec: ArraySpec, config: FitConfig) -> list[str]:
    notes = []
    if len(x_SD) > 1 and config.scale in ("zscore", "minmax"):
        constant = np.flatnonzero(np.ptp(x_SD, axis=0) == 0)
        if len(constant):
            notes.append(
                f"{len(constant):,} of {spec.n_features:,} features are constant in the sample "
                f"(the first is {constant[0]}): with scale {config.scale} they become 0 and count "
                "for nothing"
            )
    if spec.dtype == "float16" and x_SD.size and np.abs(x_SD).max() > FLOAT16_END:
        notes.append(
            f"values up to {np.abs(x_SD).max():,.0f}: float16 ends at 65,504, larger ones were cut "
            "off, or became infinite, when they were stored"
        )
    if config.normalizes:
        n_zero = int((~x_SD.any(axis=1)).sum())
        if n_zero:
            notes.append(f"{n_zero:,} rows of the sample are all zeros, and have no direction")
    return notes


def _order(
    x_SD: np.ndarray, of_piece_S: np.ndarray, reading: ReadingPlan, row_bytes: int
) -> str | None:
    """A note if neighbours are closer than other rows, and what that means for batches."""
    is_pair_S = of_piece_S[1:] == of_piece_S[:-1]
    if is_pair_S.sum() < 2 or len(x_SD) < 2 * MIN_PLACES:
        return None
    others = np.random.Generator(np.random.Philox(0)).permutation(len(x_SD))
    near = np.median(_sq_distances(x_SD[1:], x_SD[:-1])[is_pair_S])
    far = np.median(_sq_distances(x_SD, x_SD[others]))
    if not near < SORTED_SHARE * far:
        return None
    note = (
        f"rows look sorted: neighbours are {near / far:.0%} as far apart as others (squared "
        "distances, medians)"
    )
    if reading.seed is None:
        return f"{note}; it makes no difference, the centroids move after whole passes"
    places = f"{reading.window_blocks:,} of {reading.n_blocks:,} blocks"
    if reading.window_blocks < min(FEW_BLOCKS, reading.n_blocks):
        remedy = "write the array in smaller chunks, or use algorithm=lloyd"
        return f"{note}, and a batch mixes rows of {places} only: {remedy}"
    return (
        f"{note}; batches mix them: each has rows of {places} drawn at random, which costs reads "
        f"of a block each ({format_bytes(reading.block_rows * row_bytes)}) in random order"
    )


def _notes_on_k(x_SD: np.ndarray, n_rows: int, config: FitConfig) -> list[str]:
    notes = []
    if n_rows < FEW_ROWS_A_CLUSTER * config.k:
        notes.append(f"k is {config.k:,}: {n_rows / config.k:.1f} rows a cluster on average")
    n_distinct = len(np.unique(x_SD, axis=0))
    if n_distinct < min(config.k, len(x_SD)):
        notes.append(
            f"of {len(x_SD):,} rows in the sample only {n_distinct:,} are distinct, k is "
            f"{config.k:,}: clusters may stay empty"
        )
    return notes


def _sq_distances(one_SD: np.ndarray, other_SD: np.ndarray) -> np.ndarray:
    distances: np.ndarray = np.square(one_SD - other_SD).sum(axis=1)
    return distances
