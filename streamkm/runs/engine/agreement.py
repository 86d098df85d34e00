"""Lets the processes of a run save and stop at the same step.

A signal reaches one process, and a clock says in another that a checkpoint is due. What each wants
is added up every few steps, in a tiny all-reduce that is begun after one of these steps and looked
at after the next, so that nobody waits for it. All learn the same after the same step.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from streamkm.distributed.pending import Pending
    from streamkm.distributed.world import World

__all__ = ["Agreement"]

#: Seconds from one look to the next, about: a signal is answered after two of them.
LOOK_S = 0.2
#: Steps from one look to the next, at most: few, for those to come may be slower than those before.
MOST_STEPS = 16


class Agreement:
    """What the processes of `world` want; all call `after_step` the same number of times."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._flags = torch.zeros(3, dtype=torch.int64)
        self._pending: Pending | None = None
        self.begin()

    def begin(self) -> None:
        """Forget how long steps took, because steps of another kind follow.

        What is under way is not answered. A process that still wants it says so again.
        """
        self.finish()
        self._due_is_said = False
        self._steps_left = 1
        self._period = 1
        self._looked_at = time.monotonic()

    def after_step(self, *, stop: bool, due: bool) -> tuple[bool, bool]:
        """Whether any process wanted to stop, and whether any wanted to save, two looks ago."""
        if self._world.size == 1:
            return stop, due
        self._steps_left -= 1
        if self._steps_left:
            return False, False
        period = self._wanted_period()  # From the time of the period that has passed.
        agreed = self._collect()
        # What is under way is not said again: it would be answered twice.
        self._due_is_said = due and not self._due_is_said
        self._flags = torch.tensor([stop, self._due_is_said, period])
        self._pending = self._world.sum_later(self._flags)
        self._steps_left = self._period
        return agreed

    def finish(self) -> None:
        """Wait for what is under way; nothing is answered any more."""
        self._collect()

    def _collect(self) -> tuple[bool, bool]:
        if self._pending is None:
            return False, False
        self._pending.wait()
        self._pending = None
        n_stopping, n_due, self._period = self._flags.tolist()
        return n_stopping > 0, n_due > 0

    def _wanted_period(self) -> int:
        """The number of steps to the look after the next, which process 0 decides for all."""
        now = time.monotonic()
        step_s = max(now - self._looked_at, 1e-6) / self._period
        self._looked_at = now
        return min(max(int(LOOK_S / step_s), 1), MOST_STEPS) if self._world.is_first else 0
