"""Lloyd's algorithm as a scikit-learn estimator."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sklearn.utils import check_random_state

from streamkm.estimators.base import BaseKMeans
from streamkm.estimators.parameters import bounds_of
from streamkm.estimators.verbose import PassLines

if TYPE_CHECKING:
    import os

    from streamkm.config import ExecutionConfig
    from streamkm.estimators.inputs import InputRows
    from streamkm.runs.storage.model import Model
    from streamkm.sources import Weights

__all__ = ["KMeans"]

#: Seeds of fits beside the first are below it.
MOST_SEED = 2**31 - 1


class KMeans(BaseKMeans):
    """k-means by Lloyd's algorithm, for arrays of any size.

    The centroids move after each pass over the data, until they stand still. If you can afford
    several passes, the result is better than that of `MiniBatchKMeans`. From the same first
    centroids it takes the steps of `sklearn.cluster.KMeans`, to rounding.

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
    n_init : "auto" or int, default="auto"
        Number of seedings. The fit goes on from the best. If X is in memory and there is no
        `run_dir`, ``"random"`` and a callable make this number of whole fits, of which the best is
        kept, as scikit-learn does for all. ``"auto"`` is 10 for these two, else 1.
    max_iter : int, default=300
        Passes over the data, at most.
    tol : float, default=1e-4
        Stop when the squared shift of the centroids in a pass is at most `tol` times the mean
        variance of the features. 0 stops when no centroid moves any more.
    verbose : bool or int, default=0
        Whether to report progress: on stderr as the command line does, on a terminal with a bar;
        on stdout in scikit-learn's words, a line for each pass.
    random_state : int, RandomState or None, default=None
        An integer is the seed and gives the same result each time. From anything else a seed is
        drawn.
    copy_x : bool, default=True
        Without effect: X is never written to, and never copied as a whole.
    algorithm : {"lloyd", "elkan", "auto", "full"}, default="lloyd"
        It is Lloyd's in any case. ``"elkan"``, which finds the same clusters, gets a warning.
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
    compute_labels : bool or "auto", default="auto"
        Whether `fit` ends with a pass for ``labels_`` and their ``inertia_``. ``"auto"`` makes the
        pass if X is in memory, but not if it is on disk.
    device : str, default="auto"
        ``"auto"`` (CUDA if there is a GPU), ``"cpu"``, ``"cuda"``, or one GPU of several, such as
        ``"cuda:1"``.
    max_host_memory : int or str, default=None
        Limit of the host memory for everything but X and the results, in bytes or such as
        ``"8GiB"``. None is 8 GiB, or half of what this process may use if that is less.
    run_dir : path, default=None
        Folder to write: checkpoints, metrics and the model. It must not exist, unless `resume` is
        true, and it needs an integer `random_state`. Signals that ask for an end (see `fit`)
        then save a checkpoint before `fit` raises.
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
        centroids that they were assigned to, after the last pass has moved these.
    counts_ : ndarray of shape (n_clusters,), int64
        Number of rows that each centroid is the mean of. It may be set, like `cluster_centers_`.
    n_iter_ : int
        Passes over the data, without a closing pass.
    stop_reason_ : str
        Why `fit` made no more passes, in the words of the run's log. Runs of older versions say
        that it is not recorded.
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
    - Sparse rows are made dense a block at a time, and read as those of the same matrix dense.

    If torch.distributed is initialised, its processes share the work of `fit`, `fit_predict`,
    `predict` and `score`. All of them call the method, with the same parameters and the same X, as
    an array in each or as a path that each can read. Each gets what one process alone would get, to
    the bit. Without an integer `random_state` process 0 draws the seed. Only process 0 writes to
    `run_dir`. A call that another process does not make fails after 60 seconds. `transform` is
    not shared.

    Examples
    --------
    >>> import numpy as np
    >>> from streamkm import KMeans
    >>> x = np.array([[1.0, 2], [1, 4], [1, 0], [10, 2], [10, 4], [10, 0]])
    >>> kmeans = KMeans(n_clusters=2, init=x[[0, 3]]).fit(x)
    >>> kmeans.cluster_centers_
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
        n_init: int | str = "auto",
        max_iter: int = 300,
        tol: float = 1e-4,
        verbose: int = 0,
        random_state: Any = None,
        copy_x: bool = True,
        algorithm: str = "lloyd",
        metric: str = "euclidean",
        scale: str = "none",
        nan: str = "error",
        max_size: int | str | None = None,
        min_size: int | str | None = None,
        compute_labels: bool | str = "auto",
        device: str = "auto",
        max_host_memory: int | str | None = None,
        run_dir: str | os.PathLike[str] | None = None,
        resume: bool = False,
    ) -> None:
        self.n_clusters = n_clusters
        self.init = init
        self.n_init = n_init
        self.max_iter = max_iter
        self.tol = tol
        self.verbose = verbose
        self.random_state = random_state
        self.copy_x = copy_x
        self.algorithm = algorithm
        self.metric = metric
        self.scale = scale
        self.nan = nan
        self.max_size = max_size
        self.min_size = min_size
        self.compute_labels = compute_labels
        self.device = device
        self.max_host_memory = max_host_memory
        self.run_dir = run_dir
        self.resume = resume

    _default_n_init = 10

    def _run(
        self, rows: InputRows, execution: ExecutionConfig, weights: Weights | None, n_init: int
    ) -> Model:
        """The best of `n_init` whole fits, where the cost of a seeding tells little of its end.

        Rows on disk are too many for that, and a run folder holds one fit.
        """
        if not (self._starts_poorly() and rows.in_memory and self.run_dir is None):
            return super()._run(rows, execution, weights, n_init)
        first = self._seed
        models = []
        for seed in (first, *check_random_state(first).randint(MOST_SEED, size=n_init - 1)):
            self._seed = int(seed)
            model = super()._run(rows, execution, weights, 1)
            models.append(replace(model, carried=None))
        self._seed = first
        return min(models, key=lambda model: model.inertia or 0.0)

    def _lines(self) -> PassLines:
        return PassLines()

    def _settings(self) -> dict[str, Any]:
        return {"algorithm": "lloyd", **bounds_of(self)}
