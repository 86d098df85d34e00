"""Shares the work of an estimator among the processes of a group that the program has."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from streamkm.distributed.world import world
from streamkm.estimators.inputs import open_rows

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sklearn.base import BaseEstimator

    from streamkm.estimators.inputs import InputRows

__all__ = ["open_shared_rows"]


@contextmanager
def open_shared_rows(estimator: BaseEstimator, X: Any, *, reset: bool) -> Iterator[InputRows]:
    """`open_rows` in all processes of torch.distributed's group, if the program has initialised it.

    All must come here. An error that leaves the block in one ends it in the others.
    """
    processes = world()
    with processes.telling(), open_rows(estimator, X, reset=reset) as rows:
        yield replace(rows, world=processes)
