"""The pass over the rows: how wide each cluster is, which rows are nearest and which farthest.

Memory is bounded by the number of clusters: a few rows of each are kept, and never the rows
themselves.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from streamkm.runs.evaluate import counted_labels, evaluate

if TYPE_CHECKING:
    from pathlib import Path

    from streamkm.config import ExecutionConfig
    from streamkm.runs.engine.labelled import LabelledBatch
    from streamkm.runs.evaluate import Evaluation
    from streamkm.runs.reporting.signals import StopRequest
    from streamkm.sources import Source, Weights

__all__ = ["FAR", "Survey", "survey"]

#: Rows of each cluster that are kept at either end.
N_NEAREST, N_FARTHEST = 6, 3
#: A row is far from everything from this multiple of the root mean square distance on.
FAR = 3.0


@dataclass(frozen=True)
class Survey:
    """What one pass over the rows has found; distances are Euclidean, in the scaled space."""

    source: str
    """Name of the array that was read."""
    evaluation: Evaluation
    weights: str | None
    """Fingerprint of the weights by which rows counted; None without weights."""
    mean_distance_K: np.ndarray
    """Of the rows of each cluster to its centroid, by their weights; NaN for an empty one."""
    nearest: Extremes
    farthest: Extremes
    n_far: int | None
    """Rows further from their centroid than `far_limit`; None if that is not known."""
    far_limit: float | None
    """`FAR` times the root mean square distance of the fit."""

    @property
    def sizes_K(self) -> np.ndarray:
        """Rows of each cluster by nearest centroid, int64; with weights, those above 0."""
        return np.asarray(self.evaluation.sizes, np.int64)


class Extremes:
    """The rows of each cluster with the least `sign` times distance, best first."""

    def __init__(self, k: int, n_kept: int, sign: int) -> None:
        self._sign = sign
        self.rows_KM = np.full((k, n_kept), -1, np.int64)
        """Row numbers; -1 where a cluster has fewer rows."""
        self._keys_KM = np.full((k, n_kept), np.inf)

    @property
    def distances_KM(self) -> np.ndarray:
        """Their distances; infinite where there is no row."""
        return np.where(self.rows_KM < 0, np.inf, self._sign * self._keys_KM)

    def of(self, cluster: int) -> list[tuple[int, float]]:
        """Row numbers and distances of one cluster, best first."""
        rows = self.rows_KM[cluster]
        distances = self._sign * self._keys_KM[cluster]
        return [(int(r), float(d)) for r, d in zip(rows, distances, strict=True) if r >= 0]

    def add(self, labels_B: np.ndarray, distances_B: np.ndarray, rows_B: np.ndarray) -> None:
        """Offer rows, in ascending order of their numbers; of equals the lowest number is kept."""
        keys_B = self._sign * distances_B
        n_kept = self.rows_KM.shape[1]
        order = np.lexsort((rows_B, keys_B, labels_B))
        labels_B, keys_B, rows_B = labels_B[order], keys_B[order], rows_B[order]
        touched_T, first_T = np.unique(labels_B, return_index=True)
        sizes_T = np.diff([*first_T, len(labels_B)])
        place_B = np.arange(len(labels_B)) - np.repeat(first_T, sizes_T)
        is_kept_B = place_B < n_kept
        at = np.repeat(np.arange(len(touched_T)), sizes_T)[is_kept_B], place_B[is_kept_B]
        keys_TM = np.full((len(touched_T), n_kept), np.inf)
        rows_TM = np.full((len(touched_T), n_kept), -1, np.int64)
        keys_TM[at], rows_TM[at] = keys_B[is_kept_B], rows_B[is_kept_B]
        # Earlier rows stand first, and a stable sort leaves them there among equals.
        keys_TM = np.concatenate([self._keys_KM[touched_T], keys_TM], axis=1)
        rows_TM = np.concatenate([self.rows_KM[touched_T], rows_TM], axis=1)
        best_TM = keys_TM.argsort(axis=1, kind="stable")[:, :n_kept]
        self._keys_KM[touched_T] = np.take_along_axis(keys_TM, best_TM, axis=1)
        self.rows_KM[touched_T] = np.take_along_axis(rows_TM, best_TM, axis=1)


class _Looker:
    """Takes in the batches of the pass."""

    def __init__(self, k: int, unit: float, far_limit: float | None) -> None:
        self._unit, self._far_limit = unit, far_limit
        self.distance_sums_K = np.zeros(k)
        self.nearest = Extremes(k, N_NEAREST, 1)
        self.farthest = Extremes(k, N_FARTHEST, -1)
        self.n_far = 0

    def __call__(self, batch: LabelledBatch) -> None:
        """Add a batch."""
        labels_B = counted_labels(batch).numpy()
        distances_B = batch.sq_distances_B.double().sqrt().cpu().numpy() / self._unit
        rows_B = np.arange(batch.start_row, batch.start_row + len(labels_B))
        is_counted_B = labels_B >= 0
        labels_B, rows_B = labels_B[is_counted_B], rows_B[is_counted_B]
        distances_B = distances_B[is_counted_B]
        weighed_B = distances_B
        if batch.weights_B is not None:
            weighed_B = distances_B * batch.weights_B.cpu().numpy()[is_counted_B]
        k = len(self.distance_sums_K)
        self.distance_sums_K += np.bincount(labels_B, weighed_B, k)
        self.nearest.add(labels_B, distances_B, rows_B)
        self.farthest.add(labels_B, distances_B, rows_B)
        if self._far_limit is not None:
            self.n_far += int((distances_B > self._far_limit).sum())


def survey(
    run_dir: Path,
    source: Source,
    execution: ExecutionConfig,
    *,
    k: int,
    unit: float,
    rms_distance: float | None,
    nan: str | None,
    stop_request: StopRequest,
    weights: Weights | None = None,
    quiet: bool = False,
) -> Survey:
    """Read `source` once, and look at every row of it.

    Parameters
    ----------
    run_dir, source, execution, nan, stop_request, weights, quiet
        As of `streamkm.runs.evaluate.evaluate`, which raises what it does there.
    k : int
        Clusters of the run.
    unit : float
        Length in the scaled space of a reported distance of 1.
    rms_distance : float or None
        Root mean square distance of rows in the fit, if it is known.
    """
    far_limit = None if rms_distance is None else FAR * rms_distance
    looker = _Looker(k, unit, far_limit)
    evaluation = evaluate(
        run_dir,
        source,
        execution,
        nan=nan,
        stop_request=stop_request,
        weights=weights,
        look=looker,
        compare=False,
        quiet=quiet,
    )
    masses_K = np.asarray(evaluation.weights or evaluation.sizes, float)
    mean_distance_K = np.full(k, np.nan)
    np.divide(looker.distance_sums_K, masses_K, out=mean_distance_K, where=masses_K > 0)
    return Survey(
        source.name,
        evaluation,
        None if weights is None else weights.fingerprint,
        mean_distance_K,
        looker.nearest,
        looker.farthest,
        None if far_limit is None else looker.n_far,
        far_limit,
    )
