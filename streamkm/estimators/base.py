"""The base of `KMeans` and `MiniBatchKMeans`: everything but when the centroids move."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from streamkm.config import FitConfig
from streamkm.errors import ParameterError
from streamkm.estimators.conversion import to_sklearn
from streamkm.estimators.display import Clusterer
from streamkm.estimators.fitted import (
    NoLabels,
    centers_of,
    model_from_centers,
    model_of,
    warn_of_empty_clusters,
)
from streamkm.estimators.inputs import InputRows, as_numpy, checked_centroids, like, open_rows
from streamkm.estimators.neighbors import Neighbors
from streamkm.estimators.parameters import (
    check_parameters,
    check_resumable,
    draw_seed,
    execution_config,
    warn_of_no_effect,
)
from streamkm.estimators.sharing import open_shared_rows
from streamkm.estimators.stopping import stoppable
from streamkm.kernels import torch_alone_after_fork
from streamkm.runs.fit import fit, seed
from streamkm.runs.in_memory import distance_rows, label_rows

if TYPE_CHECKING:
    from streamkm.config import ExecutionConfig
    from streamkm.runs.engine.listener import Listener
    from streamkm.runs.storage.model import Model
    from streamkm.sources import Weights

__all__ = ["BaseKMeans"]

#: Bytes of a small array, at most: in memory it is copied faster than a thread starts.
SMALL_BYTES = 2 << 20


class BaseKMeans(Neighbors, Clusterer):
    """Fits by a run, and takes labels, distances and scores from its model."""

    _model: Model
    _seed: int
    labels_ = NoLabels()

    _default_n_init: int
    """Seedings of ``n_init="auto"`` where one of them may be poor, scikit-learn's number."""

    # ---- scikit-learn's methods ---------------------------------------------

    @torch_alone_after_fork()
    def fit(self, X: Any, y: None = None, sample_weight: Any = None) -> Self:
        """Cluster the rows of `X`.

        Parameters
        ----------
        X : array-like or sparse matrix of shape (n_samples, n_features), path, Zarr array or Source
            Anything that `streamkm.open_source` takes, torch tensors, and what NumPy makes an
            array of. An array in memory must have two dimensions. A sparse matrix is read as CSR,
            its rows made dense in the slots of the memory plan. An array on disk may have more:
            the last is features, all others are rows. Rows on disk are streamed. The stored type
            is kept, except that bool and objects become float64.
        y : Ignored
            Not used, present for scikit-learn's sake.
        sample_weight : array-like of shape (n_samples,), float or path, default=None
            Weights of the rows, finite and not negative: an array, one number for all rows, or
            the path of a ``.npy`` file or a Zarr array. None is 1 for every row. A row of weight 2
            counts as two rows. A row of weight 0 leaves no trace, but still gets its label.

        Returns
        -------
        self
            The fitted estimator.

        Raises
        ------
        ValueError
            If a parameter or the data cannot be used; the message names a remedy.
        streamkm.errors.AllocationError
            If the machine or the GPU refuses memory.
        streamkm.errors.DeviceLostError
            If the GPU fails.
        streamkm.errors.StorageError
            If there is a `run_dir` and the disk refuses a write.
        streamkm.errors.Interrupted
            If there is a `run_dir` and SIGINT, SIGTERM, SIGHUP, SIGUSR1 or SIGUSR2 stops the fit,
            after a checkpoint is saved. Nobody need catch it: it is a SystemExit, and the process
            ends with status 75. Without a `run_dir` signals act as usual: SIGINT raises
            KeyboardInterrupt, the others end the process.
        """
        check_parameters(self)
        check_resumable(self)
        warn_of_no_effect(self)
        with open_shared_rows(self, X, reset=True) as rows:
            execution = self._execution(rows)
            self._check_n_rows(rows)
            # One seed for all processes: without an integer each draws its own.
            self._seed = rows.world.gather(draw_seed(self.random_state))[0]
            weights = rows.weights(sample_weight)
            self._n_init = self._seedings()
            self._adopt(self._run(rows, execution, weights, self._n_init))
            self._label(rows, execution, weights)
        self._tell_passes()
        warn_of_empty_clusters(self)
        self._give_like(X)
        return self

    def fit_predict(self, X: Any, y: None = None, sample_weight: Any = None) -> np.ndarray:
        """Cluster the rows of `X` and return their labels, even if `fit` keeps none.

        Parameters
        ----------
        X : array-like or sparse matrix of shape (n_samples, n_features), path, Zarr array or Source
            As in `fit`.
        y : Ignored
            Not used, present for scikit-learn's sake.
        sample_weight : array-like of shape (n_samples,), float or path, default=None
            As in `fit`.

        Returns
        -------
        labels : ndarray of shape (n_samples,), int32
            As in `predict`. The errors are those of `fit`.
        """
        self.fit(X, sample_weight=sample_weight)
        labels_N: np.ndarray = self.labels_ if hasattr(self, "labels_") else self.predict(X)
        return labels_N

    @torch_alone_after_fork()
    def predict(self, X: Any) -> np.ndarray:
        """Find the exact nearest centroid of every row of `X`.

        Rows that float32 cannot decide are scored again in float64. If several centroids are
        nearest, the lowest index wins.

        Parameters
        ----------
        X : array-like or sparse matrix of shape (n_samples, n_features), path, Zarr array or Source
            As in `fit`. If the labels do not fit in memory, the command ``streamkm predict``
            writes them to disk.

        Returns
        -------
        labels : ndarray of shape (n_samples,), int32
            Indices of centroids; -1 for rows with NaN or infinity, if ``nan="drop"``.

        Raises
        ------
        ValueError
            If the data cannot be used, or has another number of features.
        """
        model = self._current_model()
        with open_shared_rows(self, X, reset=False) as rows:
            execution = self._execution(rows)
            found_N, _ = label_rows(model, rows.source, execution, nan=self.nan, world=rows.world)
        labels_N: np.ndarray = like(X, found_N)
        return labels_N

    @torch_alone_after_fork()
    def transform(self, X: Any) -> np.ndarray:
        """Compute the Euclidean distance of every row of `X` to every centroid.

        With `scale` these are distances in the scaled space. With the cosine metric they are
        distances between unit vectors: half of the square is the cosine distance.

        Parameters
        ----------
        X : array-like or sparse matrix of shape (n_samples, n_features), path, Zarr array or Source
            As in `fit`.

        Returns
        -------
        distances : ndarray of shape (n_samples, n_clusters)
            float64 if `X` or the data of the fit holds float64 or integers of 32 bits or more, else
            float32. NaN for rows with NaN or infinity, if ``nan="drop"``.

        Raises
        ------
        ValueError
            As in `predict`.
        """
        model = self._current_model()
        with open_rows(self, X, reset=False) as rows:
            found_NK = distance_rows(model, rows.source, self._execution(rows), nan=self.nan)
        distances_NK: np.ndarray = like(X, found_NK)
        return distances_NK

    @torch_alone_after_fork()
    def score(self, X: Any, y: None = None, sample_weight: Any = None) -> float:
        """Compute minus the inertia of the rows of `X`; greater is better.

        Parameters
        ----------
        X : array-like or sparse matrix of shape (n_samples, n_features), path, Zarr array or Source
            As in `fit`.
        y : Ignored
            Not used, present for scikit-learn's sake.
        sample_weight : array-like of shape (n_samples,), float or path, default=None
            As in `fit`.

        Returns
        -------
        score : float
            Minus the sum of the squared distances of rows to their nearest centroids, in the
            scaled space, each times its weight.

        Raises
        ------
        ValueError
            As in `predict`, or if `sample_weight` cannot be used.
        """
        model = self._current_model()
        with open_shared_rows(self, X, reset=False) as rows:
            _, inertia = label_rows(
                model,
                rows.source,
                self._execution(rows),
                nan=self.nan,
                weights=rows.weights(sample_weight),
                world=rows.world,
            )
        return -inertia

    def to_sklearn(self) -> Any:
        """Make scikit-learn's own estimator of the same name, fitted with these centroids.

        Returns
        -------
        estimator : sklearn.cluster.KMeans, sklearn.cluster.MiniBatchKMeans or Pipeline
            A pipeline that scales rows first, if `scale` or `metric` ask for it. Its ``predict``
            agrees with this estimator's, except for rows that are equally far from two centroids
            to rounding. It takes rows of float32 if the data was float32, else of float64. A
            ``MiniBatchKMeans`` continues ``partial_fit`` from the same counts, as floats.
        """
        return to_sklearn(self, self._current_model())

    @classmethod
    def from_model(cls, model: Model) -> Self:
        """Make an estimator of the model that `streamkm.load_run` has read."""
        estimator = cls(**cls._parameters(model.settings))
        estimator._restore(model)
        return estimator

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags

    # ---- parameters and settings --------------------------------------------

    def _lines(self) -> Listener:
        """What prints scikit-learn's lines of progress on stdout."""
        raise NotImplementedError

    def _settings(self) -> dict[str, Any]:
        """The settings of the run that only this estimator decides."""
        raise NotImplementedError

    @classmethod
    def _parameters(cls, settings: dict[str, Any]) -> dict[str, Any]:
        """The parameters of an estimator whose run had these settings."""
        return {
            "n_clusters": settings["k"],
            "init": settings["init"],
            "n_init": settings["n_init"],
            "max_iter": settings["epochs"],
            "tol": settings["tol"],
            "random_state": settings["seed"],
            "metric": settings["metric"],
            "scale": settings["scale"],
            "nan": settings["nan"],
            **{name: settings.get(name) for name in ("max_size", "min_size")},
        }

    # ---- what is fitted -----------------------------------------------------

    @property
    def _n_features_out(self) -> int:
        """The number of clusters, where scikit-learn's mixin for names of features reads it."""
        return len(self.cluster_centers_)

    def _current_model(self) -> Model:
        """The model of the centroids and counts as they are now: the user may have set them."""
        check_is_fitted(self, "cluster_centers_")
        if hasattr(self, "_model"):
            centers_KD, counts_K = as_numpy(self.cluster_centers_), as_numpy(self.counts_)
            self._model = model_of(self._model, centers_KD, counts_K)
            return self._model
        check_parameters(self)
        self._seed = 0  # which nothing draws by: there is no seeding
        config = replace(self._config(is_given=True, n_init=1), k=len(self.cluster_centers_))
        names = tuple(getattr(self, "feature_names_in_", ()))
        return model_from_centers(as_numpy(self.cluster_centers_), config, names)

    def _give_like(self, X: Any) -> None:
        """Make tensors of the fitted arrays, if the rows were a tensor: see `like`."""
        for name in ("cluster_centers_", "labels_"):
            if name in vars(self):
                setattr(self, name, like(X, getattr(self, name)))

    # ---- parts of fitting ---------------------------------------------------

    def _seedings(self) -> int:
        """The number of seedings that `n_init` asks for."""
        if self.n_init != "auto":
            return int(self.n_init)
        return self._default_n_init if self._starts_poorly() else 1

    def _starts_poorly(self) -> bool:
        """Whether seedings differ so much that one of them may be poor."""
        return callable(self.init) or (isinstance(self.init, str) and self.init == "random")

    def _config(self, *, is_given: bool, n_init: int) -> FitConfig:
        return FitConfig(
            k=int(self.n_clusters),
            epochs=int(self.max_iter),
            init="given" if is_given else self.init,
            n_init=1 if is_given else n_init,
            metric=self.metric,
            scale=self.scale,
            tol=float(self.tol),
            seed=self._seed,
            nan=self.nan,
            **self._settings(),
        )

    def _execution(self, rows: InputRows) -> ExecutionConfig:
        is_small = rows.in_memory and rows.source.spec.nbytes <= SMALL_BYTES
        device = rows.device if self.device == "auto" else self.device
        return execution_config(device, self.max_host_memory, is_small=is_small)

    def _check_n_rows(self, rows: InputRows) -> None:
        n_rows = rows.source.spec.n_rows
        if n_rows < self.n_clusters:
            raise ParameterError(f"n_samples={n_rows} should be >= n_clusters={self.n_clusters}.")

    def _run(
        self, rows: InputRows, execution: ExecutionConfig, weights: Weights | None, n_init: int
    ) -> Model:
        """The model of a run that begins from the best of `n_init` seedings."""
        given_KD = self._given_centroids(rows, execution, weights, n_init)
        with stoppable(is_saved=self.run_dir is not None) as stop_request:
            return fit(
                rows.source,
                self._config(is_given=given_KD is not None, n_init=n_init),
                execution,
                None if self.run_dir is None else Path(self.run_dir),
                resume=bool(self.resume),
                stop_request=stop_request,
                given_KD=given_KD,
                weights=weights,
                quiet=not self.verbose,
                listener=self._lines() if self.verbose and rows.world.is_first else None,
                world=rows.world,
            ).on_host()

    def _given_centroids(
        self, rows: InputRows, execution: ExecutionConfig, weights: Weights | None, n_init: int
    ) -> np.ndarray | None:
        """The first centroids, if `init` is an array or a callable: then the best of `n_init`."""
        if isinstance(self.init, str):
            return None
        if not callable(self.init):
            if n_init > 1:
                warnings.warn(
                    "Explicit initial center position passed: performing only one init in "
                    f"{type(self).__name__} instead of n_init={n_init}.",
                    RuntimeWarning,
                    stacklevel=3,
                )
            return self._checked(self.init, rows)
        if rows.array is None:
            raise ParameterError(
                "a callable init gets the rows as a NumPy array, which X is not; call it "
                "yourself on some of them and give its centroids as init"
            )
        generator = check_random_state(self._seed)
        candidates = [
            self._checked(self.init(rows.array, self.n_clusters, random_state=generator), rows)
            for _ in range(n_init)
        ]
        if n_init == 1:
            return candidates[0]
        config = self._config(is_given=True, n_init=1)
        inertias = []
        for given_KD in candidates:
            first = seed(
                rows.source, config, execution, given_KD=given_KD, weights=weights, quiet=True
            )
            _, inertia = label_rows(
                first, rows.source, execution, nan=self.nan, weights=weights, world=rows.world
            )
            inertias.append(inertia)
        return candidates[int(np.argmin(inertias))]

    def _checked(self, centroids_KD: Any, rows: InputRows) -> np.ndarray:
        shape = (self.n_clusters, rows.source.spec.n_features)
        names = getattr(self, "feature_names_in_", ())
        return checked_centroids(centroids_KD, shape, names=tuple(names))

    def _adopt(self, model: Model) -> None:
        """Take the fitted attributes from `model`, and forget those of an earlier fit."""
        self._model = model
        # Copies: what a user changes in place must not change the model behind its back.
        self.cluster_centers_ = centers_of(model)
        self.counts_ = model.counts_K.numpy().copy()
        exact = model.inertia
        self.inertia_ = model.figures["epoch_inertia"] if exact is None else exact
        self.__dict__.pop("labels_", None)

    def _restore(self, model: Model) -> None:
        """Take the fitted attributes from the model of a run that is loaded."""
        self._adopt(model)
        self._seed = model.settings["seed"]
        self.n_features_in_ = model.n_features
        if model.feature_names:
            self.feature_names_in_ = np.asarray(model.feature_names, dtype=object)
        self._tell_passes()

    def _tell_passes(self) -> None:
        """Set the number of passes, and why there were no more."""
        figures = self._model.figures
        self.n_iter_, self.stop_reason_ = figures["n_iter"], figures["stop_reason"]

    def _label(self, rows: InputRows, execution: ExecutionConfig, weights: Weights | None) -> None:
        """Set ``labels_`` and their inertia, if `compute_labels` asks for them."""
        # What the fit has left is for these rows alone, and no part of what the estimator keeps.
        model, self._model = self._model, replace(self._model, carried=None)
        if self.compute_labels is True or (self.compute_labels == "auto" and rows.in_memory):
            self.labels_, self.inertia_ = label_rows(
                model, rows.source, execution, nan=self.nan, weights=weights, world=rows.world
            )
