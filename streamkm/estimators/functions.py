"""scikit-learn's functions of k-means: `k_means` and `kmeans_plusplus`."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from streamkm.clustering.scaling import RunningMoments, Scaling, compute_dtype
from streamkm.clustering.seeding.kmeans_plusplus import GreedyPlusPlus
from streamkm.clustering.seeding.sample import Sample
from streamkm.errors import NonFiniteError, ParameterError
from streamkm.estimators.inputs import nan_is_refused, open_rows
from streamkm.estimators.kmeans import KMeans
from streamkm.estimators.parameters import draw_seed
from streamkm.kernels import torch_alone_after_fork
from streamkm.settings import whole
from streamkm.sources import RowRange, Source
from streamkm.stream.transfer import as_stored_tensor

__all__ = ["k_means", "kmeans_plusplus"]

_COUNT = whole(1)


@nan_is_refused()
def k_means(
    X: Any,
    n_clusters: int,
    *,
    sample_weight: Any = None,
    init: Any = "auto",
    n_init: int | str = "auto",
    max_iter: int = 300,
    verbose: bool | int = False,
    tol: float = 1e-4,
    random_state: Any = None,
    copy_x: bool = True,
    algorithm: str = "lloyd",
    return_n_iter: bool = False,
) -> tuple[Any, ...]:
    """Cluster the rows of `X` by `KMeans`, and return what it finds.

    Parameters
    ----------
    X : array-like of shape (n_samples, n_features), sparse matrix, path, Zarr array or Source
        As in `KMeans.fit`.
    n_clusters : int
        Number of clusters, K.
    sample_weight : array-like of shape (n_samples,), float or path, default=None
        As in `KMeans.fit`.
    init, n_init, max_iter, verbose, tol, random_state, copy_x, algorithm
        Parameters of `KMeans`.
    return_n_iter : bool, default=False
        Whether to return the number of passes too.

    Returns
    -------
    centroids : ndarray of shape (n_clusters, n_features)
        `KMeans.cluster_centers_`.
    labels : ndarray of shape (n_samples,), int32
        Index of the nearest centroid of each row, of rows on disk too.
    inertia : float
        Sum of the squared distances of rows to their nearest centroids, each times its weight.
    n_iter : int
        Passes over the data, only with `return_n_iter`.

    Examples
    --------
    >>> import numpy as np
    >>> from streamkm import k_means
    >>> x = np.array([[1.0, 2], [1, 4], [1, 0], [10, 2], [10, 4], [10, 0]])
    >>> k_means(x, 2, init=x[[0, 3]])[1:]
    (array([0, 0, 0, 1, 1, 1], dtype=int32), 16.0)
    """
    kmeans = KMeans(
        n_clusters,
        init=init,
        n_init=n_init,
        max_iter=max_iter,
        verbose=verbose,
        tol=tol,
        random_state=random_state,
        copy_x=copy_x,
        algorithm=algorithm,
        compute_labels=True,
    ).fit(X, sample_weight=sample_weight)
    found = (kmeans.cluster_centers_, kmeans.labels_, kmeans.inertia_)
    return (*found, kmeans.n_iter_) if return_n_iter else found


@torch_alone_after_fork()
def kmeans_plusplus(
    X: Any,
    n_clusters: int,
    *,
    sample_weight: Any = None,
    x_squared_norms: Any = None,
    random_state: Any = None,
    n_local_trials: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Choose rows of `X` as first centroids, by greedy k-means++ (Arthur & Vassilvitskii 2007).

    It looks at every row, and holds all of them in memory, dense. (``init="k-means++"`` of an
    estimator looks at a sample, and streams what is on disk.)

    Parameters
    ----------
    X : array-like of shape (n_samples, n_features), sparse matrix, path, Zarr array or Source
        As in `KMeans.fit`.
    n_clusters : int
        Number of rows to choose.
    sample_weight : array-like of shape (n_samples,), float or path, default=None
        As in `KMeans.fit`. A row of weight 0 is not chosen.
    x_squared_norms : array-like of shape (n_samples,), default=None
        Without effect, present for scikit-learn's sake: the squared lengths are found along the
        way.
    random_state : int, RandomState or None, default=None
        An integer is the seed and gives the same result each time. From anything else a seed is
        drawn.
    n_local_trials : int, default=None
        Rows to draw for each centroid but the first; the one that leaves the least inertia is
        kept. None is ``2 + log(n_clusters)``; 1 is k-means++ that is not greedy.

    Returns
    -------
    centers : ndarray of shape (n_clusters, n_features)
        The chosen rows, in the type of X.
    indices : ndarray of shape (n_clusters,), int64
        Their numbers in X.

    Raises
    ------
    ValueError
        If a parameter or the data cannot be used; the message names a remedy.

    Examples
    --------
    >>> import numpy as np
    >>> from streamkm import kmeans_plusplus
    >>> x = np.array([[1.0, 2], [1, 4], [1, 0], [10, 2], [10, 4], [10, 0]])
    >>> centers, indices = kmeans_plusplus(x, 2, random_state=0)
    >>> bool((centers == x[indices]).all()), sorted(indices // 3)
    (True, [0, 1])
    """
    for name, value in (("n_clusters", n_clusters), ("n_local_trials", n_local_trials)):
        is_left_out = name == "n_local_trials" and value is None
        if not is_left_out and not _COUNT.admits(np.asarray(value).item()):
            raise ParameterError(f"{name} must be {_COUNT.text}; it is {value!r}")
    seed = draw_seed(random_state)
    with open_rows(KMeans(), X, reset=True) as rows:
        weights = rows.weights(sample_weight)
        stored = _all_rows(rows.source)
        dtype_name = rows.source.spec.dtype
        weights_N = None
        if weights is not None:
            weights_N = torch.empty(len(stored), dtype=torch.float64)
            weights.read(RowRange(0, len(stored)), weights_N.numpy())
    n_usable = len(stored) if weights_N is None else int((weights_N > 0).sum())
    if n_usable < n_clusters:
        raise ParameterError(f"n_samples={n_usable} should be >= n_clusters={n_clusters}.")
    if x_squared_norms is not None and len(x_squared_norms) != len(stored):
        raise ParameterError(
            f"The length of x_squared_norms {len(x_squared_norms)} should be equal to the length "
            f"of n_samples {len(stored)}."
        )
    x_ND = as_stored_tensor(stored, dtype_name)
    dtype = compute_dtype(x_ND.dtype)
    moments = RunningMoments.of(x_ND, weights_N)
    if int(moments.n_dropped):
        raise NonFiniteError(
            f"X holds NaN or infinity in {int(moments.n_dropped)} rows; leave such rows out"
        )
    scaling = Scaling.fit("none", "euclidean", moments, dtype)
    wide_ND = scaling.transform(x_ND).to(dtype)
    stage = GreedyPlusPlus(Sample(wide_ND, weights_N), n_clusters, seed, trials=n_local_trials)
    index = 0
    while stage.step_(index):
        index += 1
    indices = stage.tensors()["chosen_K"]
    chosen_KD = x_ND[indices]
    if chosen_KD.dtype == torch.bfloat16:
        chosen_KD = chosen_KD.float()
    return chosen_KD.numpy(), indices.numpy()


def _all_rows(source: Source) -> np.ndarray:
    """The rows of `source` as they are stored."""
    spec = source.spec
    rows_ND = np.empty((spec.n_rows, spec.n_features), spec.storage)
    for part in RowRange(0, spec.n_rows).split(spec.block_rows):
        source.read(part, rows_ND[part.start : part.stop])
    return rows_ND
