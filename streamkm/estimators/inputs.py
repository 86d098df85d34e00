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

from streamkm.devices import is_host, resolve_device
from streamkm.distributed.world import ALONE
from streamkm.errors import NonFiniteError, ParameterError
from streamkm.estimators.batches import is_batches
from streamkm.sources import (
    DTYPES,
    Source,
    SourceOptions,
    Weights,
    check_dtype,
    is_lazy,
    is_path_list,
    open_source,
    open_weights,
)
from streamkm.sources.memory import MemorySource
from streamkm.sources.names import in_order, shown
from streamkm.stream.tensor_source import TensorSource, dtype_name

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sklearn.base import BaseEstimator

    from streamkm.distributed.world import World

__all__ = [
    "KEPT_DTYPES",
    "InputRows",
    "as_numpy",
    "checked_centroids",
    "like",
    "nan_is_refused",
    "open_rows",
    "refuse_masked",
    "remember_reading",
]

#: Types of arrays that are kept. Any other becomes the first of them, float64, if it can.
KEPT_DTYPES = [np.float64, *(np.dtype(name) for name in DTYPES if name != "bfloat16")]


@dataclass(frozen=True)
class InputRows:
    """The rows of one X."""

    source: Source
    in_memory: bool
    """Whether X was an array, a memory map, a list, a data frame, a tensor or a sparse matrix."""
    array: Any
    """The array or CSR matrix behind `source`, if X was in host memory and NumPy has its type; or
    None."""
    world: World = ALONE
    """The processes that share the rows."""

    @property
    def device(self) -> str:
        """What ``device="auto"`` means for them: a tensor that stays on its device, that one."""
        source = self.source
        return str(source.tensor.device) if isinstance(source, TensorSource) else "auto"

    def weights(self, sample_weight: Any) -> Weights | None:
        """Open `sample_weight`: an array, one number for all rows, a path, or None."""
        n_rows = self.source.spec.n_rows
        if sample_weight is None:
            return None
        if isinstance(sample_weight, Number):
            sample_weight = np.full(n_rows, sample_weight, np.float64)
        elif not isinstance(sample_weight, str | os.PathLike):
            refuse_masked(sample_weight, "sample_weight", "fill it with 0 to leave rows out")
            sample_weight = np.asarray(as_numpy(sample_weight))
            if sample_weight.ndim != 1:
                raise ParameterError(
                    f"sample_weight must have one dimension, a number for each row; it has "
                    f"{sample_weight.ndim}"
                )
            if sample_weight.dtype == bool:
                sample_weight = sample_weight.astype(np.float64)
        return open_weights(sample_weight, n_rows)


@contextmanager
def nan_is_refused() -> Iterator[None]:
    """For what has no parameter ``nan``: errors about NaN or infinity do not name it."""
    try:
        yield
    except NonFiniteError as error:
        what = str(error.args[0])
        # Rows may also be finite, and too long.
        which = "such rows" if what.endswith("use ") else "rows with NaN or infinity"
        raise NonFiniteError(f"{what.removesuffix('use ')}leave {which} out") from None


