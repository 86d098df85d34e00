"""Checks the parameters of an estimator, and turns them into settings of a run.

Parameters are checked when the estimator is fitted and not before, as scikit-learn asks. A
parameter that is a setting under another name has the rule of that setting. A parameter that is a
setting of the same name is checked by `FitConfig` or `ExecutionConfig`.
"""

from __future__ import annotations

import os
import warnings
from numbers import Integral
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.utils import check_random_state

from streamkm.bounds import SIZE
from streamkm.config import INITS, ExecutionConfig, FitConfig
from streamkm.errors import ParameterError
from streamkm.settings import FLAG, Rule, finite, one_of, setting_of, whole
from streamkm.text import parse_bytes

if TYPE_CHECKING:
    from collections.abc import Callable

    from sklearn.base import BaseEstimator


__all__ = [
    "bounds_of",
    "check_parameters",
    "check_resumable",
    "check_unbounded",
    "draw_seed",
    "execution_config",
    "warn_of_no_effect",
]


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


#: The greatest seed that NumPy's generator takes.
LARGEST_SEED = 2**32 - 1

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
    "max_no_improvement": Rule(
        "'auto' (10 if max_iter is more than 1, else off), None (do not watch the inertia) or "
        + _rule_of("max_no_improvement").text,
        lambda value: (
            value is None or value == "auto" or _rule_of("max_no_improvement").admits(value)
        ),
    ),
    "min_gain": _rule_of("min_gain"),
    "compute_labels": Rule(
        "True, False or 'auto' (for arrays in memory)",
        lambda value: FLAG.admits(value) or value == "auto",
    ),
    "run_dir": Rule(
        "None or the path of a folder that does not exist yet",
        lambda value: value is None or isinstance(value, str | os.PathLike),
    ),
    "resume": Rule("True or False", FLAG.admits),
    **{name: _either(None, "None", SIZE) for name in ("max_size", "min_size")},
    # Parameters of scikit-learn that change nothing here.
    "algorithm": one_of("lloyd", "elkan", "auto", "full"),
    "bisecting_strategy": one_of("biggest_inertia", "largest_cluster"),
    "copy_x": Rule("True or False", FLAG.admits),
    "init_size": _either(None, "None", whole(1)),
    "reassignment_ratio": finite(0),
}

#: Parameters of scikit-learn that can ask for what is not done here: whether a value does, and
#: what is done instead.
_WITHOUT_EFFECT: dict[str, tuple[Callable[[Any], bool], str]] = {
    "algorithm": (
        lambda value: value == "elkan",
        "Lloyd's algorithm finds the same clusters, without a bound for every row and cluster",
    ),
    "init_size": (
        lambda value: value is not None,
        "the shape of X and n_clusters decide how many rows seeding looks at",
    ),
    "reassignment_ratio": (
        lambda value: value > 0,
        "a cluster moves to other rows only if a whole pass brought it none",
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
    if getattr(estimator, "resume", False) and estimator.run_dir is None:
        raise ParameterError("resume=True goes on from a run folder: give its path as run_dir")


def bounds_of(estimator: BaseEstimator) -> dict[str, int | str | None]:
    """The bounds on the sizes of clusters, as settings."""
    return {name: _plain(getattr(estimator, name)) for name in ("max_size", "min_size")}


def check_unbounded(estimator: BaseEstimator) -> None:
    """Refuse bounds on sizes, which are about all rows of a fit, where rows come in pieces."""
    for name, bound in bounds_of(estimator).items():
        if bound is not None:
            raise ParameterError(
                f"{name}={bound!r} is kept on all rows together, which partial_fit and batches do "
                "not bring: call fit with an array, or leave it out"
            )


def warn_of_no_effect(estimator: BaseEstimator) -> None:
    """Warn, once for all of them, of parameters whose value means nothing here."""
    values = {name: getattr(estimator, name, None) for name in _WITHOUT_EFFECT}
    n_clusters, init_size = estimator.n_clusters, values["init_size"]
    if values["algorithm"] == "elkan" and n_clusters == 1:
        warnings.warn(
            "algorithm='elkan' doesn't make sense for a single cluster; 'lloyd' is used, as "
            "always here",
            RuntimeWarning,
            stacklevel=3,
        )
        del values["algorithm"]
    if init_size is not None and init_size < n_clusters:
        warnings.warn(
            f"init_size={init_size} should be larger than n_clusters={n_clusters}; leave it out: "
            f"{_WITHOUT_EFFECT['init_size'][1]}",
            RuntimeWarning,
            stacklevel=3,
        )
        del values["init_size"]
    said = [
        f"{name}={value!r} ({_WITHOUT_EFFECT[name][1]})"
        for name, value in values.items()
        if value is not None and _WITHOUT_EFFECT[name][0](value)
    ]
    if said:
        warnings.warn(f"without effect in streamkm: {'; '.join(said)}", UserWarning, stacklevel=3)


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
    if isinstance(random_state, Integral) and 0 <= int(random_state) <= LARGEST_SEED:
        return int(random_state)
    # It refuses other integers, and what is no generator.
    return int(check_random_state(random_state).randint(np.iinfo(np.int32).max))


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
