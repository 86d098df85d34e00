"""Labels and distances of every row as arrays in memory, for the estimators."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from streamkm.kernels import pair_sq_distances
from streamkm.runs.engine.labelling import Labelling, label_dtype
from streamkm.runs.reporting.bad_rows import non_finite_error

if TYPE_CHECKING:
    from streamkm.config import ExecutionConfig
    from streamkm.runs.storage.model import Model
    from streamkm.sources import Source, Weights

__all__ = ["distance_rows", "label_rows"]

#: A squared distance that is less than this share of the squared lengths has lost too many digits:
#: others are right to 1e-9, below the rounding of float32.
CANCELLING_SHARE = 2.0**-20
#: Distances that are computed at once, before they go to the caller's array: 8 MiB.
TILE_ELEMENTS = 1 << 20


def label_rows(
    model: Model,
    source: Source,
    execution: ExecutionConfig,
    *,
    nan: str,
    weights: Weights | None = None,
) -> tuple[np.ndarray, float]:
    """The nearest centroid of each of N rows, and the inertia of all of them.

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
    labels_N = np.empty(source.spec.n_rows, label_dtype(model.k))
    inertia = 0.0
    with Labelling(model, source, execution, weights).batches() as batches:
        for batch in batches:
            if batch.n_dropped and nan == "error":
                raise non_finite_error(source, batch.n_dropped)
            rows = slice(batch.start_row, batch.start_row + len(batch.labels_B))
            labels_N[rows] = batch.labels_B.cpu().numpy()
            sq_distances_B = batch.sq_distances_B
            if batch.weights_B is not None:
                sq_distances_B = sq_distances_B * batch.weights_B
            inertia += float(sq_distances_B.nansum()) / model.scaling.unit**2
    return labels_N, inertia


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
    centroids_KD = labelling.centroids_KD.double()
    dtype = np.dtype(np.float64 if labelling.centroids_KD.dtype == torch.float64 else np.float32)
    distances_NK = np.empty((source.spec.n_rows, model.k), dtype)
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


def _sq_distances(x_TD: torch.Tensor, centroids_KD: torch.Tensor) -> torch.Tensor:
    """Squared distances of rows to all centroids, (T, K); both are float64."""
    lengths_TK = x_TD.square().sum(dim=1)[:, None] + centroids_KD.square().sum(dim=1)
    sq_distances_TK = torch.addmm(lengths_TK, x_TD, centroids_KD.T, alpha=-2)
    rows_P, places_P = (sq_distances_TK < CANCELLING_SHARE * lengths_TK).nonzero(as_tuple=True)
    sq_distances_TK[rows_P, places_P] = pair_sq_distances(x_TD, centroids_KD, rows_P, places_P)
    return sq_distances_TK
