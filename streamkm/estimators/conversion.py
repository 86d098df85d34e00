"""Converts a fitted estimator to scikit-learn's own, through public interfaces only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn import cluster
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer, StandardScaler

from streamkm.errors import ParameterError
from streamkm.estimators.fitted import centers_of
from streamkm.estimators.inputs import as_numpy

if TYPE_CHECKING:
    from sklearn.base import BaseEstimator

    from streamkm.runs.storage.model import Model

__all__ = ["to_sklearn"]


def to_sklearn(estimator: BaseEstimator, model: Model) -> Any:
    """Make scikit-learn's ``KMeans`` or ``MiniBatchKMeans`` with the centroids of `estimator`.

    The conversion fits scikit-learn's estimator on the centroids themselves, so it takes k^2
    distances. `BaseKMeans.to_sklearn` describes the result.
    """
    if model.sizes is not None:
        raise ParameterError(
            "scikit-learn's estimators label by the nearest centroid alone, and this fit has "
            "bounds on the sizes of clusters, which also decide; give cluster_centers_ to one as "
            "init if you want its labels"
        )
    # scikit-learn wants rows in the type of the centroids.
    dtype = np.dtype(np.float32 if model.figures["dtype"] == "float32" else np.float64)
    moved = model.scaling.normalize or estimator.scale in ("zscore", "minmax")
    centroids_KD = model.centroids_KD.double().numpy() if moved else centers_of(model)
    centroids_KD = centroids_KD.astype(dtype)
    n_clusters = model.k
    mass_K = model.weights_K if len(model.weights_K) else model.counts_K
    # Fitted on the centroids, each of which is then the mean of its own cluster.
    if hasattr(estimator, "partial_fit"):
        theirs = cluster.MiniBatchKMeans(
            n_clusters, init=centroids_KD, n_init=1, compute_labels=False, reassignment_ratio=0
        )
        theirs.partial_fit(centroids_KD, sample_weight=mass_K.numpy())
        theirs.n_steps_ = model.figures["n_steps"]
    else:
        theirs = cluster.KMeans(n_clusters, init=centroids_KD, n_init=1, max_iter=1)
        theirs.fit(centroids_KD)
        del theirs.labels_
    theirs.cluster_centers_ = centroids_KD
    for name in ("labels_", "inertia_", "n_iter_"):
        if hasattr(estimator, name):
            setattr(theirs, name, as_numpy(getattr(estimator, name)))
    is_named = isinstance(estimator.init, str)
    theirs.set_params(
        init="k-means++" if is_named and estimator.init != "random" else estimator.init,
        max_iter=estimator.max_iter,
        tol=estimator.tol,
        random_state=estimator.random_state,
    )
    if not moved:
        if hasattr(estimator, "feature_names_in_"):
            theirs.feature_names_in_ = estimator.feature_names_in_
        return theirs
    return make_pipeline(_scaler(estimator, model, dtype), theirs)


def _scaler(estimator: BaseEstimator, model: Model, dtype: np.dtype[Any]) -> Any:
    """A fitted transformer of rows to the scaled space."""
    names = getattr(estimator, "feature_names_in_", None)
    # Fitting learns only the number of features from this row.
    row = np.zeros((1, model.n_features), dtype)
    if model.scaling.normalize:
        scaler = Normalizer().fit(row)
    else:
        scaler = StandardScaler().fit(row)
        scaler.mean_ = model.scaling.shift_D.numpy()
        scaler.scale_ = 1 / model.scaling.factor_D.numpy()
        scaler.var_ = np.square(scaler.scale_)
        scaler.n_samples_seen_ = int(model.counts_K.sum())
    if names is not None:
        scaler.feature_names_in_ = names
    return scaler
