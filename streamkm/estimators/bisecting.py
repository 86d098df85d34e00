"""Bisecting k-means: clusters are split in two until there are enough."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from streamkm.errors import ParameterError
from streamkm.estimators.display import Clusterer
from streamkm.estimators.inputs import InputRows, as_numpy, nan_is_refused, open_rows
from streamkm.estimators.kmeans import KMeans
from streamkm.estimators.parameters import check_parameters, draw_seed, warn_of_no_effect
from streamkm.sources import RowRange

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["BisectingKMeans"]


@dataclass
class _Node:
    """A cluster of the hierarchy."""

    rows: np.ndarray
    """Numbers of its rows in the fit; empty afterwards."""
    center: np.ndarray
    inertia: float
    label: int = -1
    split: KMeans | None = None
    """What tells its two parts apart; None for a leaf."""
    parts: tuple[_Node, ...] = ()

    def leaves(self) -> Iterator[_Node]:
        """The clusters that are not split, from left to right."""
        if not self.parts:
            yield self
        for part in self.parts:
            yield from part.leaves()


class BisectingKMeans(Clusterer):
    """k-means by splitting one cluster in two, again and again, for rows in memory.

    It has the interface of `sklearn.cluster.BisectingKMeans`. Each split is a fit of `KMeans`
    with two clusters. K clusters take about log2 K passes over the rows for one of `KMeans`, each
    against two centroids, so it is quick where there are many clusters. Its inertia is higher.

    Parameters
    ----------
    n_clusters : int, default=8
        Number of clusters, K.
    init : {"random", "k-means++", "k-means||", "auto"} or callable, default="random"
        Where the two centroids of a split begin, as in `KMeans`.
    n_init : int, default=1
        Number of seedings of each split, or of calls of a callable `init`.
    random_state : int, RandomState or None, default=None
        An integer is the seed and gives the same result each time.
    max_iter : int, default=300
        Passes over the rows of a split, at most.
    verbose : bool or int, default=0
        Whether to report the progress of each split, as `KMeans` does.
    tol : float, default=1e-4
        Where a split stops, as in `KMeans`.
    copy_x : bool, default=True
        Without effect: X is never written to.
    algorithm : {"lloyd", "elkan", "auto", "full"}, default="lloyd"
        It is Lloyd's in any case. ``"elkan"``, which finds the same clusters, gets a warning.
    bisecting_strategy : {"biggest_inertia", "largest_cluster"}, default="biggest_inertia"
        Which cluster is split next: the one with the greatest inertia, or with the most rows.
    device : str, default="auto"
        As in `KMeans`.
    max_host_memory : int or str, default=None
        As in `KMeans`. The rows of the cluster that is split are copied beside it.

    Attributes
    ----------
    cluster_centers_ : ndarray of shape (n_clusters, n_features)
        Means of the clusters.
    labels_ : ndarray of shape (n_samples,), int32
        The cluster of each row: down the hierarchy, to the nearer one of two centroids each time.
    inertia_ : float
        Sum of the squared distances of rows to the centroids of their clusters, each times its
        weight.
    n_features_in_ : int
        Number of features, D.
    feature_names_in_ : ndarray of shape (n_features_in_,)
        Names of the features, if X has any.

    Examples
    --------
    >>> import numpy as np
    >>> from streamkm import BisectingKMeans
    >>> x = np.array([[1.0, 1], [3, 1], [2, 1], [10, 0], [10, 1], [10, 2], [10, 9], [10, 10]])
    >>> kmeans = BisectingKMeans(n_clusters=3, random_state=0).fit(x)
    >>> sorted(kmeans.cluster_centers_.tolist())
    [[2.0, 1.0], [10.0, 1.0], [10.0, 9.5]]
    """

    def __init__(
        self,
        n_clusters: int = 8,
        *,
        init: Any = "random",
        n_init: int = 1,
        random_state: Any = None,
        max_iter: int = 300,
        verbose: int = 0,
        tol: float = 1e-4,
        copy_x: bool = True,
        algorithm: str = "lloyd",
        bisecting_strategy: str = "biggest_inertia",
        device: str = "auto",
        max_host_memory: int | str | None = None,
    ) -> None:
        self.n_clusters = n_clusters
        self.init = init
        self.n_init = n_init
        self.random_state = random_state
        self.max_iter = max_iter
        self.verbose = verbose
        self.tol = tol
        self.copy_x = copy_x
        self.algorithm = algorithm
        self.bisecting_strategy = bisecting_strategy
        self.device = device
        self.max_host_memory = max_host_memory

    # ---- scikit-learn's methods ---------------------------------------------

    @nan_is_refused()
    def fit(self, X: Any, y: None = None, sample_weight: Any = None) -> Self:
        """Cluster the rows of `X`.

        Parameters
        ----------
        X : array-like or sparse matrix of shape (n_samples, n_features)
            Rows in memory: each split picks out its own. (For rows on disk there is `KMeans`.)
        y : Ignored
            Not used, present for scikit-learn's sake.
        sample_weight : array-like of shape (n_samples,) or float, default=None
            As in `KMeans.fit`.

        Returns
        -------
        self
            The fitted estimator.

        Raises
        ------
        ValueError
            If a parameter or the data cannot be used; the message names a remedy.
        """
        check_parameters(self)
        if not (isinstance(self.init, str) or callable(self.init)):
            raise ParameterError(
                f"init must be a name or a callable, which each split can use; it is {self.init!r}"
            )
        warn_of_no_effect(self)
        with open_rows(self, _as_array(X), reset=True) as opened:
            x = _in_memory(opened)
            weights_N, n_usable = None, x.shape[0]
            if (weights := opened.weights(sample_weight)) is not None:
                n_usable = weights.n_positive
                weights_N = np.empty(x.shape[0])
                weights.read(RowRange(0, x.shape[0]), weights_N)
        if n_usable < self.n_clusters:
            raise ParameterError(f"n_samples={n_usable} should be >= n_clusters={self.n_clusters}.")
        generator = check_random_state(self.random_state)
        # Also finds rows that cannot be used, by their numbers in X.
        whole = KMeans(1, init="random", n_init=1, random_state=0, **self._execution())
        whole.fit(x, sample_weight=weights_N)
        root = _Node(np.arange(x.shape[0]), whole.cluster_centers_[0], whole.inertia_)
        for _ in range(self.n_clusters - 1):
            self._split(self._next(root, weights_N), x, weights_N, generator)
        self._adopt(root)
        return self

    @nan_is_refused()
    def predict(self, X: Any) -> np.ndarray:
        """Go down the hierarchy with every row of `X`, to the nearer of two centroids each time.

        So a row may get another cluster than that of the nearest of all `cluster_centers_`, as in
        scikit-learn.

        Parameters
        ----------
        X : array-like or sparse matrix of shape (n_samples, n_features)
            Rows in memory.

        Returns
        -------
        labels : ndarray of shape (n_samples,), int32
            Indices of clusters. The rows of the fit get `labels_`.

        Raises
        ------
        ValueError
            If the data cannot be used, or `cluster_centers_` were set: the hierarchy has no others.
        """
        check_is_fitted(self, "cluster_centers_")
        leaves = [leaf.center for leaf in self._root.leaves()]
        if not np.array_equal(self.cluster_centers_, leaves):
            raise ParameterError(
                "cluster_centers_ are not those of the hierarchy, by which this estimator "
                "predicts: set them on a KMeans, which predicts by the nearest"
            )
        with open_rows(self, _as_array(X), reset=False) as opened:
            x = _in_memory(opened)
        labels_N = np.empty(x.shape[0], np.int32)
        left = [(self._root, np.arange(x.shape[0]))]
        while left:
            node, rows = left.pop()
            if node.split is None or not len(rows):
                labels_N[rows] = node.label
                continue
            sides = node.split.predict(x[rows])
            left += [(part, rows[sides == side]) for side, part in enumerate(node.parts)]
        return labels_N

    @nan_is_refused()
    def transform(self, X: Any) -> np.ndarray:
        """Compute the Euclidean distance of every row of `X` to every centroid.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features), sparse matrix, path, Zarr array or Source
            As in `KMeans.transform`.

        Returns
        -------
        distances : ndarray of shape (n_samples, n_clusters)
            As in `KMeans.transform`.
        """
        return self._flat().transform(X)

    @nan_is_refused()
    def score(self, X: Any, y: None = None, sample_weight: Any = None) -> float:
        """Compute minus the inertia of the rows of `X` about their nearest centroids.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features), sparse matrix, path, Zarr array or Source
            As in `KMeans.score`.
        y : Ignored
            Not used, present for scikit-learn's sake.
        sample_weight : array-like of shape (n_samples,), float or path, default=None
            As in `KMeans.score`.

        Returns
        -------
        score : float
            As in `KMeans.score`.
        """
        return self._flat().score(X, sample_weight=sample_weight)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags

    # ---- parts of fitting ---------------------------------------------------

    @property
    def _n_features_out(self) -> int:
        """The number of clusters, where scikit-learn's mixin for names of features reads it."""
        return len(self.cluster_centers_)

    def _execution(self) -> dict[str, Any]:
        return {"device": self.device, "max_host_memory": self.max_host_memory}

    def _next(self, root: _Node, weights_N: np.ndarray | None) -> _Node:
        """The leaf to split: there is always one of two rows that count."""
        leaves = [
            leaf
            for leaf in root.leaves()
            if (len(leaf.rows) if weights_N is None else (weights_N[leaf.rows] > 0).sum()) > 1
        ]
        if self.bisecting_strategy == "largest_cluster":
            return max(leaves, key=lambda leaf: len(leaf.rows))
        return max(leaves, key=lambda leaf: leaf.inertia)

    def _split(self, node: _Node, x: Any, weights_N: np.ndarray | None, generator: Any) -> None:
        """Split `node` in two."""
        kmeans = KMeans(
            2,
            init=self.init,
            n_init=self.n_init,
            max_iter=self.max_iter,
            tol=self.tol,
            verbose=self.verbose,
            random_state=draw_seed(generator),
            **self._execution(),
        )
        with warnings.catch_warnings():
            # Equal rows leave one part empty, of which the whole fit warns once.
            warnings.simplefilter("ignore", ConvergenceWarning)
            kmeans.fit(x[node.rows], sample_weight=_part(weights_N, node.rows))
        parts = []
        for side, center in enumerate(kmeans.cluster_centers_):
            rows, inertia = node.rows[kmeans.labels_ == side], 0.0
            if len(rows):
                inertia = -kmeans.score(x[rows], sample_weight=_part(weights_N, rows))
            parts.append(_Node(rows, center, inertia))
        node.split, node.parts, node.rows = kmeans, tuple(parts), node.rows[:0]
        del kmeans.labels_

    def _adopt(self, root: _Node) -> None:
        """Take the fitted attributes from the hierarchy."""
        self._root, leaves = root, list(root.leaves())
        self.labels_ = np.empty(sum(len(leaf.rows) for leaf in leaves), np.int32)
        n_found = 0
        for label, leaf in enumerate(leaves):
            n_found += len(leaf.rows) > 0
            self.labels_[leaf.rows] = leaf.label = label
            leaf.rows = leaf.rows[:0]
        self.cluster_centers_ = np.stack([leaf.center for leaf in leaves])
        self.inertia_ = sum(leaf.inertia for leaf in leaves)
        if n_found < self.n_clusters:
            warnings.warn(
                f"Number of distinct clusters ({n_found}) found smaller than n_clusters "
                f"({self.n_clusters}). Possibly due to duplicate points in X.",
                ConvergenceWarning,
                stacklevel=3,
            )

    def _flat(self) -> KMeans:
        """The same centroids without their hierarchy."""
        check_is_fitted(self, "cluster_centers_")
        flat = KMeans(len(self.cluster_centers_), **self._execution())
        for name in ("cluster_centers_", "n_features_in_", "feature_names_in_"):
            if hasattr(self, name):
                setattr(flat, name, getattr(self, name))
        return flat


def _as_array(X: Any) -> Any:
    """`X`, but a tensor as an array, and a map of a file as the plain array that it also is."""
    if isinstance(X, torch.Tensor) and X.dtype != torch.bfloat16:
        return as_numpy(X)
    return X.view(np.ndarray) if isinstance(X, np.memmap) else X


def _in_memory(rows: InputRows) -> Any:
    """The array or CSR matrix of `rows`."""
    if rows.array is None:
        raise ParameterError(
            "BisectingKMeans picks the rows of each cluster out of a NumPy array or a CSR matrix "
            "in memory, which X is not: read it into one, or use KMeans, which streams it"
        )
    return rows.array


def _part(weights_N: np.ndarray | None, rows: np.ndarray) -> np.ndarray | None:
    return None if weights_N is None else weights_N[rows]
