"""Sums over all rows of a run that are the same whoever adds up which rows.

Each process adds its batches to graded sums (see `streamkm.kernels.add_graded_`), and at the end
all take theirs together: whole numbers, of which no order shows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from streamkm.kernels import raise_grades_

if TYPE_CHECKING:
    from collections.abc import Sequence

    from streamkm.distributed.world import World

__all__ = ["serial_sum", "sum_graded_"]

#: Numbers that are added up at once: few enough that torch uses one thread.
SERIAL_ROWS = 1 << 14


def sum_graded_(
    world: World, graded: Sequence[tuple[torch.Tensor, torch.Tensor]], *counts: torch.Tensor
) -> None:
    """Replace graded sums, and sums of integers, by those over all processes; all call it.

    Parameters
    ----------
    world : World
        The processes.
    graded : sequence of (int64 Tensor of shape (2, K, D), int64 Tensor of shape (K,))
        Sums and their grades.
    *counts : int64 Tensor
        Sums of integers, of any shape.
    """
    if world.size == 1:
        return
    raised = [grades_K.clone() for _, grades_K in graded]
    world.max_(*raised)
    for (sums_LKD, grades_K), raised_K in zip(graded, raised, strict=True):
        raise_grades_(sums_LKD, grades_K, raised_K)
    world.sum_(*(sums_LKD for sums_LKD, _ in graded), *counts)


def serial_sum(values: torch.Tensor) -> torch.Tensor:
    """The sum in float64, in one order whatever threads torch has."""
    parts = [part.sum(dtype=torch.float64) for part in values.reshape(-1).split(SERIAL_ROWS)]
    return torch.stack(parts).sum()
