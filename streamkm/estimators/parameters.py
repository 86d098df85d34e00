"""Checks the parameters of an estimator, and turns them into settings of a run.

Parameters are checked when the estimator is fitted and not before, as scikit-learn asks. A
parameter that is a setting under another name has the rule of that setting. A parameter that is a
setting of the same name is checked by `FitConfig` or `ExecutionConfig`.
"""

from __future__ import annotations

import os
from numbers import Integral
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.utils import check_random_state

from streamkm.config import INITS, ExecutionConfig, FitConfig
from streamkm.errors import ParameterError
from streamkm.settings import FLAG, Rule, setting_of, whole
from streamkm.text import parse_bytes

if TYPE_CHECKING:
    from sklearn.base import BaseEstimator


__all__ = ["check_parameters", "check_resumable", "draw_seed", "execution_config"]


def _plain(value: Any) -> Any:
    """`value`, with a NumPy scalar turned into a Python one."""
    return value.item() if isinstance(value, np.generic) else value


def _rule_of(setting: str) -> Rule:
    return setting_of(FitConfig, setting).rule


def _either(value: str | None, named: str, rule: Rule) -> Rule:
    """A rule that admits `value`, which errors call `named`, and what `rule` admits."""
    return Rule(f"{named} or {rule.text}", lambda given: given == value or rule.admits(given))


def _is_init(value: Any) -> bool:
    if isinstance(value, str):
        return value != "given" and _rule_of("init").admits(value)
    return callable(value) or hasattr(value, "__len__")


#: Stands for a parameter that only the other estimator has.
_ABSENT = object()

_LEVEL = whole(0)

#: The rules of parameters that are not settings of the same name, or take more than those do.
_RULES = {
    "n_clusters": _rule_of("k"),
    "init": Rule(
        f"{', '.join(INITS)}, an array of n_clusters x n_features centroids, the path of "
        "a .npy file of them, or a callable(X, n_clusters, random_state) that returns one",
        _is_init,
    ),
    "n_init": _either("auto", "'auto'", _rule_of("n_init")),
    "max_iter": _rule_of("epochs"),
    "tol": _rule_of("tol"),
    "verbose": Rule(
        f"True, False or {_LEVEL.text}",
        lambda value: FLAG.admits(value) or _LEVEL.admits(value),
    ),
    "batch_size": _either("auto", "'auto' (by the array's shape)", _rule_of("batch_rows")),
    "max_no_improvement": _either(
        None, "None (do not watch the inertia)", _rule_of("max_no_improvement")
    ),
    "compute_labels": Rule(
        "True, False or 'auto' (for arrays in memory)",
        lambda value: FLAG.admits(value) or value == "auto",
    ),
    "run_dir": Rule(
        "None or the path of a folder that does not exist yet",
        lambda value: value is None or isinstance(value, str | os.PathLike),
    ),
    "resume": Rule("True or False", FLAG.admits),
    # Parameters of scikit-learn that take one value here.
    "algorithm": Rule(
        "'lloyd': Elkan's algorithm finds the same clusters and keeps a bound for every row "
        "and cluster in memory",
        lambda value: value == "lloyd",
    ),
    "copy_x": Rule(
        "True: the rows that are given are never written to, nor copied as a whole",
        lambda value: value is True,
    ),
    "init_size": Rule(
        "None: how many rows seeding looks at follows from the shape of the data and n_clusters",
        lambda value: value is None,
    ),
}


def check_parameters(estimator: BaseEstimator, *, with_init: bool = True) -> None:
    """Raise `ParameterError` for the first parameter whose value breaks its rule."""
    # Not by get_params, which takes as long as a small partial_fit.
    for name, rule in _RULES.items():
        value = getattr(estimator, name, _ABSENT)
        if name == "init" and not with_init:
            continue
        if value is not _ABSENT and not rule.admits(_plain(value)):
            raise ParameterError(f"{name} must be {rule.text}; it is {value!r}")
    if estimator.resume and estimator.run_dir is None:
        raise ParameterError("resume=True goes on from a run folder: give its path as run_dir")


def check_resumable(estimator: BaseEstimator) -> None:
    """Refuse a run folder that could not be resumed, before hours have gone into it."""
    if estimator.run_dir is not None and not isinstance(estimator.random_state, Integral):
        raise ParameterError(
            "run_dir is for runs that can be resumed, which takes the seed that they began with: "
            f"give an integer as random_state; it is {estimator.random_state!r}"
        )


def draw_seed(random_state: Any) -> int:
    """The seed of a fit: `random_state` if it is an integer, else a draw from it.

    None draws from NumPy's global generator, as everywhere in scikit-learn. The system seeds that
    generator, unless the user has.
    """
    generator = check_random_state(random_state)
    if isinstance(random_state, Integral):
        return int(random_state)
    return int(generator.randint(np.iinfo(np.int32).max))


def execution_config(
    device: str, max_host_memory: int | str | None, *, is_small: bool
) -> ExecutionConfig:
    """The execution settings of a fit; `max_host_memory` is in bytes, or such as ``"8GiB"``.

    A small array is read without threads, because starting a thread takes longer than reading it.
    """
    if isinstance(max_host_memory, str):
        max_host_memory = parse_bytes(max_host_memory)
    return ExecutionConfig(
        device=device,
        max_host_memory=_plain(max_host_memory),
        read_threads=0 if is_small else None,
    )
