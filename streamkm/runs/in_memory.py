"""Labels and distances of every row as arrays in memory, for the estimators."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from streamkm.clustering.graded_sums import serial_sum, sum_graded_
from streamkm.distributed.world import ALONE
from streamkm.kernels import LEAST_GRADE, add_graded_, graded_total, pair_sq_distances
from streamkm.runs.engine.labelling import Labelling, label_dtype
from streamkm.runs.engine.watch import Watch
from streamkm.runs.engine.writing import CLUSTER, DISTANCE, FoundRows
from streamkm.runs.reporting.bad_rows import non_finite_error

if TYPE_CHECKING:
    from streamkm.config import ExecutionConfig
    from streamkm.distributed.world import World
    from streamkm.runs.engine.labelled import LabelledBatch
    from streamkm.runs.storage.model import Model
    from streamkm.sources import Source, Weights

__all__ = ["distance_rows", "label_rows", "nearest_rows"]

#: A squared distance that is less than this share of the squared lengths has lost too many digits:
#: others are right to 1e-9, below the rounding of float32.
CANCELLING_SHARE = 2.0**-20
#: Distances that are computed at once, before they go to the caller's array: 8 MiB.
TILE_ELEMENTS = 1 << 20
#: Labels that processes exchange at once: 4 MiB.
LABELS_AT_ONCE = 1 << 20


def label_rows(
    model: Model,
    source: Source,
    execution: ExecutionConfig,
    *,
    nan: str,
    weights: Weights | None = None,
    world: World = ALONE,
) -> tuple[np.ndarray, float]:
    """The nearest centroid of each of N rows, and the inertia of all of them.

    The processes of `world` share the rows, and each gets all labels.

    Returns
    -------
    labels_N : ndarray of shape (N,)
        int32 (int64 from 2^31 clusters); -1 for rows that were dropped.
    inertia : float
        Sum of the squared distances in the scaled space, each times the weight of its row.

    Raises
    ------
    NonFiniteError
        If a row holds NaN or infinity and `nan` is ``error``.
    """
    labels_N = np.zeros(source.spec.n_rows, label_dtype(model.k))
    sums = torch.zeros((2, 1, 1), dtype=torch.int64)
    grades_1 = torch.full((1,), LEAST_GRADE)
    labelling = Labelling(model, source, execution, weights, world=world)
    labelling.go_by(model.carried)
    _warn_of_type(labelling)
    watch = Watch(source, nan, world)
    with labelling.batches() as batches:
        for place in labelling.places():
            n_dropped = 0
            if place.owner == world.rank:
                batch = next(batches)
                n_dropped = batch.n_dropped
                rows = slice(place.start_row, place.start_row + place.n_rows)
                labels_N[rows] = batch.labels_B.cpu().numpy()
                add_graded_(sums, grades_1, _inertia(batch).cpu().view(1, 1))
            watch.after(place, n_dropped)
        watch.finish()
    sum_graded_(world, [(sums, grades_1)])
    if world.size > 1:
        # Each has zeros where others have labels.
        for part in torch.from_numpy(labels_N).split(LABELS_AT_ONCE):
            world.sum_(part)
    return labels_N, float(graded_total(sums, grades_1)) / model.scaling.unit**2


def _warn_of_type(labelling: Labelling) -> None:
    """Warn, where a method of an estimator was called, of rows of another type."""
    for note in labelling.type_notes:
        warnings.warn(note, stacklevel=5)


def _inertia(batch: LabelledBatch) -> torch.Tensor:
    """Weighted sum of the squared distances of the rows that are finite, in scaled units."""
    sq_distances_B = batch.sq_distances_B.double()
    if batch.weights_B is not None:
        sq_distances_B = sq_distances_B * batch.weights_B
    if batch.n_dropped:
        sq_distances_B = sq_distances_B.masked_fill(batch.labels_B < 0, 0)
    return serial_sum(sq_distances_B)


def distance_rows(
    model: Model, source: Source, execution: ExecutionConfig, *, nan: str
) -> np.ndarray:
    """The Euclidean distance of N rows to all K centroids, in the scaled space.

    They are computed as ``|x|^2 - 2 x.c + |c|^2`` in float64, and where that cancels from
    differences. The distance of a row to a centroid that equals it is 0.

    Returns
    -------
    ndarray of shape (N, K)
        float32, or float64 where rows are compared in it; NaN for rows that were dropped.
    """
    labelling = Labelling(model, source, execution)
    _warn_of_type(labelling)
    centroids_KD = labelling.centroids_KD.double()
    distances_NK = np.empty((source.spec.n_rows, model.k), _distance_dtype(labelling))
    tile_rows = max(TILE_ELEMENTS // model.k, 1)
    with labelling.prepared() as batches:
        for start_row, batch in batches:
            if batch.dropped_B is not None:
                n_dropped = int(batch.dropped_B.sum())
                if n_dropped and nan == "error":
                    raise non_finite_error(source, n_dropped)
                batch.x_BD.masked_fill_(batch.dropped_B[:, None], torch.nan)
            for x_TD in batch.x_BD.split(tile_rows):
                distances_TK = _sq_distances(x_TD.double(), centroids_KD).sqrt_()
                distances_TK /= model.scaling.unit
                distances_NK[start_row : start_row + len(x_TD)] = distances_TK.cpu().numpy()
                start_row += len(x_TD)
    return distances_NK


def nearest_rows(
    model: Model, source: Source, execution: ExecutionConfig, *, nan: str, n_nearest: int
) -> tuple[np.ndarray, np.ndarray]:
    """Distances to the `n_nearest` nearest centroids of N rows, nearest first, and their labels.

    Returns
    -------
    distances_NM : ndarray of shape (N, M)
        In the scaled space, of the dtype of `distance_rows`; NaN for rows that were dropped.
    labels_NM : ndarray of shape (N, M), int64
        Of equal distances the lower is first; -1 for rows that were dropped.
    """
    labelling = Labelling(model, source, execution, n_nearest=n_nearest)
    _warn_of_type(labelling)
    dtype = _distance_dtype(labelling)
    fields = [(CLUSTER, (np.int64, (n_nearest,))), (DISTANCE, (dtype, (n_nearest,)))]
    rows = FoundRows([(name, np.dtype(each)) for name, each in fields], model.scaling.unit)
    found_N = np.empty(source.spec.n_rows, rows.dtype)
    with labelling.batches() as batches:
        for batch in batches:
            if batch.n_dropped and nan == "error":
                raise non_finite_error(source, batch.n_dropped)
            found_B = rows.of(batch)
            found_N[batch.start_row : batch.start_row + len(found_B)] = found_B
    return found_N[DISTANCE].copy(), found_N[CLUSTER].copy()


def _distance_dtype(labelling: Labelling) -> np.dtype[Any]:
    """float32, or float64 where rows are compared in it."""
    return np.dtype(np.float64 if labelling.centroids_KD.dtype == torch.float64 else np.float32)


def _sq_distances(x_TD: torch.Tensor, centroids_KD: torch.Tensor) -> torch.Tensor:
    """Squared distances of rows to all centroids, (T, K); both are float64."""
    lengths_TK = x_TD.square().sum(dim=1)[:, None] + centroids_KD.square().sum(dim=1)
    sq_distances_TK = torch.addmm(lengths_TK, x_TD, centroids_KD.T, alpha=-2)
    rows_P, places_P = (sq_distances_TK < CANCELLING_SHARE * lengths_TK).nonzero(as_tuple=True)
    sq_distances_TK[rows_P, places_P] = pair_sq_distances(x_TD, centroids_KD, rows_P, places_P)
    return sq_distances_TK
