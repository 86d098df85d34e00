"""The reading plan of a sample: pieces from all over an array, and single rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from streamkm.sources.base import RowRange
from streamkm.stream.plan import Window, draws

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from streamkm.stream.plan import ReadingPlan

__all__ = ["row_windows", "sample_windows"]

#: Kinds of these draws, beside those of `plan`.
_SAMPLE_BLOCKS, _SAMPLE_ROWS = 2, 3


def sample_windows(
    reading: ReadingPlan, n_rows: int, *, seed: int, n_pieces: int, piece_rows: int
) -> Iterator[Window]:
    """Windows whose `order` picks `n_rows` rows from at least `n_pieces` pieces.

    A piece is `piece_rows` rows that start at a multiple of `piece_rows`: a block, or a
    part of one that the source can read alone. One piece is drawn from each of at least
    `n_pieces` equal stretches of the array, so a sorted array is sampled from everywhere.
    Every row is as likely to be picked as any other. An array of no more than `n_pieces`
    pieces is read whole; one of no more than `n_rows` rows is itself the sample. Each window
    is one batch, and no longer than the windows of `reading`.
    """
    rng = draws(seed, _SAMPLE_BLOCKS)
    n_all = -(-reading.n_rows // piece_rows)
    # One piece more than `n_rows` fills: the array's last may be short.
    n_drawn = min(n_all, max(n_pieces, -(-n_rows // piece_rows) + 1))
    # Stretches differ by one piece in length, and a piece of a short stretch is likelier to be
    # drawn. A turn by a random number of pieces makes all pieces equally likely.
    edges = np.arange(n_drawn + 1) * n_all // n_drawn
    drawn = np.sort((rng.integers(edges[:-1], edges[1:]) + rng.integers(n_all)) % n_all)
    ranges = [
        RowRange(piece * piece_rows, min((piece + 1) * piece_rows, reading.n_rows))
        for piece in drawn.tolist()
    ]
    read_before = np.cumsum([0, *map(len, ranges)])
    n_read = int(read_before[-1])
    n_rows = min(n_rows, n_read)
    # Rounding starts at a random phase: a short piece is no likelier to be rounded up.
    picked_before = (read_before * n_rows + rng.integers(n_read)) // n_read
    window_pieces = reading.window_rows // piece_rows
    for index, start in enumerate(range(0, n_drawn, window_pieces)):
        reads = tuple(ranges[start : start + window_pieces])
        picks = tuple(np.diff(picked_before[start : start + window_pieces + 1]).tolist())
        yield Window(
            epoch=0,
            reads=reads,
            first_batch=index,
            batch_edges=(0, sum(picks)),
            last=start + window_pieces >= n_drawn,
            order_seed=(seed, _SAMPLE_ROWS, index),
            picks=picks,
        )


def row_windows(reading: ReadingPlan, rows: Sequence[int]) -> Iterator[Window]:
    """Windows of single `rows`, in that order.

    Each window is one batch, and no longer than the windows of `reading`.
    """
    for index, start in enumerate(range(0, len(rows), reading.window_rows)):
        chosen = rows[start : start + reading.window_rows]
        yield Window(
            epoch=0,
            reads=tuple(RowRange(row, row + 1) for row in chosen),
            first_batch=index,
            batch_edges=(0, len(chosen)),
            last=start + len(chosen) == len(rows),
        )
