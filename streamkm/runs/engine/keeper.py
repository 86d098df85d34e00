"""Keeps an attempt safe: counts its steps, saves checkpoints and answers signals.

The attempt tells the keeper of every batch. The keeper counts the step; it reports, saves or
stops when that is due. Nothing that it does changes what is computed.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from streamkm.clustering.state import RUNNING
from streamkm.devices import is_host
from streamkm.distributed.world import ALONE
from streamkm.errors import Interrupted, Option, StorageError
from streamkm.runs.engine.agreement import Agreement
from streamkm.runs.engine.checkpoint_schema import check_checkpoint
from streamkm.runs.engine.fetching import Fetcher
from streamkm.runs.engine.snapshot import Snapshot, of_first
from streamkm.runs.reporting.bad_rows import non_finite_error
from streamkm.runs.storage.checkpoint import NoCheckpoints

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import numpy as np
    import torch

    from streamkm.clustering.algorithm import Algorithm
    from streamkm.distributed.world import World
    from streamkm.runs.engine.announcer import Announcer
    from streamkm.runs.engine.snapshot import Cursor
    from streamkm.runs.planning.fit_plan import FitPlan
    from streamkm.runs.reporting.signals import StopRequest
    from streamkm.runs.storage.checkpoint import Checkpointer

__all__ = ["Keeper"]


class Keeper:
    """Holds `now`, the snapshot of an attempt; moves it along and saves it."""

    def __init__(
        self,
        plan: FitPlan,
        now: Snapshot,
        checkpoints: Checkpointer | NoCheckpoints,
        announcer: Announcer,
        stop_request: StopRequest,
        world: World = ALONE,
    ) -> None:
        self.now = now
        self.is_stopped = False
        """Whether training is over before its last epoch; looked up at every report, so at least
        once an epoch."""
        self._plan, self._announcer, self._progress = plan, announcer, announcer.progress
        self._checkpoints, self._stop_request = checkpoints, stop_request
        self.world, self._agreement = world, Agreement(world)
        self.algorithm: Algorithm | None = None
        """The one whose epoch is under way: it knows what processes have of the state."""
        self._fetcher: Fetcher | None = None
        self._found_dropped = False

    def restore(self) -> None:
        """Go on from the newest checkpoint that fits the run, if there is one."""
        checkpoint = None
        if self.world.is_first:
            checkpoint = self._checkpoints.load(partial(check_checkpoint, plan=self._plan))
        if self.world.size > 1:
            checkpoint = of_first(checkpoint, self.world)
        if checkpoint is None:
            return
        self.now = Snapshot.from_checkpoint(checkpoint, self._plan.device, self._plan.config)
        self.is_stopped = self._has_stopped()
        self._announcer.resumed(checkpoint, self.now.cursor)

    # ---- what the attempt tells --------------------------------------------------------------

    def after_batch(self, cursor: Cursor, n_rows: int, *, asks: bool = True) -> None:
        """Move to `cursor`: a batch of `n_rows` rows has been applied; see `after_step`."""
        self.now.cursor = cursor
        self.after_step(n_rows, asks=asks)

    def after_step(self, n_units: int, *, asks: bool = True) -> None:
        """Count a step of `n_units` (rows, or units of a stage); report, save, stop if due.

        If not `asks`, it neither saves nor stops: amid its blocks a process waits for no other.
        """
        self.now.step += 1
        self.world.check()
        self._progress.advance(n_units)
        if self._progress.is_due():
            self.report()
        if self.world.size > 1:
            # Looked up by all at the same step: who ends an epoch early waits for nobody.
            self.is_stopped = self._has_stopped()
        if not asks:
            return
        name = self._stop_request.signal_name
        stops, is_due = self._agreement.after_step(
            stop=name is not None,
            due=self._checkpoints.is_due(self.now.step),
        )
        if is_due:
            self.save()
        if stops:
            self._stop(name)

    def after_epoch(self, cursor: Cursor) -> None:
        """Move to `cursor`, where the next epoch begins, and report."""
        self.now.cursor = cursor
        self.report()
        if self.world.size > 1 and self.now.state is not None:
            self.check_dropped(self.now.state.n_dropped)

    def move_to(self, cursor: Cursor) -> None:
        """Move to `cursor`, where the next phase, or round of k-means||, begins."""
        self.now.cursor = cursor
        self.is_stopped = False
        self.begin_steps()

    def begin_steps(self) -> None:
        """Steps of another kind follow, which may take longer: all look at each other anew."""
        self._agreement.begin()

    # ---- what the keeper does ----------------------------------------------------------------

    def report(self) -> None:
        """Fetch the scalars of the state, which waits for the device; check and show them."""
        if self.world.size == 1:  # Others know their own rows only, and are at other places.
            self.check_dropped((self.now.state or self.now.moments).n_dropped)
        self._announcer.report(self.now)
        self.is_stopped = self._has_stopped()

    def _has_stopped(self) -> bool:
        state = self.now.state
        return self.now.cursor.phase == "train" and state is not None and int(state.stop) != RUNNING

    def check_dropped(self, n_dropped: torch.Tensor) -> None:
        """Refuse rows that are not finite, unless the settings say to drop them.

        All processes find the same number at the same place. The first alone looks for the row,
        however long that takes, and tells the others.
        """
        if self._plan.config.nan == "error" and (n_found := int(n_dropped)):
            if not self.world.is_first:
                self.world.meet()
            raise non_finite_error(self._plan.source, n_found, of_fit=True)

    def save(self, *, is_last: bool = False) -> Path | None:
        """Save a checkpoint, but none that counts rows which `check_dropped` refuses.

        A device that queues its work is not waited for, unless the checkpoint is the last: a thread
        waits for what must be saved, and writes it.
        """
        now, checkpoints = self.now, self._checkpoints
        waits = is_last or self.world.size > 1 or is_host(self._plan.device)
        if self.world.size > 1:
            now = now.gathered(self.world, self.algorithm)
        if waits and now.state is not None:
            self.check_dropped(now.state.n_dropped)
        if isinstance(checkpoints, NoCheckpoints):
            return None
        manifest = {**now.manifest(), "environment": dict(self._announcer.environment)}
        if waits:
            return checkpoints.save(now.step, now.tensors(), manifest, is_last=is_last)
        checkpoints.wait()
        if self._found_dropped and now.state is not None:
            self.check_dropped(now.state.n_dropped)
        self._fetcher = self._fetcher or Fetcher(self._plan.device)
        fetched = self._fetcher.fetch(now.on_device())
        checkpoints.save_later(now.step, partial(self._usable, fetched), manifest)
        return None

    def _usable(self, fetched: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray] | None:
        """The tensors of a checkpoint, None if they count rows that `check_dropped` refuses."""
        arrays = fetched()
        n_dropped = arrays.get("state.n_dropped")
        if self._plan.config.nan == "error" and n_dropped is not None and int(n_dropped):
            self._found_dropped = True
            return None
        return arrays

    def finish(self) -> None:
        """End the attempt: no step follows."""
        self._agreement.finish()

    def stop_if_asked(self) -> None:
        """If a signal has come, save and raise `Interrupted`.

        Between steps, where processes may be at different places, each goes on: `after_step` asks
        them together. But who is lost is noticed.
        """
        self.world.check()
        name = self._stop_request.signal_name
        if self.world.size == 1 and name is not None:
            self._stop(name)

    def _stop(self, name: str | None) -> None:
        # Not every process has got a signal.
        name = next(filter(None, self.world.gather(name)))
        resume = Option("resume", value=True)
        try:
            path = self.save(is_last=True)
        except OSError as error:
            raise StorageError(
                f"stopped by {name}, and the checkpoint cannot be saved ({error}); those "
                "before it are intact: free space, or mend what keeps the disk from being "
                "written, then go on from the newest with ",
                resume,
            ) from error
        if path is None:
            raise Interrupted(f"stopped by {name}; nothing is saved")
        raise Interrupted(f"stopped by {name}; {path} is saved: repeat with ", resume)
