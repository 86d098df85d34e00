"""Mini-batch k-means as a scikit-learn estimator."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

from streamkm.errors import ParameterError
from streamkm.estimators.base import BaseKMeans
from streamkm.estimators.inputs import open_rows
from streamkm.estimators.parameters import check_parameters, draw_seed
from streamkm.runs.fit import seed
from streamkm.runs.partial_fit import update_once

if TYPE_CHECKING:
    import os

    from streamkm.runs.storage.model import Model

__all__ = ["MiniBatchKMeans"]


class MiniBatchKMeans(BaseKMeans):
    """Mini-batch k-means in one pass over the data, for arrays of any size.

    The centroids move after every batch: each is the mean of all rows that it ever got.
    `partial_fit` takes the steps of `sklearn.cluster.MiniBatchKMeans`, to rounding.

    Parameters
    ----------
    n_clusters : int, default=8
        Number of clusters, K.
    init : {"auto", "k-means++", "k-means||", "random"}, array, path or callable, default="auto"
        How the first centroids are found: the named ones on a sample of rows from all over
        the data (``"k-means||"``: on all of it), ``"auto"`` by k-means++, local search and
        Lloyd's algorithm; or an array of K x D centroids in the space of the input, the path of
        one that ends in ``.npy``, or, for arrays in memory, a callable
        ``init(X, n_clusters, random_state)`` that returns one.
    max_iter : int, default=1
        Passes over the data, at most; each reads every row once, in a random order.
        (scikit-learn draws rows with replacement, and by default stops after about 2.)
    batch_size : "auto" or int, default="auto"
        Rows of a batch, at most; ``auto`` is from 1024 to 16384 by the array's shape.
    verbose : bool or int, default=0
        Whether to say on stderr what is done, with a bar on a terminal.
    compute_labels : bool or "auto", default="auto"
        Whether `fit` ends with a pass for ``labels_`` and the ``inertia_`` that goes with
        them. ``auto``: for what is in memory, but not for what is on disk.
    random_state : int, RandomState or None, default=None
        An integer is the seed, and the result the same each time; others are drawn from.
    tol : float, default=0.0
        Stop when the squared shift of the centroids in a batch is at most `tol` times the
        mean variance of the features; 0 is off.
    max_no_improvement : int or None, default=None
        Stop when the smoothed inertia has not improved for this number of batches.
    init_size : None
        How many rows seeding looks at follows from the shape of the data and `n_clusters`.
    n_init : "auto" or int, default="auto"
        How many seedings are made, or how many times a callable `init` is called; the fit
        goes on from the best. ``auto`` is 1.
    metric : {"euclidean", "cosine"}, default="euclidean"
        ``cosine`` is spherical k-means: rows and centroids have unit length. A row of zeros
        has no direction: it gets the label 0, is at distance 1 and moves nothing.
    scale : {"none", "zscore", "minmax", "l2"}, default="none"
        What is done to the features before distances are taken; zscore and minmax take one
        more pass for the statistics. ``cluster_centers_`` are in the space of the input.
    nan : {"error", "drop"}, default="error"
        What to do about rows with NaN or infinity: stop, or leave them out (label -1).
    device : str, default="auto"
        ``auto`` (CUDA if there is one), ``cpu``, ``cuda`` or ``cuda:1``.
    max_host_memory : int or str, default=None
        Bytes, or such as ``"8GiB"``, for everything but X itself and the results; 8 GiB or
        half the machine's if None.
    run_dir : path, default=None
        Write a run folder there: checkpoints, metrics, the model. It must not exist, unless
        `resume`, and needs an integer `random_state`. SIGINT and SIGTERM then save a
        checkpoint before `fit` raises.
        `partial_fit` writes none.
    resume : bool, default=False
        Go on from the newest checkpoint in `run_dir`, or start. Needs the same data and
        parameters.

    Attributes
    ----------
    cluster_centers_ : ndarray of shape (n_clusters, n_features)
        In the space of the input (with cosine and l2 among the unit vectors), float64 for
        float64 and wide integers, else float32.
    labels_ : ndarray of shape (n_samples,), int32
        The nearest of them for each row; see `compute_labels`.
    inertia_ : float
        Sum of the squared distances of rows to their nearest centroids; without ``labels_``
        that of the closing pass's clusters about the centroids as it moved them, which is no
        less, and after `partial_fit`, or without a closing pass, that of rows as they came.
    counts_ : ndarray of shape (n_clusters,), int64
        Rows that each centroid is the mean of.
    n_iter_ : int
        Passes that `fit` made, the closing one not counted.
    n_steps_ : int
        Batches that moved the centroids.
    n_features_in_ : int
        Number of features, D.
    feature_names_in_ : ndarray of shape (n_features_in_,)
        Their names, if X had any.

    Notes
    -----
    Better than scikit-learn's on purpose: counts are integers and sums float64 whatever the
    type of the data (float32 counts stand still at 2^24); labels are the true nearest
    centroids, also where float32 cannot tell; a cluster without rows is put on a row drawn
    by its squared distance, so that there are fewer than K only if the data has no more
    distinct rows (`ConvergenceWarning`); float16, bfloat16 and integers are not widened in
    memory. Sparse input is refused: make it dense.

    scikit-learn's ``reassignment_ratio`` is not here: it moves clusters that are small,
    which may save more inertia than all others together. Only those to which a whole pass
    of `fit` brought no row move.

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
        max_no_improvement: int | None = None,
        init_size: None = None,
        n_init: int | str = "auto",
        metric: str = "euclidean",
        scale: str = "none",
        nan: str = "error",
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
        self.init_size = init_size
        self.n_init = n_init
        self.metric = metric
        self.scale = scale
        self.nan = nan
        self.device = device
        self.max_host_memory = max_host_memory
        self.run_dir = run_dir
        self.resume = resume

    def partial_fit(self, X: Any, y: None = None, sample_weight: Any = None) -> Self:
        """Update the centroids once, by all rows of `X`.

        The first call on an estimator that is not fitted picks the first centroids among
        its rows; after `fit` the counts go on from there. A centroid that gets no row stays
        where it is: its rows may be still to come.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features), path, Zarr array or Source
            As `fit` takes it.
        y : Ignored
            Not used, present for scikit-learn's sake.
        sample_weight : array-like of shape (n_samples,), default=None
            As `fit` takes it.

        Returns
        -------
        self

        Raises
        ------
        ValueError, TypeError
            As `fit`. An error leaves the estimator as it was.
        """
        is_first = not hasattr(self, "cluster_centers_")
        # One that was loaded from a run may have begun from an array that it does not keep.
        check_parameters(self, with_init=is_first)
        with open_rows(self, X, reset=is_first) as rows:
            execution = self._execution(rows)
            weights = rows.weights(sample_weight)
            if is_first:
                self._check_can_start()
                self._check_n_rows(rows)
                self._seed = draw_seed(self.random_state)
                given_KD = self._given_centroids(rows, execution, weights)
                config = self._config(is_given=given_KD is not None)
                model = seed(
                    rows.source, config, execution, given_KD=given_KD, weights=weights, quiet=True
                )
            else:
                model = self._model
            self._adopt(update_once(model, rows.source, execution, nan=self.nan, weights=weights))
            self._label(rows, execution, weights)
        return self

    def _check_can_start(self) -> None:
        if self.scale in ("zscore", "minmax"):
            raise ParameterError(
                f"scale={self.scale!r} needs the statistics of all rows, which partial_fit does "
                "not see: call fit first, or use scale='none' behind a StandardScaler"
            )

    def _settings(self) -> dict[str, Any]:
        patience = self.max_no_improvement
        return {
            "algorithm": "minibatch",
            "batch_rows": None if self.batch_size == "auto" else int(self.batch_size),
            "max_no_improvement": patience if patience is None else int(patience),
            "closing_pass": self.compute_labels is not False,
        }

    @classmethod
    def _parameters(cls, settings: dict[str, Any]) -> dict[str, Any]:
        return super()._parameters(settings) | {
            "batch_size": settings["batch_rows"],
            "max_no_improvement": settings["max_no_improvement"],
            "compute_labels": "auto" if settings["closing_pass"] else False,
        }

    def _adopt(self, model: Model) -> None:
        super()._adopt(model)
        self.n_steps_ = model.figures["n_steps"]
