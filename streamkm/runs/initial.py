"""What seeding starts from: a sample of the data, or centroids from a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from streamkm.clustering.sizes import SCORE_PRODUCTS
from streamkm.errors import ConfigError, Option
from streamkm.stream.pipeline import stream
from streamkm.stream.plan import sample_windows
from streamkm.stream.stages import StageTimes

if TYPE_CHECKING:
    from collections.abc import Callable

    from streamkm.clustering.sample import Sample
    from streamkm.clustering.scaling import Batch
    from streamkm.config import FitConfig
    from streamkm.runs.progress import Progress
    from streamkm.sources.base import ArraySpec, Source
    from streamkm.sources.weights import Weights
    from streamkm.stream.plan import Plan
    from streamkm.stream.slots import HostSlots

__all__ = ["check_usable", "draw_sample", "first_centroids", "split_sample", "usable_rows"]

#: The sample is drawn from so many pieces of the array for each cluster, and at least: rows of
#: one piece are often alike, and a sample of few pieces is then one of few rows.
PIECES_PER_CLUSTER, MIN_PIECES = 2, 64
#: But no more is read than so many whole blocks, so many bytes, or so large a share of what
#: an epoch takes (reading a byte takes about as long as so many products of two numbers).
SAMPLE_BLOCKS, FREE_BYTES, EPOCH_SHARE, PRODUCTS_PER_BYTE = 32, 64 << 20, 1 / 8, 20
#: A row of a piece that is less than a block costs as much as so many of whole blocks.
SMALL_PIECE_COST = 4


def sample_pieces(spec: ArraySpec, plan: Plan, k: int) -> tuple[int, int]:
    """From how many pieces the sample for `k` clusters is drawn, at least, and their rows."""
    piece_rows = min(spec.piece_rows or plan.block_rows, plan.block_rows)
    products_per_row = k * (spec.n_features + SCORE_PRODUCTS)
    share = EPOCH_SHARE * max(products_per_row / (PRODUCTS_PER_BYTE * spec.row_bytes), 1)
    affordable_rows = max(
        SAMPLE_BLOCKS * plan.block_rows, FREE_BYTES // spec.row_bytes, int(share * plan.n_rows)
    )
    wanted = max(PIECES_PER_CLUSTER * k, MIN_PIECES)
    if SMALL_PIECE_COST * wanted * piece_rows >= plan.n_rows:
        piece_rows = plan.block_rows
    return max(min(wanted, affordable_rows // piece_rows), 1), piece_rows


def first_centroids(
    config: FitConfig, n_features: int, given_KD: np.ndarray | None
) -> np.ndarray | None:
    """The k x D centroids to begin from, float64, where ``config.init`` names a file or `given_KD`.

    Raises
    ------
    ConfigError
        If there is no such file or array, or it holds anything else; if rows are to be
        normalised and a centroid is zero.
    """
    if config.init == "given":
        name, centroids_KD = Option("init"), given_KD
        if centroids_KD is None:
            raise ConfigError("init given: the centroids must be passed along, there are none")
    elif config.init.endswith(".npy"):
        name = Option("init", config.init)
        try:
            centroids_KD = np.load(Path(config.init), allow_pickle=False)
        except (OSError, ValueError) as error:
            raise ConfigError(name, f": no .npy file that can be read ({error})") from None
    else:
        return None
    if centroids_KD.shape != (config.k, n_features) or centroids_KD.dtype.kind not in "fiu":
        raise ConfigError(
            name,
            f": {config.k} centroids of {n_features} features are needed (real numbers), "
            f"these are {centroids_KD.dtype} of shape {centroids_KD.shape}",
        )
    if not np.isfinite(centroids_KD).all():
        raise ConfigError(name, ": the centroids hold NaN or infinity")
    if config.normalizes and not centroids_KD.any(axis=1).all():
        raise ConfigError(name, ": a centroid of zeros has no direction to normalise")
    wide_KD: np.ndarray = centroids_KD.astype(np.float64)
    return wide_KD


def draw_sample(
    source: Source,
    plan: Plan,
    n_rows: int,
    *,
    k: int,
    seed: int,
    dtype: torch.dtype,
    slots: HostSlots,
    progress: Progress,
    on_window: Callable[[], None],
    weights: Weights | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Random rows of `source`, `n_rows` of them (or all), unscaled, as `dtype` on the device.

    With them come their weights, float64, if there are any; every row is drawn with the same
    probability, whatever its weight.

    From the more places of the array, the more clusters `k` there are to be found.
    """
    n_pieces, piece_rows = sample_pieces(source.spec, plan, k)
    windows = list(
        sample_windows(plan, n_rows, seed=seed, n_pieces=n_pieces, piece_rows=piece_rows)
    )
    total = sum(window.batch_edges[-1] for window in windows)
    sample_SD = torch.empty((total, source.spec.n_features), dtype=dtype, device=slots.device)
    weights_S = torch.empty(total, dtype=torch.float64, device=slots.device)
    times = StageTimes()
    progress.begin("sample", total, times)
    filled = 0
    with stream(source, iter(windows), slots, times, weights) as device_windows:
        for window in device_windows:
            for _, rows in window.batches():
                part = window.x_ND[rows]
                sample_SD[filled : filled + len(part)] = part
                if window.weights_N is not None:
                    weights_S[filled : filled + len(part)] = window.weights_N[rows]
                filled += len(part)
                progress.advance(len(part))
            on_window()
    return sample_SD, weights_S if weights is not None else None


def usable_rows(sample: Batch) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The rows of a scaled sample that a centroid may stand on, and their weights.

    They are finite, have a direction where rows are normalised, and a positive weight.
    """
    usable_S = torch.ones_like(sample.sq_norms_B, dtype=torch.bool)
    if sample.left_out_B is not None:
        usable_S &= ~sample.left_out_B
    if sample.is_normalized:
        usable_S &= sample.sq_norms_B > 0
    # A second copy of the sample only where rows have to go.
    rows_SD, weights_S = sample.x_BD, sample.weights_B
    if not bool(usable_S.all()):
        rows_SD = rows_SD[usable_S]
        weights_S = None if weights_S is None else weights_S[usable_S]
    return rows_SD, weights_S


def check_usable(n_usable: int, n_rows: int, k: int) -> None:
    """Refuse `k` clusters of so many rows of use among all `n_rows`."""
    if n_usable < k:
        raise ConfigError(
            "k must be at most the number of rows that are finite (and, where rows are "
            "normalised, not zero, and where they have weights, of a positive one): "
            f"{n_usable:,} of {n_rows:,} rows, k is {k:,}"
        )


def split_sample(sample: Sample, k: int, share: float) -> tuple[Sample, Sample]:
    """The sample that centroids are sought on, and the `share` of rows they are judged on.

    Without a share (because the sample is the whole array, or there is nothing to
    judge) both are the same. At least `k` rows stay to be sought on.
    """
    rows_SD = sample.x_SD
    n_judged = min(int(share * len(rows_SD)), len(rows_SD) - k)
    if n_judged == 0:
        return sample, sample
    # Evenly from all over: rows come block by block, in random order within none of them.
    judged = torch.arange(n_judged, device=rows_SD.device) * len(rows_SD) // n_judged
    is_judged_S = torch.zeros(len(rows_SD), dtype=torch.bool, device=rows_SD.device)
    is_judged_S[judged] = True
    sought, judging = sample.part(~is_judged_S), sample.part(is_judged_S)
    return sought, judging
