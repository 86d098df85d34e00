"""Shares the work of an estimator among the processes of a group that the program has."""

from __future__ import annotations

import os
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch.distributed as dist

from streamkm.distributed.current import world
from streamkm.distributed.world import ALONE
from streamkm.estimators.inputs import open_rows

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sklearn.base import BaseEstimator

    from streamkm.estimators.inputs import InputRows

__all__ = ["open_shared_rows"]

#: The group of the process that this one was forked from. It looks like its own, but nobody answers
#: a child: a worker of a DataLoader works alone.
_inherited: object = None


def _note_what_is_inherited() -> None:
    global _inherited
    _inherited = dist.group.WORLD if dist.is_available() and dist.is_initialized() else None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note_what_is_inherited)


@contextmanager
def open_shared_rows(estimator: BaseEstimator, X: Any, *, reset: bool) -> Iterator[InputRows]:
    """`open_rows` in all processes of torch.distributed's group, if the program has initialised it.

    All must come here. An error that leaves the block in one ends it in the others.
    """
    is_child = _inherited is not None and dist.group.WORLD is _inherited
    processes = ALONE if is_child else world()
    with processes.telling(), open_rows(estimator, X, reset=reset) as rows:
        yield replace(rows, world=processes)
