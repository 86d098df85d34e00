"""Lloyd's algorithm as a scikit-learn estimator."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from streamkm.estimators.base import BaseKMeans

if TYPE_CHECKING:
    import os

__all__ = ["KMeans"]


class KMeans(BaseKMeans):
    """k-means by Lloyd's algorithm, for arrays of any size.

    The centroids move after each full pass over the data, until they stand still: the
    better result where several passes are affordable. With the same first centroids it
    takes the steps of `sklearn.cluster.KMeans`, to rounding.

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
    n_init : "auto" or int, default="auto"
        How many seedings are made, or how many times a callable `init` is called; the fit
        goes on from the best. (scikit-learn makes as many whole fits, and keeps the best.)
        ``auto`` is 1.
    max_iter : int, default=300
        Passes over the data, at most.
    tol : float, default=1e-4
        Stop when the squared shift of the centroids in a pass is at most `tol` times the
        mean variance of the features. 0 goes on until they no longer move.
    verbose : bool or int, default=0
        Whether to say on stderr what is done, with a bar on a terminal.
    random_state : int, RandomState or None, default=None
        An integer is the seed, and the result the same each time; others are drawn from.
    copy_x : True
        The rows that are given are never written to, nor copied as a whole.
    algorithm : "lloyd"
        The only one; Elkan's would find the same clusters.
    metric : {"euclidean", "cosine"}, default="euclidean"
        ``cosine`` is spherical k-means: rows and centroids have unit length. A row of zeros
        has no direction: it gets the label 0, is at distance 1 and moves nothing.
    scale : {"none", "zscore", "minmax", "l2"}, default="none"
        What is done to the features before distances are taken; zscore and minmax take one
        more pass for the statistics. ``cluster_centers_`` are in the space of the input.
    nan : {"error", "drop"}, default="error"
        What to do about rows with NaN or infinity: stop, or leave them out (label -1).
    compute_labels : bool or "auto", default="auto"
        Whether `fit` ends with a pass for ``labels_`` and the ``inertia_`` that goes with
        them. ``auto``: for what is in memory, but not for what is on disk.
    device : str, default="auto"
        ``auto`` (CUDA if there is one), ``cpu``, ``cuda`` or ``cuda:1``.
    max_host_memory : int or str, default=None
        Bytes, or such as ``"8GiB"``, for everything but X itself and the results; 8 GiB or
        half the machine's if None.
    run_dir : path, default=None
        Write a run folder there: checkpoints, metrics, the model. It must not exist, unless
        `resume`, and needs an integer `random_state`. SIGINT and SIGTERM then save a
        checkpoint before `fit` raises.
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
        that of the last pass's clusters about the centroids as it moved them, which is no less.
    counts_ : ndarray of shape (n_clusters,), int64
        Rows that each centroid is the mean of.
    n_iter_ : int
        Passes that were made, a closing one not counted.
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
        self.compute_labels = compute_labels
        self.device = device
        self.max_host_memory = max_host_memory
        self.run_dir = run_dir
        self.resume = resume

    def _settings(self) -> dict[str, Any]:
        return {"algorithm": "lloyd"}
