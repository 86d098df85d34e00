"""What the parameters of an estimator may be: checked when it is fitted, never before."""

from __future__ import annotations

import math
import os
from numbers import Integral
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.utils import check_random_state

from streamkm.config import INITS, ExecutionConfig, parse_bytes
from streamkm.errors import ParameterError

if TYPE_CHECKING:
    from collections.abc import Callable

    from streamkm.estimators.base import BaseKMeans

__all__ = ["check_parameters", "check_resumable", "draw_seed", "execution_config"]


def _is_whole(value: Any, least: int = 1) -> bool:
    is_integer = isinstance(value, int | np.integer) and not isinstance(value, bool)
    return is_integer and bool(value >= least)


def _is_init(value: Any) -> bool:
    if isinstance(value, str):
        return value in INITS or value.endswith(".npy")
    return callable(value) or hasattr(value, "__len__")


def _is_tol(value: Any) -> bool:
    is_real = isinstance(value, int | float | np.integer | np.floating)
    return is_real and not isinstance(value, bool) and bool(0 <= value < math.inf)


#: Stands for a parameter that only the other estimator has.
_ABSENT = object()

_WHOLE = "a whole number of at least 1"

#: name -> whether a value will do, and what would. What is not named here is checked by
#: `FitConfig` and `ExecutionConfig` under the same name.
_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "n_clusters": (_is_whole, _WHOLE),
    "init": (
        _is_init,
        (
            f"{', '.join(INITS)}, an array of n_clusters x n_features centroids, the path of "
            "a .npy file of them, or a callable(X, n_clusters, random_state) that returns one"
        ),
    ),
    "n_init": (lambda value: value == "auto" or _is_whole(value), f"'auto' or {_WHOLE}"),
    "max_iter": (_is_whole, _WHOLE),
    "tol": (_is_tol, "a finite number of at least 0"),
    "verbose": (
        lambda value: isinstance(value, bool | np.bool_) or _is_whole(value, least=0),
        "True, False or a whole number of at least 0",
    ),
    "batch_size": (
        lambda value: value == "auto" or _is_whole(value),
        f"'auto' (by the array's shape) or {_WHOLE}",
    ),
    "max_no_improvement": (
        lambda value: value is None or _is_whole(value),
        f"None (do not watch the inertia) or {_WHOLE}",
    ),
    "compute_labels": (
        lambda value: isinstance(value, bool | np.bool_) or value == "auto",
        "True, False or 'auto' (for arrays in memory)",
    ),
    "run_dir": (
        lambda value: value is None or isinstance(value, str | os.PathLike),
        "None or the path of a folder that does not exist yet",
    ),
    "resume": (lambda value: isinstance(value, bool | np.bool_), "True or False"),
    # Parameters of scikit-learn that have one value here.
    "algorithm": (
        lambda value: value == "lloyd",
        (
            "'lloyd': Elkan's algorithm finds the same clusters and keeps a bound for every row "
            "and cluster in memory"
        ),
    ),
    "copy_x": (
        lambda value: value is True,
        "True: the rows that are given are never written to, nor copied as a whole",
    ),
    "init_size": (
        lambda value: value is None,
        "None: how many rows seeding looks at follows from the shape of the data and n_clusters",
    ),
}


def check_parameters(estimator: BaseKMeans, *, with_init: bool = True) -> None:
    """Raise `ParameterError` for the first parameter whose value will not do."""
    # (Asking for them with get_params takes as long as a small partial_fit.)
    for name, (will_do, what_would) in _RULES.items():
        value = getattr(estimator, name, _ABSENT)
        if name == "init" and not with_init:
            continue
        if value is not _ABSENT and not will_do(value):
            raise ParameterError(f"{name} must be {what_would}; it is {value!r}")
    if estimator.resume and estimator.run_dir is None:
        raise ParameterError("resume=True goes on from a run folder: give its path as run_dir")


def check_resumable(estimator: BaseKMeans) -> None:
    """Refuse a run folder that nothing could go on from, before hours have gone into it."""
    if estimator.run_dir is not None and not isinstance(estimator.random_state, Integral):
        raise ParameterError(
            "run_dir is for runs that can be resumed, which takes the seed that they began with: "
            f"give an integer as random_state; it is {estimator.random_state!r}"
        )


def draw_seed(random_state: Any) -> int:
    """The seed of a fit: `random_state` itself if it is an integer, a draw from it if not.

    None draws from NumPy's global generator, as everywhere in scikit-learn, which is
    seeded by the system unless the user has done so.
    """
    generator = check_random_state(random_state)
    if isinstance(random_state, Integral):
        return int(random_state)
    return int(generator.randint(np.iinfo(np.int32).max))


def execution_config(
    device: str, max_host_memory: int | str | None, *, is_small: bool
) -> ExecutionConfig:
    """How to carry a fit out; `max_host_memory` in bytes, or as ``"8GiB"``.

    Reading what `is_small` takes less time than starting a thread for it.
    """
    if isinstance(max_host_memory, str):
        max_host_memory = parse_bytes(max_host_memory)
    elif max_host_memory is not None and _is_whole(max_host_memory):
        max_host_memory = int(max_host_memory)
    return ExecutionConfig(
        device=device, max_host_memory=max_host_memory, read_threads=0 if is_small else None
    )
