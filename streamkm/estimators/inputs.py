"""Opens the X of a user as a source of rows."""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Number
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from sklearn import get_config
from sklearn.utils import check_array
from sklearn.utils.validation import validate_data

from streamkm.errors import ParameterError
from streamkm.sources import DTYPES, Source, Weights, open_source, open_weights

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sklearn.base import BaseEstimator

__all__ = ["KEPT_DTYPES", "InputRows", "as_numpy", "checked_centroids", "like", "open_rows"]

#: Types of arrays that are kept. Any other becomes the first of them, float64, if it can.
KEPT_DTYPES = [np.float64, *(np.dtype(name) for name in DTYPES if name != "bfloat16")]


@dataclass(frozen=True)
class InputRows:
    """The rows of one X."""

    source: Source
    in_memory: bool
    """Whether X was an array, a list, a data frame, a tensor or a sparse matrix."""
    array: Any
    """The array or CSR matrix behind `source`, if X was in memory and NumPy has its type; or
    None."""

    def weights(self, sample_weight: Any) -> Weights | None:
        """Open `sample_weight`: an array, one number for all rows, a path, or None."""
        n_rows = self.source.spec.n_rows
        if sample_weight is None:
            return None
        if isinstance(sample_weight, Number):
            sample_weight = np.full(n_rows, sample_weight, np.float64)
        elif not isinstance(sample_weight, str | os.PathLike):
            sample_weight = np.asarray(sample_weight)
            if sample_weight.ndim != 1:
                raise ParameterError(
                    f"sample_weight must have one dimension, a number for each row; it has "
                    f"{sample_weight.ndim}"
                )
            if sample_weight.dtype == bool:
                sample_weight = sample_weight.astype(np.float64)
        return open_weights(sample_weight, n_rows)


@contextmanager
def open_rows(estimator: BaseEstimator, X: Any, *, reset: bool) -> Iterator[InputRows]:
    """Open `X`, and close at the end what was opened here.

    Parameters
    ----------
    estimator : BaseEstimator
        The estimator whose ``n_features_in_`` and ``feature_names_in_`` are set or compared.
    X : array-like, sparse matrix, path, Zarr array or Source
        The rows.
    reset : bool
        Set the features of `estimator`; if false, compare `X` with them.

    Yields
    ------
    InputRows

    Raises
    ------
    ValueError
        If `X` cannot be clustered, or has other features than the estimator was fitted on.
    """
    if isinstance(X, torch.Tensor):
        X = X.detach().cpu()
        if X.dtype != torch.bfloat16:
            X = X.numpy()
    if isinstance(X, torch.Tensor):
        source = open_source(X.view(torch.uint16).numpy(), dtype="bfloat16")
        _check_features(estimator, source, reset=reset)
        yield InputRows(source, in_memory=True, array=None)
    elif _is_location(X):
        source = open_source(X)
        try:
            _check_features(estimator, source, reset=reset)
            yield InputRows(source, in_memory=False, array=None)
        finally:
            if source is not X:
                source.close()
    else:
        # The stream finds NaN and infinity at no cost, and names their row.
        array = validate_data(
            estimator,
            X,
            reset=reset,
            accept_sparse="csr",
            dtype=KEPT_DTYPES,
            ensure_all_finite=False,
        )
        yield InputRows(open_source(array), in_memory=True, array=array)


def checked_centroids(centroids_KD: Any, shape: tuple[int, int]) -> np.ndarray:
    """`centroids_KD` as an array, refused in scikit-learn's words unless it has this shape."""
    # Their type is kept, so that an error names the one that the user gave.
    checked_KD: np.ndarray = check_array(centroids_KD, dtype=KEPT_DTYPES, input_name="init")
    whats = (f"clusters {shape[0]}", f"features of the data {shape[1]}")
    for found, needed, what in zip(checked_KD.shape, shape, whats, strict=True):
        if found != needed:
            raise ParameterError(
                f"The shape of the initial centers {checked_KD.shape} does not match the number "
                f"of {what}: {shape[0]} centroids of {shape[1]} features are needed, these are "
                f"{checked_KD.dtype} of shape {checked_KD.shape}"
            )
    return checked_KD


def like(X: Any, array: np.ndarray) -> Any:
    """`array`, or a tensor on the device of `X` if that is a tensor and scikit-learn is told so.

    It is told by its setting ``array_api_dispatch``: results are then of the kind of the input.
    """
    if isinstance(X, torch.Tensor) and get_config()["array_api_dispatch"]:
        return torch.from_numpy(array).to(X.device)
    return array


def as_numpy(array: Any) -> Any:
    """`array`, or the NumPy array of a tensor."""
    return array.detach().cpu().numpy() if isinstance(array, torch.Tensor) else array


def _is_location(X: Any) -> bool:
    """Whether the rows of `X` may be more than fit in memory."""
    if isinstance(X, str | os.PathLike | np.memmap | Source):
        return True
    # The caller who has a Zarr array has imported zarr: it need not be imported to find out.
    zarr = sys.modules.get("zarr")
    return zarr is not None and isinstance(X, zarr.Array | zarr.Group)


def _check_features(estimator: BaseEstimator, source: Source, *, reset: bool) -> None:
    """Check the features of `source` as those of an array are checked, by its shape alone."""
    shape = (source.spec.n_rows, source.spec.n_features)
    validate_data(estimator, np.broadcast_to(0, shape), reset=reset, skip_check_array=True)