@contextmanager
def open_rows(estimator: BaseEstimator, X: Any, *, reset: bool) -> Iterator[InputRows]:
    """Open `X`, and close at the end what was opened here.

    Parameters
    ----------
    estimator : BaseEstimator
        The estimator whose ``n_features_in_`` and ``feature_names_in_`` are set or compared.
    X : array-like, sparse matrix, path, list of paths, Zarr array or Source
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
    if is_batches(X):
        raise ParameterError(
            "X is an iterator of batches, which only fit and partial_fit of MiniBatchKMeans take; "
            "call this with each batch, or write them to a file and give its path"
        )
    source = _source_of_tensor(estimator, X) if isinstance(X, torch.Tensor) else None
    if source is not None:
        if reset:
            remember_reading(estimator)
        _check_features(estimator, source, reset=reset)
        yield InputRows(source, in_memory=True, array=None)
        return
    X = as_numpy(X)
    if _is_location(X):
        # A source that the user has opened is read as it is.
        known = SourceOptions() if reset or isinstance(X, Source) else _reading_of(estimator)
        known.setdefault("fill_is_nan", getattr(estimator, "nan", None) == "drop")
        source = open_source(X, **known)
        # A memory map is an array, such as joblib gives to its workers for one in memory.
        array = np.asarray(X) if isinstance(X, np.memmap) else None
        try:
            _check_features(estimator, source, reset=reset)
            if reset:
                spec = source.spec
                remember_reading(
                    estimator,
                    nodata=[value for value in spec.nodata if value not in spec.marked],
                    apply_scale=spec.is_scaled,
                    marked=spec.marked,
                )
            yield InputRows(source, in_memory=array is not None, array=array)
        finally:
            if not isinstance(X, Source):
                source.close()
    else:
        if getattr(getattr(X, "dtype", None), "names", None) is not None:
            check_dtype(X.dtype, "X")
        if reset:
            remember_reading(estimator)
        # The stream finds NaN and infinity at no cost, and names their row.
        array = validate_data(
            estimator,
            X,
            reset=reset,
            accept_sparse="csr",
            dtype=KEPT_DTYPES,
            ensure_all_finite=False,
            skip_check_array=_is_ready(X),
        )
        if np.ma.is_masked(X):  # which scikit-learn takes for its data
            array = np.ma.array(array, mask=X.mask)
        # A run in a folder keeps the names; they say nothing new where `estimator` has them.
        names = tuple(getattr(estimator, "feature_names_in_", ())) if reset else ()
        is_dense = isinstance(array, np.ndarray)
        source = MemorySource(array, feature_names=names) if is_dense else open_source(array)
        yield InputRows(source, in_memory=True, array=array)


def checked_centroids(
    centroids_KD: Any, shape: tuple[int, int], names: tuple[str, ...] = ()
) -> np.ndarray:
    """`centroids_KD` as an array, refused in scikit-learn's words unless it has this shape.

    Those of a data frame are also refused if it has the features `names` in another order.
    """
    columns = getattr(centroids_KD, "columns", ())
    given = tuple(name for name in columns if isinstance(name, str))
    if given != names and set(given) == set(names):
        raise ParameterError(
            f"the features of init must be in the order of those of the data, {shown(names)}; "
            f"they are {shown(given)}"
        )
    refuse_masked(centroids_KD, "init", "fill what is masked")
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


def refuse_masked(array: Any, name: str, remedy: str) -> None:
    """Raise `ParameterError` if anything in `array` is masked: as an ndarray it would count."""
    if np.ma.is_masked(array):
        n_masked = int(np.ma.getmaskarray(array).sum())
        raise ParameterError(f"{name} must hold no masked numbers, it holds {n_masked}; {remedy}")


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


def remember_reading(
    estimator: BaseEstimator,
    *,
    nodata: Sequence[float | int] | None = None,
    apply_scale: bool = False,
    marked: Sequence[float | int] = (),
) -> None:
    """Keep how the rows of a fit were read from files, for later rows of the same kind."""
    kept = SourceOptions(nodata=nodata, apply_scale=apply_scale)
    vars(estimator)["_reading"] = {**kept, "fill_is_nan": marked} if marked else kept


def _reading_of(estimator: BaseEstimator) -> SourceOptions:
    """What `remember_reading` has kept."""
    kept: SourceOptions = vars(estimator).get("_reading", SourceOptions())
    return kept.copy()


def _source_of_tensor(estimator: BaseEstimator, X: torch.Tensor) -> Source | None:
    """A tensor as a source if it is clustered on its own GPU, or NumPy has not its type; or None.

    What a source refuses goes the way of an array, whose errors are scikit-learn's. A callable init
    takes an array too.
    """
    is_matrix = X.layout == torch.strided and X.ndim == 2 and X.numel() > 0
    is_taken = is_matrix and dtype_name(X) in DTYPES and not callable(estimator.init)
    if is_taken and not is_host(X.device) and _is_own_device(estimator.device, X.device):
        return TensorSource(X)
    if X.dtype == torch.bfloat16:
        return open_source(X.detach().cpu().view(torch.uint16).numpy(), dtype="bfloat16")
    return None


def _is_own_device(name: str, device: torch.device) -> bool:
    """Whether rows on `device` stay there, if the parameter ``device`` is `name`."""
    chosen = resolve_device(name)
    return chosen.type == device.type if name == "auto" else chosen == device


def _is_ready(X: Any) -> bool:
    """Whether `X` is an array that scikit-learn's checks neither refuse nor change."""
    return type(X) is np.ndarray and X.ndim == 2 and X.size > 0 and X.dtype in KEPT_DTYPES


def _is_location(X: Any) -> bool:
    """Whether the rows of `X` may be more than fit in memory."""
    if type(X) is np.ndarray:  # The usual case; to ask whether it follows a protocol takes long.
        return False
    if isinstance(X, str | os.PathLike | np.memmap | Source) or is_path_list(X):
        return True
    # The caller who has a Zarr array has imported zarr: it need not be imported to find out.
    zarr = sys.modules.get("zarr")
    return is_lazy(X) or (zarr is not None and isinstance(X, zarr.Array | zarr.Group))


def _check_features(estimator: BaseEstimator, source: Source, *, reset: bool) -> None:
    """Check or set the features of `estimator` by those of `source`, as an array's are.

    Names that are in another order are no error: whoever reads `source` puts them in order.
    """
    names = source.spec.feature_names
    if not reset and names and hasattr(estimator, "feature_names_in_"):
        in_order(source, tuple(estimator.feature_names_in_), type(estimator).__name__)
        return
    shape = (source.spec.n_rows, source.spec.n_features)
    validate_data(estimator, np.broadcast_to(0, shape), reset=reset, skip_check_array=True)
    if reset and names:
        estimator.feature_names_in_ = np.asarray(names, dtype=object)
