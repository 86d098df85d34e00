"""The model behind ``cluster_centers_`` and ``counts_``, which a user may set or change in place.

These two are what a user sees, so they are what counts: before a model is used it is compared
with them, and made anew where they differ. Watching assignments instead would miss
``cluster_centers_[0] = ...``, and every array that shares their memory.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_array

from streamkm.clustering.scaling import Scaling
from streamkm.errors import ParameterError
from streamkm.estimators.inputs import refuse_masked
from streamkm.kernels import normalized
from streamkm.runs.storage.model import Model

if TYPE_CHECKING:
    from streamkm.config import FitConfig

__all__ = [
    "NoLabels",
    "centers_of",
    "model_from_centers",
    "model_of",
    "warn_of_empty_clusters",
]


class NoLabels:
    """Explains an absent ``labels_``; the attribute of an instance that has labels hides it."""

    def __get__(self, estimator: object | None, owner: type) -> np.ndarray:
        if estimator is None or not hasattr(estimator, "_model"):
            raise AttributeError(f"{owner.__name__!r} object has no attribute 'labels_'")
        raise AttributeError(
            "there are no labels_: fit keeps them of rows in memory, and of others with "
            "compute_labels=True; predict(X) gives them"
        )


def centers_of(model: Model) -> np.ndarray:
    """The centroids of `model` in the space of the input, in its dtype, as a copy."""
    scaling = model.scaling
    if not scaling.is_affine and not scaling.normalize:
        # No more is left of `inverse`. `predict` asks for them in each call, and torch's threads
        # are slow to wake on cores that others use.
        return model.centroids_KD.numpy() + 0
    points_KD = scaling.inverse(model.centroids_KD).to(model.centroids_KD.dtype)
    return points_KD.numpy().copy()


def model_of(model: Model, centers: Any, counts: Any) -> Model:
    """`model` with the `centers` and `counts` that its estimator has now.

    A count says how many rows have a centroid as their mean. So a centroid that was moved gets
    the sum of that number of rows at its new place, and goes on from there, as scikit-learn's does.
    Rows that were not touched keep their sums to the bit. Where the number of centroids has
    changed and the counts have not, no row is counted.

    Raises
    ------
    ParameterError
        If the centers are no finite numbers, have another number of features than `model`, or
        the counts are not whole.
    """
    is_moved = not np.array_equal(centers, centers_of(model))
    if len(counts) != len(centers):
        counts = np.zeros(len(centers), np.int64)
    if not is_moved and np.array_equal(counts, model.counts_K.numpy()):
        return model
    points_KD, counts_K = model.centroids_KD, _checked_counts(counts, len(centers))
    if is_moved:
        centers_KD = _checked_centers(centers, model.n_features)
        points_KD = _scaled(model, centers_KD).to(model.centroids_KD.dtype)
    if len(points_KD) != model.k:
        return _counted_anew(model, points_KD, counts_K)
    touched_K = (points_KD != model.centroids_KD).any(dim=1) | (counts_K != model.counts_K)
    if not touched_K.any():
        return model  # Centers of the cosine metric that were given with other lengths.
    weights_K = model.weights_K
    if len(weights_K):
        weights_K = torch.where(counts_K != model.counts_K, counts_K.double(), weights_K)
    mass_K = (weights_K if len(weights_K) else counts_K).double()
    at_points_KD = points_KD.double() * mass_K[:, None]
    return replace(
        model,
        # Prices are of the centroids that were fitted.
        sizes=None if is_moved else model.sizes,
        centroids_KD=points_KD,
        counts_K=counts_K,
        weights_K=weights_K,
        sums_KD=torch.where(touched_K[:, None], at_points_KD, model.sums_KD),
    )


def model_from_centers(centers: Any, config: FitConfig, names: tuple[str, ...]) -> Model:
    """A model with these `centers` that has seen no row; `config` is of an unfitted estimator.

    `names` are those of the features, empty if they have none.

    Raises
    ------
    ParameterError
        If the centers are no finite numbers, or the scaling takes the statistics of rows.
    """
    if config.scale in ("zscore", "minmax"):
        raise ParameterError(
            f"cluster_centers_ alone do not say how scale={config.scale!r} scales rows: call fit "
            "with them as init, or use scale='none' behind a scaler"
        )
    centers_KD = _checked_centers(centers, None)
    one_D = torch.ones(centers_KD.shape[1], dtype=torch.float64)
    scaling = Scaling(
        torch.zeros_like(one_D),
        one_D,
        normalize=config.normalizes,
        keeps_units=config.scale == "none",
    )
    dtype = str(centers_KD.dtype).removeprefix("torch.")
    empty = Model(
        centroids_KD=centers_KD,
        counts_K=torch.zeros(0, dtype=torch.int64),
        sums_KD=torch.zeros(0, dtype=torch.float64),
        weights_K=torch.zeros(0, dtype=torch.float64),
        scaling=scaling,
        settings=config.as_dict(),
        inertia=None,
        figures={"n_iter": 0, "n_steps": 0, "epoch_inertia": float("nan"), "dtype": dtype},
        feature_names=names,
    )
    points_KD = _scaled(empty, centers_KD).to(centers_KD.dtype)
    return _counted_anew(empty, points_KD, torch.zeros(len(points_KD), dtype=torch.int64))


def _counted_anew(model: Model, points_KD: torch.Tensor, counts_K: torch.Tensor) -> Model:
    """`model` with these centroids; each is the mean of as many rows as its count says."""
    return replace(
        model,
        sizes=None,
        centroids_KD=points_KD,
        counts_K=counts_K,
        sums_KD=points_KD.double() * counts_K[:, None],
        weights_K=torch.zeros(0, dtype=torch.float64),
    )


def _scaled(model: Model, centers_KD: torch.Tensor) -> torch.Tensor:
    """Points of the space of ``cluster_centers_`` in the scaled space.

    With l2 scaling that is the space of the centroids itself: means of unit vectors are shorter.
    """
    if not model.scaling.normalize:
        return model.scaling.transform(centers_KD)
    is_cosine = model.settings["metric"] == "cosine"
    return normalized(centers_KD.double()) if is_cosine else centers_KD.double()


def _checked_centers(centers: Any, n_features: int | None) -> torch.Tensor:
    """`centers` as a tensor of float32 or float64 with memory of its own."""
    refuse_masked(centers, "cluster_centers_", "fill what is masked")
    checked_KD = check_array(
        centers, dtype=[np.float64, np.float32], copy=True, input_name="cluster_centers_"
    )
    if n_features is not None and checked_KD.shape[1] != n_features:
        raise ParameterError(
            f"cluster_centers_ must have the {n_features} features of the rows that were fitted; "
            f"they have {checked_KD.shape[1]}: make another estimator for other features"
        )
    return torch.from_numpy(checked_KD)


def _checked_counts(counts: Any, k: int) -> torch.Tensor:
    """`counts` as int64."""
    array = np.asarray(counts)
    whole = array.astype(np.int64) if array.dtype.kind in "iuf" else array
    if whole.shape != (k,) or not np.array_equal(whole, array) or (whole < 0).any():
        raise ParameterError(
            f"counts_ must be {k} whole numbers of at least 0, the rows of each centroid; "
            f"they are {array.dtype} of shape {array.shape}"
        )
    return torch.from_numpy(whole)


def warn_of_empty_clusters(estimator: Any) -> None:
    """Warn, where `fit` was called, if fewer clusters than asked for have rows."""
    counts_K = estimator.counts_
    if hasattr(estimator, "labels_"):
        counts_K = np.bincount(estimator.labels_ + 1)[1:]  # without rows that were dropped
    n_found = np.count_nonzero(counts_K)
    if n_found < estimator.n_clusters:
        warnings.warn(
            f"Number of distinct clusters ({n_found}) found smaller than n_clusters "
            f"({estimator.n_clusters}). Possibly due to duplicate points in X, or the last update "
            "has left a centroid where it is the nearest to none; a smaller n_clusters gives "
            "the same.",
            ConvergenceWarning,
            stacklevel=3,
        )
