"""Mini-batch k-means as a scikit-learn estimator."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

from streamkm.errors import ParameterError
from streamkm.estimators.base import BaseKMeans
from streamkm.estimators.batches import fit_batches, is_batches, update_by_batches
from streamkm.estimators.inputs import open_rows
from streamkm.estimators.parameters import (
    bounds_of,
    check_parameters,
    check_unbounded,
    draw_seed,
    warn_of_no_effect,
)
from streamkm.estimators.verbose import StepLines
from streamkm.kernels import torch_alone_after_fork
from streamkm.runs.fit import seed
from streamkm.runs.partial_fit import update_once

if TYPE_CHECKING:
    import os

    from streamkm.runs.storage.model import Model

__all__ = ["MiniBatchKMeans"]

#: `max_no_improvement` where several passes are asked for and nothing else is: scikit-learn's.
PATIENCE = 10


class MiniBatchKMeans(BaseKMeans):
    """Mini-batch k-means in one pass over the data, for arrays of any size.

    The centroids move after every batch. In `fit` each is the mean of the latest rows of its
    cluster, of few at first and of more and more along the run (see `rate`). `partial_fit` takes
    the steps of `sklearn.cluster.MiniBatchKMeans`, to rounding.

    Parameters
    ----------
    n_clusters : int, default=8
        Number of clusters, K.
    init : {"auto", "k-means++", "k-means||", "random"}, array, path or callable, default="auto"
        Where the centroids begin. ``"k-means++"`` and ``"random"`` choose from a sample of rows
        from all over the data, ``"k-means||"`` from all rows. ``"auto"`` runs k-means++, breathing
        k-means and Lloyd's algorithm on such a sample, or grows a tree of clusters from 64 clusters
        on. Or an array of K x D centroids in the space of the input, the path of a ``.npy`` file of
        them, or, if X is in memory, a callable ``init(X, n_clusters, random_state)`` that returns
        them.
    max_iter : int, default=1
        Passes over the data, at most. A pass reads every row once, in random order.
        (scikit-learn draws rows with replacement, and by default stops after about 2 passes.)
    batch_size : "auto" or int, default="auto"
        Rows of a batch, at most. ``"auto"`` is 1024 to 16384, by the shape of X.
    verbose : bool or int, default=0
        Whether to report progress: on stderr as the command line does, on a terminal with a bar;
        on stdout in scikit-learn's words, a line for each batch.
    compute_labels : bool or "auto", default="auto"
        Whether `fit` ends with a pass for ``labels_`` and their ``inertia_``. ``"auto"`` makes the
        pass if X is in memory, but not if it is on disk. False also leaves out the closing pass.
    random_state : int, RandomState or None, default=None
        An integer is the seed and gives the same result each time. From anything else a seed is
        drawn.
    tol : float, default=0.0
        Stop when the squared shift of the centroids in a batch is at most `tol` times the mean
        variance of the features. 0 is off.
    max_no_improvement : int, "auto" or None, default="auto"
        Stop when the smoothed inertia has not improved for this number of batches. None is off.
        ``"auto"`` is scikit-learn's 10 if `max_iter` is more than 1, else off: one pass is made to
        its end.
    min_gain : float, default=1e-4
        Stop when a pass lowered the inertia per row by at most this share of it, with each batch
        scored before it moves the centroids (Linde, Buzo & Gray 1980). 0 is off. Passes in which
        centroids forget rows, or clusters were put on other rows, do not stop a fit: with the rate
        ``"annealed"`` 12 passes are made at least.
    rate : {"annealed", "mean"}, default="annealed"
        How many rows a centroid is the mean of during `fit`. ``"annealed"``: the latest 8 at
        first, and in the end 4 times the square root of the rows that an average cluster gets in
        all passes, or in 10 if there are more. A centroid of the seeding counts as 8 rows. This
        ends lower than ``"mean"``: all rows so far, as in scikit-learn and in `partial_fit`.
    init_size : int or None, default=None
        Without effect, with a warning: the shape of X and `n_clusters` decide how many rows seeding
        looks at.
    n_init : "auto" or int, default="auto"
        Number of seedings, or of calls of a callable `init`. The fit goes on from the best.
        ``"auto"`` is 3 for ``"random"`` and callables, else 1.
    reassignment_ratio : float, default=0.0
        Without effect, with a warning if it is more than 0: a small cluster may save more inertia
        than all others together, so only one that a whole pass of `fit` brought no row is moved.
    metric : {"euclidean", "cosine"}, default="euclidean"
        ``"cosine"`` is spherical k-means: rows and centroids have unit length. A row of zeros has
        no direction: it gets the label 0, has the distance 1, and moves no centroid.
    scale : {"none", "zscore", "minmax", "l2"}, default="none"
        Scaling before distances are taken. ``"zscore"`` and ``"minmax"`` scale each feature and
        take one more pass for its statistics. ``"l2"`` divides each row by its length.
    nan : {"error", "drop"}, default="error"
        What to do with rows that hold NaN or infinity: ``"error"`` stops, ``"drop"`` leaves them
        out and labels them -1.
    max_size : int or str, default=None
        Rows of a cluster at most, or a multiple of the mean size, such as ``"1.2x"``. It is kept to
        the row: some rows then get the label of another centroid than the nearest, and `predict`
        of the very X that was fitted gives these labels again. Of other rows sizes are not
        promised. It takes up to 25 more passes.
    min_size : int or str, default=None
        Rows of a cluster at least, in the same way, such as ``"0.5x"``.
    device : str, default="auto"
        ``"auto"`` (CUDA if there is a GPU), ``"cpu"``, ``"cuda"``, or one GPU of several, such as
        ``"cuda:1"``.
    max_host_memory : int or str, default=None
        Limit of the host memory for everything but X and the results, in bytes or such as
        ``"8GiB"``. None is 8 GiB, or half of what this process may use if that is less.
    run_dir : path, default=None
        Folder to write: checkpoints, metrics and the model. It must not exist, unless `resume` is
        true, and it needs an integer `random_state`. Signals that ask for an end (see `fit`)
        then save a checkpoint before `fit` raises. `partial_fit` writes nothing.
    resume : bool, default=False
        Continue from the newest checkpoint in `run_dir`, or start if there is none. Data and
        parameters must be the same.

    Attributes
    ----------
    cluster_centers_ : ndarray of shape (n_clusters, n_features)
        Centroids in the space of the input; with cosine and l2 they lie among the unit vectors.
        float64 for data of float64 and of integers of 32 bits or more, else float32. It may be
        set or changed in place: all methods but `fit` go by what it is.
    labels_ : ndarray of shape (n_samples,), int32
        Index of the nearest centroid of each row; only with `compute_labels`.
    inertia_ : float
        Sum of the squared distances of rows to their nearest centroids, in the scaled space, each
        times its weight. Without ``labels_`` it is an upper bound: the distances of rows to the
        centroids that they were assigned to, after the closing pass has moved these. Without
        ``labels_`` and closing pass it is the sum over the last pass, or the last `partial_fit`,
        with each batch scored before it moves the centroids.
    counts_ : ndarray of shape (n_clusters,), int64
        Number of rows that each centroid is the mean of. It may be set, like `cluster_centers_`.
    n_iter_ : int
        Passes of `fit` over the data, without the closing pass.
    stop_reason_ : str
        Why `fit` made no more passes, in the words of the run's log. Runs of older versions say
        that it is not recorded.
    n_steps_ : int
        Number of updates, each by one batch or one `partial_fit`.
    n_features_in_ : int
        Number of features, D.
    feature_names_in_ : ndarray of shape (n_features_in_,)
        Names of the features, if X has any.

    Notes
    -----
    These differences from scikit-learn are on purpose:

    - Counts are integers and sums float64, whatever the type of the data. (A float32 count stands
      still at 2^24.)
    - Labels are the true nearest centroids, even if float32 cannot decide.
    - A cluster without rows is put on a row that is drawn by its squared distance. A
      `ConvergenceWarning` tells if fewer than K clusters have rows in the end: X has fewer
      distinct rows, or the last update left a centroid that is nearest to none.
    - float16, bfloat16 and integers are not widened in memory.
    - Sparse rows are made dense a block at a time. Batches take them in another order than those of
      the same matrix dense, whose blocks are of another size.

    If torch.distributed is initialised, its processes share the work of `fit`, `fit_predict`,
    `predict` and `score`. All of them call the method, with the same parameters and the same X, as
    an array in each or as a path that each can read. Each gets what one process alone would get, to
    the bit. Without an integer `random_state` process 0 draws the seed. Only process 0 writes to
    `run_dir`. A call that another process does not make fails after 60 seconds. `transform`,
    `partial_fit` and `fit` from an iterator of batches are not shared.

    Examples
    --------
    >>> import numpy as np
    >>> from streamkm import MiniBatchKMeans
    >>> x = np.array([[1.0, 2], [1, 4], [1, 0], [10, 2], [10, 4], [10, 0]])
    >>> kmeans = MiniBatchKMeans(n_clusters=2, init=x[[0, 3]])
    >>> kmeans.partial_fit(x[:4]).partial_fit(x[4:]).cluster_centers_
    array([[ 1.,  2.],
           [10.,  2.]])
    >>> kmeans.predict([[0.0, 0], [12, 3]])
    array([0, 1], dtype=int32)
    """

    def __init__(
        self,
        n_clusters: int = 8,
        *,
        init: Any = "auto",
        max_iter: int = 1,
        batch_size: int | str = "auto",
        verbose: int = 0,
        compute_labels: bool | str = "auto",
        random_state: Any = None,
        tol: float = 0.0,
        max_no_improvement: int | str | None = "auto",
        min_gain: float = 1e-4,
        rate: str = "annealed",
        init_size: int | None = None,
        n_init: int | str = "auto",
        reassignment_ratio: float = 0.0,
        metric: str = "euclidean",
        scale: str = "none",
        nan: str = "error",
        max_size: int | str | None = None,
        min_size: int | str | None = None,
        device: str = "auto",
        max_host_memory: int | str | None = None,
        run_dir: str | os.PathLike[str] | None = None,
        resume: bool = False,
    ) -> None:
        self.n_clusters = n_clusters
        self.init = init
        self.max_iter = max_iter
        self.batch_size = batch_size
        self.verbose = verbose
        self.compute_labels = compute_labels
        self.random_state = random_state
        self.tol = tol
        self.max_no_improvement = max_no_improvement
        self.min_gain = min_gain
        self.rate = rate
        self.init_size = init_size
        self.n_init = n_init
        self.reassignment_ratio = reassignment_ratio
        self.metric = metric
        self.scale = scale
        self.nan = nan
        self.max_size = max_size
        self.min_size = min_size
        self.device = device
        self.max_host_memory = max_host_memory
        self.run_dir = run_dir
        self.resume = resume

    def fit(self, X: Any, y: None = None, sample_weight: Any = None) -> Self:
        """Cluster the rows of `X`.

        Parameters
        ----------
        X : array-like or sparse matrix of shape (n_samples, n_features), path or iterable
            As in `KMeans.fit`; or an iterator of batches, such as a generator or a ``DataLoader``
            of PyTorch: arrays or tensors of shape (n_rows, n_features). Each is one update, as by
            `partial_fit`, in each of `max_iter` passes. The first centroids are chosen from the
            first batch alone. There are no ``labels_`` and no closing pass, `tol`,
            `max_no_improvement` and `min_gain` stop nothing, and scaling by statistics is refused.
        y : Ignored
            Not used, present for scikit-learn's sake.
        sample_weight : array-like of shape (n_samples,), float or path, default=None
            As in `KMeans.fit`; not for batches.

        Returns
        -------
        self
            The fitted estimator. The errors are those of `KMeans.fit`.
        """
        if is_batches(X):
            fit_batches(self, X, sample_weight)
            return self
        return super().fit(X, y, sample_weight)

    @torch_alone_after_fork()
    def partial_fit(self, X: Any, y: None = None, sample_weight: Any = None) -> Self:
        """Update the centroids once, by all rows of `X`.

        If the estimator is not fitted, the first centroids are chosen among these rows. After
        `fit` the counts continue from those of the fit. A centroid that gets no row stays where
        it is, because its rows may be still to come.

        Parameters
        ----------
        X : array-like or sparse matrix of shape (n_samples, n_features), path, Zarr array or Source
            As in `fit`. Of an iterator of batches, each batch is one update.
        y : Ignored
            Not used, present for scikit-learn's sake.
        sample_weight : array-like of shape (n_samples,), float or path, default=None
            As in `fit`.

        Returns
        -------
        self
            The fitted estimator.

        Raises
        ------
        ValueError, TypeError
            As in `fit`. An error leaves the estimator as it was.
        """
        if is_batches(X):
            update_by_batches(self, X, sample_weight)
            return self
        is_first = not hasattr(self, "cluster_centers_")
        # An estimator from load_run may have begun from an array, which no parameter holds.
        check_parameters(self, with_init=is_first)
        check_unbounded(self)
        with open_rows(self, X, reset=is_first) as rows:
            execution = self._execution(rows)
            weights = rows.weights(sample_weight)
            if is_first:
                warn_of_no_effect(self)
                self._check_can_start()
                self._check_n_rows(rows)
                self._seed = draw_seed(self.random_state)
                self._n_init = self._seedings()
                given_KD = self._given_centroids(rows, execution, weights, self._n_init)
                config = self._config(is_given=given_KD is not None, n_init=self._n_init)
                model = seed(
                    rows.source, config, execution, given_KD=given_KD, weights=weights, quiet=True
                )
            else:
                self._check_counts()
                model = self._current_model()
            self._adopt(update_once(model, rows.source, execution, nan=self.nan, weights=weights))
            self._label(rows, execution, weights)
        self._give_like(X)
        return self

    def _check_counts(self) -> None:
        """Refuse centroids of another number than the counts, by which they would move."""
        n_counts = len(getattr(self, "counts_", self.cluster_centers_))
        if n_counts != len(self.cluster_centers_):
            raise ParameterError(
                f"cluster_centers_ has {len(self.cluster_centers_)} rows and counts_ {n_counts}: "
                "set counts_ as well, to 0 for centroids that go to the mean of their first rows"
            )

    def _check_can_start(self) -> None:
        if self.scale in ("zscore", "minmax"):
            raise ParameterError(
                f"scale={self.scale!r} needs the statistics of all rows, which partial_fit does "
                "not see: call fit first, or use scale='none' behind a StandardScaler"
            )

    _default_n_init = 3

    def _lines(self) -> StepLines:
        return StepLines()

    def _settings(self) -> dict[str, Any]:
        patience = self.max_no_improvement
        if patience == "auto":
            patience = PATIENCE if self.max_iter > 1 else None
        return {
            "algorithm": "minibatch",
            "batch_rows": None if self.batch_size == "auto" else int(self.batch_size),
            "max_no_improvement": patience if patience is None else int(patience),
            "min_gain": float(self.min_gain),
            "rate": self.rate,
            "closing_pass": self.compute_labels is not False,
            **bounds_of(self),
        }

    @classmethod
    def _parameters(cls, settings: dict[str, Any]) -> dict[str, Any]:
        return super()._parameters(settings) | {
            "batch_size": settings["batch_rows"],
            "max_no_improvement": settings["max_no_improvement"],
            "min_gain": settings.get("min_gain") or 0.0,
            "rate": settings.get("rate") or "mean",
            "compute_labels": "auto" if settings["closing_pass"] else False,
        }

    def _adopt(self, model: Model) -> None:
        super()._adopt(model)
        self.n_steps_ = model.figures["n_steps"]
