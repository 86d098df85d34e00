"""The several nearest centroids of each row, as scikit-learn's ``NearestNeighbors`` gives them."""

from __future__ import annotations

from numbers import Integral
from typing import TYPE_CHECKING, Any

from streamkm.errors import ParameterError
from streamkm.estimators.inputs import InputRows, like, open_rows
from streamkm.kernels import torch_alone_after_fork
from streamkm.runs.in_memory import nearest_rows

if TYPE_CHECKING:
    import numpy as np

    from streamkm.config import ExecutionConfig
    from streamkm.runs.storage.model import Model

__all__ = ["Neighbors"]


class Neighbors:
    """The method `kneighbors` of an estimator whose model has centroids."""

    nan: Any

    @torch_alone_after_fork()
    def kneighbors(
        self, X: Any, n_neighbors: int, return_distance: bool = True
    ) -> tuple[np.ndarray, np.ndarray] | np.ndarray:
        """Find the nearest centroids of every row of `X`, nearest first.

        They are the true nearest: candidates are ranked in float64, and of equal distances the
        lower index is first. The first is the label that `predict` gives.

        Parameters
        ----------
        X : array-like or sparse matrix of shape (n_samples, n_features), path, Zarr array or Source
            As in `fit`; it is streamed. If the result does not fit in memory, the command
            ``streamkm predict --nearest`` writes it to disk.
        n_neighbors : int
            Number of centroids, M, from 1 to `n_clusters`.
        return_distance : bool, default=True
            Whether to return the distances too.

        Returns
        -------
        distances : ndarray of shape (n_samples, n_neighbors)
            Euclidean distances as those of `transform`, only with `return_distance`; NaN for rows
            with NaN or infinity, if ``nan="drop"``.
        indices : ndarray of shape (n_samples, n_neighbors), int64
            Indices of centroids; -1 for rows with NaN or infinity, if ``nan="drop"``.

        Raises
        ------
        ValueError
            As in `predict`, or if `n_neighbors` is no number of centroids.
        """
        model = self._current_model()
        is_whole = isinstance(n_neighbors, Integral) and not isinstance(n_neighbors, bool)
        if not is_whole or not 1 <= n_neighbors <= model.k:
            raise ParameterError(
                f"n_neighbors={n_neighbors!r} must be a whole number from 1 to {model.k}, the "
                "number of centroids"
            )
        with open_rows(self, X, reset=False) as rows:
            found_NM = nearest_rows(
                model,
                rows.source,
                self._execution(rows),
                nan=self.nan,
                n_nearest=int(n_neighbors),
            )
        distances_NM, labels_NM = (like(X, each_NM) for each_NM in found_NM)
        return (distances_NM, labels_NM) if return_distance else labels_NM

    def _current_model(self) -> Model:
        """The model of the centroids as they are now."""
        raise NotImplementedError

    def _execution(self, rows: InputRows) -> ExecutionConfig:
        """How to carry it out."""
        raise NotImplementedError
