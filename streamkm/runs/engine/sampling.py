"""Samples for seeding: draws rows from all over the array and keeps the usable ones.

Whole pieces are read, not single rows: decoding one row of a chunk costs as much as the chunk.
The number of pieces grows with k, within a budget of bytes and work.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from streamkm.clustering.seeding.plan import SCORE_PRODUCTS
from streamkm.clustering.seeding.sample import Sample, near_one
from streamkm.distributed.world import ALONE
from streamkm.errors import ConfigError
from streamkm.runs.engine.exchange import in_order
from streamkm.sources.weights import MAX_HEAVY
from streamkm.stream.pipeline import stream
from streamkm.stream.sample_plan import row_windows, sample_windows
from streamkm.stream.stages import StageTimes

if TYPE_CHECKING:
    from collections.abc import Callable

    from streamkm.clustering.batch import Batch
    from streamkm.distributed.world import World
    from streamkm.runs.reporting.progress import Progress
    from streamkm.sources.base import ArraySpec, Source
    from streamkm.sources.weights import Weights
    from streamkm.stream.plan import ReadingPlan
    from streamkm.stream.slots import HostSlots

__all__ = ["check_usable", "draw_sample", "sample_pieces", "split_sample", "usable_rows"]

#: Pieces of the array that the sample is drawn from: for each cluster, and at least. Rows of one
#: piece are often alike: many from few pieces may then tell no more than a few rows.
PIECES_PER_CLUSTER, MIN_PIECES = 2, 64
#: The most that is read for them, whichever is largest: this number of whole blocks, this number
#: of bytes, or this share of an epoch's work. Reading a byte takes about as long as
#: `PRODUCTS_PER_BYTE` products of two numbers.
SAMPLE_BLOCKS, FREE_BYTES, EPOCH_SHARE, PRODUCTS_PER_BYTE = 32, 64 << 20, 1 / 8, 20
#: A row of a piece smaller than a block costs as much to read as this number from whole blocks.
SMALL_PIECE_COST = 4


def _affordable_pieces(spec: ArraySpec, reading: ReadingPlan, k: int) -> tuple[int, int]:
    """Most rows to read for a sample for `k` clusters, and rows of the smallest piece."""
    products_per_row = k * (spec.n_features + SCORE_PRODUCTS)
    share = EPOCH_SHARE * max(products_per_row / (PRODUCTS_PER_BYTE * spec.row_bytes), 1)
    affordable_rows = max(
        SAMPLE_BLOCKS * reading.block_rows,
        FREE_BYTES // spec.row_bytes,
        int(share * reading.n_rows),
    )
    return affordable_rows, min(spec.piece_rows or reading.block_rows, reading.block_rows)


def sample_pieces(spec: ArraySpec, reading: ReadingPlan, k: int) -> tuple[int, int]:
    """Pieces, at least, that a sample for `k` clusters is drawn from, and rows of each piece."""
    affordable_rows, piece_rows = _affordable_pieces(spec, reading, k)
    wanted = max(PIECES_PER_CLUSTER * k, MIN_PIECES)
    if SMALL_PIECE_COST * wanted * piece_rows >= reading.n_rows:
        piece_rows = reading.block_rows
    return max(min(wanted, affordable_rows // piece_rows), 1), piece_rows


def draw_sample(
    source: Source,
    reading: ReadingPlan,
    n_rows: int,
    *,
    k: int,
    seed: int,
    dtype: torch.dtype,
    slots: HostSlots,
    progress: Progress,
    on_window: Callable[[], None],
    weights: Weights | None = None,
    world: World = ALONE,
) -> tuple[torch.Tensor, torch.Tensor | None, int]:
    """Draw `n_rows` random rows of `source` (or all), unscaled, as `dtype` on the device.

    Returns the rows, (S, D); their weights, float64, or None without `weights`; and the number
    of heavy rows. `on_window` is called after each window, and may raise. The processes of `world`
    read windows in turn; each gets the whole sample.

    Every row is drawn with the same probability, whatever its weight, except for the heavy
    rows, at most `MAX_HEAVY`: most samples would miss a cluster of one such row. All of them
    are read, row by row, and stand at the end. Their weights are multiplied by the share of all
    rows that was drawn. A heavy row that was drawn as well weighs 0 among the drawn ones.
    """
    if n_rows >= reading.n_rows:
        windows = list(reading.in_sequence().windows(0))
    else:
        n_pieces, piece_rows = sample_pieces(source.spec, reading, k)
        windows = list(
            sample_windows(reading, n_rows, seed=seed, n_pieces=n_pieces, piece_rows=piece_rows)
        )
    n_drawn = sum(window.batch_edges[-1] for window in windows)
    heavy, bound = np.empty(0, np.int64), np.inf
    if weights is not None and n_drawn < reading.n_rows:
        affordable_rows, least_rows = _affordable_pieces(source.spec, reading, k)
        bound, heavy = weights.heavy(1 / MAX_HEAVY, affordable_rows // least_rows)
        windows.extend(row_windows(reading, heavy.tolist()))
    lengths = [window.batch_edges[-1] for window in windows]
    own = range(world.rank, len(windows), world.size)
    total = sum(lengths[number] for number in own)
    sample_SD = torch.empty((total, source.spec.n_features), dtype=dtype, device=slots.device)
    weights_S = torch.empty(total, dtype=torch.float64, device=slots.device)
    times = StageTimes()
    progress.begin("sample", total, times)
    filled = 0
    mine = (windows[number] for number in own)
    with stream(source, mine, slots, times, weights) as device_windows:
        for window in device_windows:
            part = sample_SD[filled : filled + window.window.batch_edges[-1]]
            rows = slice(None) if window.order_N is None else window.order_N
            window.take_into(part, rows)
            if window.weights_N is not None:
                weights_S[filled : filled + len(part)] = window.weights_N[rows]
            filled += len(part)
            progress.advance(len(part))
            on_window()
    sample_SD = in_order(sample_SD, list(own), lengths, world)
    if weights is None:
        return sample_SD, None, 0
    weights_S = in_order(weights_S, list(own), lengths, world)
    weights_S[:n_drawn].masked_fill_(weights_S[:n_drawn] > bound, 0)
    weights_S[n_drawn:] *= n_drawn / reading.n_rows
    return sample_SD, weights_S, len(heavy)


def usable_rows(sample: Batch, n_heavy: int) -> Sample:
    """The rows of a scaled sample that a centroid may stand on; its last `n_heavy` are heavy.

    They are finite, have a direction where rows are normalised, and weigh more than 0; see
    `near_one` for their weights.
    """
    usable_S = torch.ones_like(sample.sq_norms_B, dtype=torch.bool)
    if sample.left_out_B is not None:
        usable_S &= ~sample.left_out_B
    if sample.is_normalized:
        usable_S &= sample.sq_norms_B > 0
    # The sample is copied only where rows have to go: it may be large.
    rows_SD, weights_S = sample.x_BD, sample.weights_B
    if not bool(usable_S.all()):
        rows_SD = rows_SD[usable_S]
        weights_S = None if weights_S is None else weights_S[usable_S]
        n_heavy = int(usable_S[len(usable_S) - n_heavy :].sum())
    # Without usable rows, the sample is refused or drawn anew.
    if weights_S is not None and len(weights_S):
        weights_S = near_one(weights_S)
    return Sample(rows_SD, weights_S, n_heavy)


def check_usable(n_usable: int, n_rows: int, k: int) -> None:
    """Refuse more clusters `k` than the `n_usable` rows of all `n_rows` that can be used."""
    if n_usable < k:
        raise ConfigError(
            "k must be at most the number of rows that are finite (and, where rows are "
            "normalised, not zero, and where they have weights, of positive weight): "
            f"{n_usable:,} of {n_rows:,} rows, k is {k:,}"
        )


def split_sample(sample: Sample, k: int, share: float) -> tuple[Sample, Sample]:
    """Split `sample` into rows to seek centroids on, and the `share` to judge them on.

    Both are the whole sample where `share` is 0 (there is only one seeding, or the sample is the
    whole array), or where only `k` rows are there to seek on. Heavy rows are in both.
    """
    rows_SD = sample.x_SD
    n_split = len(rows_SD) - sample.n_heavy
    n_judged = min(int(share * n_split), len(rows_SD) - k)
    if n_judged <= 0:
        return sample, sample
    # At even spacing: the rows lie in the order of the array.
    judged = torch.arange(n_judged, device=rows_SD.device) * n_split // n_judged
    is_judged_S = torch.zeros(len(rows_SD), dtype=torch.bool, device=rows_SD.device)
    is_judged_S[judged] = True
    sought, judging = ~is_judged_S, is_judged_S
    sought[n_split:], judging[n_split:] = True, True
    judged_share = n_judged / n_split
    return sample.part(sought, 1 - judged_share), sample.part(judging, judged_share)
