"""What seeding starts from: a sample of the data, or centroids from a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from streamkm.clustering.sample import Sample
from streamkm.clustering.sizes import SCORE_PRODUCTS
from streamkm.errors import ConfigError
from streamkm.stream.pipeline import stream
from streamkm.stream.plan import sample_windows
from streamkm.stream.stages import StageTimes

if TYPE_CHECKING:
    from collections.abc import Callable

    from streamkm.clustering.scaling import Batch
    from streamkm.runs.progress import Progress
    from streamkm.sources.base import ArraySpec, Source
    from streamkm.stream.plan import Plan
    from streamkm.stream.slots import HostSlots

__all__ = ["draw_sample", "load_centroids", "split_sample", "usable_rows"]

#: The sample is drawn from at least so many blocks, wherever they lie, and from more where
#: reading them costs little: rows of one block are often alike, and a sample of few blocks
#: is then one of few rows. So many bytes are read in any case, so large a share of what an
#: epoch takes (reading a byte takes about as long as so many products of two numbers), and
#: so many blocks at most, or so many for each cluster.
SAMPLE_BLOCKS, FREE_BYTES, EPOCH_SHARE, PRODUCTS_PER_BYTE = 32, 64 << 20, 1 / 8, 20
MAX_SAMPLE_BLOCKS, BLOCKS_PER_CLUSTER = 512, 2


def sample_blocks(spec: ArraySpec, plan: Plan, k: int) -> int:
    """From how many blocks the sample for `k` clusters is drawn, at least."""
    products_per_row = k * (spec.n_features + SCORE_PRODUCTS)
    read_products_per_row = PRODUCTS_PER_BYTE * spec.row_bytes
    share = EPOCH_SHARE * max(products_per_row / read_products_per_row, 1)
    free = FREE_BYTES // (plan.block_rows * spec.row_bytes)
    affordable = max(int(share * plan.n_blocks), free, SAMPLE_BLOCKS)
    return min(affordable, max(MAX_SAMPLE_BLOCKS, BLOCKS_PER_CLUSTER * k))


def load_centroids(path: str, k: int, n_features: int, *, normalize: bool) -> np.ndarray:
    """The k x D array in the .npy file `path`, float64; to `normalize` no row may be zero.

    Raises
    ------
    ConfigError
        If there is no such file, or it holds anything else.
    """
    try:
        centroids_KD: np.ndarray = np.load(Path(path), allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ConfigError(f"--init {path}: no .npy file that can be read ({error})") from None
    if centroids_KD.shape != (k, n_features) or centroids_KD.dtype.kind not in "fiu":
        raise ConfigError(
            f"--init {path}: {k} centroids of {n_features} features are needed (real numbers), "
            f"the file holds {centroids_KD.dtype} of shape {centroids_KD.shape}"
        )
    if not np.isfinite(centroids_KD).all():
        raise ConfigError(f"--init {path}: the centroids hold NaN or infinity")
    if normalize and not centroids_KD.any(axis=1).all():
        raise ConfigError(f"--init {path}: a centroid of zeros has no direction to normalise")
    given_KD: np.ndarray = centroids_KD.astype(np.float64)
    return given_KD


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
) -> torch.Tensor:
    """At least `n_rows` random rows of `source` (or all), unscaled, as `dtype` on the device."""
    n_blocks = sample_blocks(source.spec, plan, k)
    windows = list(sample_windows(plan, n_rows, seed=seed, n_blocks=n_blocks))
    total = sum(window.batch_edges[-1] for window in windows)
    sample_SD = torch.empty((total, source.spec.n_features), dtype=dtype, device=slots.device)
    times = StageTimes()
    progress.begin("sample", total, times)
    filled = 0
    with stream(source, iter(windows), slots, times) as device_windows:
        for window in device_windows:
            for _, rows in window.batches():
                part = window.x_ND[rows]
                sample_SD[filled : filled + len(part)] = part
                filled += len(part)
                progress.advance(len(part))
            on_window()
    return sample_SD


def usable_rows(sample: Batch, k: int) -> torch.Tensor:
    """The rows of a scaled sample that a centroid may stand on: finite, and with a direction.

    Raises
    ------
    ConfigError
        If there are fewer than `k`.
    """
    usable_S = torch.ones_like(sample.sq_norms_B, dtype=torch.bool)
    if sample.dropped_B is not None:
        usable_S &= ~sample.dropped_B
    if sample.is_normalized:
        usable_S &= sample.sq_norms_B > 0
    # A second copy of the sample only where rows have to go.
    rows_SD = sample.x_BD if bool(usable_S.all()) else sample.x_BD[usable_S]
    if len(rows_SD) < k:
        raise ConfigError(
            "k must be at most the number of rows that are finite (and, where rows are "
            f"normalised, not zero): {len(rows_SD):,} of {len(usable_S):,} rows sampled, "
            f"k is {k:,}"
        )
    return rows_SD


def split_sample(rows_SD: torch.Tensor, k: int, share: float) -> tuple[Sample, Sample]:
    """The sample that centroids are sought on, and the `share` of rows they are judged on.

    Without a share (because the sample is the whole array, or there is nothing to
    judge) both are the same. At least `k` rows stay to be sought on.
    """
    n_judged = min(int(share * len(rows_SD)), len(rows_SD) - k)
    if n_judged == 0:
        sample = Sample(rows_SD)
        return sample, sample
    # Evenly from all over: rows come block by block, in random order within none of them.
    judged = torch.arange(n_judged, device=rows_SD.device) * len(rows_SD) // n_judged
    is_judged_S = torch.zeros(len(rows_SD), dtype=torch.bool, device=rows_SD.device)
    is_judged_S[judged] = True
    return Sample(rows_SD[~is_judged_S]), Sample(rows_SD[is_judged_S])
