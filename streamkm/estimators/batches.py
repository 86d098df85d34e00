"""Takes X as an iterator of batches: of a generator, or of a loader that can be iterated again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from sklearn.base import clone

from streamkm.clustering.algorithm import stop_reason
from streamkm.clustering.state import RUNNING
from streamkm.errors import ParameterError

__all__ = ["fit_batches", "is_batches", "update_by_batches"]


def is_batches(X: Any) -> bool:
    """Whether `X` can be iterated, and is neither an array nor a sequence: its items are batches.

    So a generator and a ``DataLoader`` of PyTorch are, and a list of rows is not.
    """
    is_array = any(hasattr(X, name) for name in ("__getitem__", "__array__", "shape"))
    return isinstance(X, Iterable) and not is_array


def update_by_batches(estimator: Any, batches: Iterable[Any], weights: Any) -> int:
    """Call `partial_fit` for each batch; returns their number.

    Raises
    ------
    ParameterError
        If there are weights, or no batch.
    """
    if weights is not None:
        raise ParameterError(
            "sample_weight cannot be told for an iterator of batches; call partial_fit for each "
            "batch with its own weights"
        )
    n_batches = 0
    for batch in batches:
        estimator.partial_fit(batch)
        n_batches += 1
    if not n_batches:
        raise ParameterError("X is an iterator that yields no batch; it may have been read before")
    return n_batches


def fit_batches(estimator: Any, batches: Iterable[Any], weights: Any) -> None:
    """Fit `estimator` anew, by one update for each batch in each of its `max_iter` passes.

    Raises
    ------
    ParameterError
        If a parameter asks for what batches that are gone cannot give.
    """
    passes = 1 if estimator.max_iter is None else int(estimator.max_iter)
    if passes > 1 and isinstance(batches, Iterator):
        raise ParameterError(
            f"max_iter={passes} needs an X that can be iterated again, such as a DataLoader; an "
            "iterator is read once: give max_iter=1, or write its batches to a file"
        )
    for name, value in (
        ("run_dir", estimator.run_dir),
        ("compute_labels", estimator.compute_labels),
    ):
        if value not in (None, "auto", False):
            raise ParameterError(
                f"{name}={value!r} needs rows that can be read again, which an iterator of batches "
                "does not give: leave it out, or write its batches to a file"
            )
    # An error leaves the estimator as it was.
    fresh = clone(estimator).set_params(compute_labels=False)
    for _ in range(passes):
        update_by_batches(fresh, batches, weights)
    fresh.n_iter_, fresh.stop_reason_ = passes, stop_reason(RUNNING, "minibatch", passes)
    parameters = estimator.get_params(deep=False)
    fitted = {name: value for name, value in vars(fresh).items() if name not in parameters}
    for name in ("labels_", "feature_names_in_"):
        vars(estimator).pop(name, None)
    estimator.__dict__.update(fitted)
