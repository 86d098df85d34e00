"""What a partition that is not finished keeps: a folder for it, and its cursor.

::

    DIR/unfinished/
      cursor.json       the step at work, how it was planned, and how far it has come
      *.npy, *.partial  what the order and the places of rows are made from
      *.bucket, *.place what a step has put in buckets, and where it goes from there

The cursor claims only what is on disk: ranges of rows, or of places, one for each process that
was at work. What is written after it is written again, with the same bytes at the same place, by
whichever process.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import torch

from streamkm.distributed.world import ALONE
from streamkm.errors import Interrupted, Option
from streamkm.files import make_directory, read_bytes, remove_tree, write_atomically
from streamkm.runs.partitioning.record import UNFINISHED
from streamkm.runs.partitioning.shares import joined
from streamkm.sealed import DAMAGE, seal, unseal
from streamkm.sources.base import RowRange

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from streamkm.config import ExecutionConfig
    from streamkm.distributed.world import World
    from streamkm.runs.reporting.progress import Progress
    from streamkm.runs.reporting.signals import StopRequest

__all__ = ["Reached", "Work"]

CURSOR = "cursor.json"


#: Seconds from one look at what processes want to the next, about, and batches at most.
LOOK_S, MOST_BATCHES = 0.2, 16

T = TypeVar("T")


class Reached(NamedTuple):
    """How far an earlier attempt has come in a step."""

    stage: str = ""
    """"" if it has not begun, or was planned otherwise."""
    done: tuple[RowRange, ...] = ()
    """Rows, or places, that are on disk."""


class Work:
    """What is unfinished of one partition, within one attempt.

    Several processes share the work of a step, each its own rows or places. Whoever has none, or
    none left, still takes part in `after_batch`, until nobody is busy.
    """

    def __init__(
        self,
        out: Path,
        execution: ExecutionConfig,
        stop_request: StopRequest,
        progress: Progress,
        world: World = ALONE,
    ) -> None:
        self.world = world
        self._batches_left = 1
        self._looked_at, self._period = time.monotonic(), 1
        self.out, self.folder, self.progress = out, out / UNFINISHED, progress
        self._cadence, self._stop_request = execution.checkpoint_every, stop_request
        self._saved_at, self._batches = time.monotonic(), 0
        self._doing = "beginning"
        if world.is_first:
            make_directory(self.folder)

    def doing(self) -> str:
        """What is done at the moment, for the message of an `AllocationError`."""
        return self._doing

    def is_there(self, path: Path) -> bool:
        """Whether `path` exists, as the first process sees it; a collective."""
        found: bool = self.world.gather(self.world.is_first and path.exists())[0]
        return found

    def opened(self, make: Callable[..., T], *, resumed: bool) -> T:
        """What `make` opens of files that all processes write; a collective.

        It takes `resumed`, whether they are there already: if not, the first process makes them.
        """
        made = [make(resumed=resumed)] if self.world.is_first else []
        self.world.meet()
        made = made or [make(resumed=True)]
        self.world.meet()  # The first may have nothing to do but to give it its name.
        return made[0]

    def begin(self, step: str, plan: dict[str, Any]) -> Reached:
        """How far an earlier attempt has come in `step`; a collective."""
        self._doing = step
        self._saved_at, self._batches = time.monotonic(), 0
        stage, done = self.world.gather(self._read(step, plan) if self.world.is_first else None)[0]
        return Reached(stage, tuple(RowRange(*ends) for ends in done))

    def _read(self, step: str, plan: dict[str, Any]) -> tuple[str, list[list[int]]]:
        try:
            found = unseal(read_bytes(self.folder / CURSOR))
            if (found["step"], found["plan"]) == (step, plan):
                done = found["done"]
                # One number, from the first on, is what older versions have saved.
                return str(found["stage"]), [[0, done]] if isinstance(done, int) else done
        except (OSError, *DAMAGE):
            pass
        return "", []

    def save(self, step: str, plan: dict[str, Any], stage: str, done: Iterable[RowRange]) -> None:
        """Claim that in `stage` of `step` what is `done` is on disk, in any process; collective."""
        self.world.meet()  # To bring it there may take a while.
        ends = self.world.gather([[each.start, each.stop] for each in done])
        if self.world.is_first:
            ranges = joined(RowRange(*each) for some in ends for each in some)
            claimed = [[each.start, each.stop] for each in ranges]
            cursor = {"step": step, "plan": plan, "stage": stage, "done": claimed}
            write_atomically(self.folder / CURSOR, seal(cursor))
        self.world.meet()
        self._saved_at, self._batches = time.monotonic(), 0

    def after_batch(self, save: Callable[[], None], *, is_busy: bool = True) -> bool:
        """Call `save` if that is due or a signal came; raise `Interrupted` after a signal.

        Returns whether any process has batches left. All call it until none has.
        """
        self._batches += 1
        self._batches_left -= 1
        if self._batches_left:
            return True
        asked, world = self._stop_request.signal_name, self.world
        elapsed_s = time.monotonic() - self._saved_at
        due = world.is_first and self._cadence.is_due(self._batches, elapsed_s)
        wanted = torch.tensor([asked is not None, due, is_busy, self._wanted_period()])
        world.sum_(wanted)
        n_asked, n_due, n_busy, self._period = wanted.tolist()
        self._batches_left = self._period
        if n_asked or n_due:
            save()
        if n_asked:
            name = next(filter(None, world.gather(asked)))
            raise Interrupted(
                f"stopped by {name}; what {self.out} has of the partition is saved: repeat with ",
                Option("resume", value=True),
                " to go on",
            )
        return bool(n_busy)

    def _wanted_period(self) -> int:
        """Batches to the next look, which the first process decides for all."""
        if self.world.size == 1:
            return 1
        now = time.monotonic()
        batch_s = max(now - self._looked_at, 1e-6) / self._period
        self._looked_at = now
        wanted = min(max(int(LOOK_S / batch_s), 1), MOST_BATCHES)
        return wanted if self.world.is_first else 0

    def discard(self) -> None:
        """Delete the folder: nothing is left to do."""
        if self.world.is_first:
            remove_tree(self.folder)
