"""What a partition that is not finished keeps: a folder for it, and its cursor.

::

    DIR/unfinished/
      cursor.json       the step at work, how it was planned, and how far it has come
      *.npy, *.partial  what the order and the places of rows are made from
      *.bucket, *.place what a step has put in buckets, and where it goes from there

The cursor claims only what is on disk. What is written after it is written again, with the same
bytes at the same place.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from streamkm.errors import Interrupted, Option
from streamkm.files import make_directory, read_bytes, remove_tree, write_atomically
from streamkm.runs.partitioning.record import UNFINISHED
from streamkm.sealed import DAMAGE, seal, unseal

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from streamkm.config import ExecutionConfig
    from streamkm.runs.reporting.progress import Progress
    from streamkm.runs.reporting.signals import StopRequest

__all__ = ["Work"]

CURSOR = "cursor.json"


class Work:
    """What is unfinished of one partition, within one attempt."""

    def __init__(
        self,
        out: Path,
        execution: ExecutionConfig,
        stop_request: StopRequest,
        progress: Progress,
    ) -> None:
        self.out, self.folder, self.progress = out, out / UNFINISHED, progress
        self._cadence, self._stop_request = execution.checkpoint_every, stop_request
        self._saved_at, self._batches = time.monotonic(), 0
        self._doing = "beginning"
        make_directory(self.folder)

    def doing(self) -> str:
        """What is done at the moment, for the message of an `AllocationError`."""
        return self._doing

    def begin(self, step: str, plan: dict[str, Any]) -> tuple[str, int]:
        """The stage of `step` that an earlier attempt has reached, and how far it had come.

        Without one, or if it was planned otherwise, that is ("", 0).
        """
        self._doing = step
        self._saved_at, self._batches = time.monotonic(), 0
        try:
            found = unseal(read_bytes(self.folder / CURSOR))
            if (found["step"], found["plan"]) == (step, plan):
                return str(found["stage"]), int(found["done"])
        except (OSError, *DAMAGE):
            pass
        return "", 0

    def save(self, step: str, plan: dict[str, Any], stage: str, done: int) -> None:
        """Claim that `stage` of `step` has come to `done`, which is on disk."""
        cursor = {"step": step, "plan": plan, "stage": stage, "done": done}
        write_atomically(self.folder / CURSOR, seal(cursor))
        self._saved_at, self._batches = time.monotonic(), 0

    def after_batch(self, save: Callable[[], None]) -> None:
        """Call `save` if that is due or a signal came; raise `Interrupted` after a signal."""
        self._batches += 1
        asked = self._stop_request.signal_name
        if asked or self._cadence.is_due(self._batches, time.monotonic() - self._saved_at):
            save()
        if asked:
            raise Interrupted(
                f"stopped by {asked}; what {self.out} has of the partition is saved: repeat with ",
                Option("resume", value=True),
                " to go on",
            )

    def discard(self) -> None:
        """Delete the folder: nothing is left to do."""
        remove_tree(self.folder)
