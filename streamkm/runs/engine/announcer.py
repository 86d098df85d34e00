"""Announces an attempt: how it begins, how far it is, how it ended, where the time went."""

from __future__ import annotations

from typing import TYPE_CHECKING

from streamkm.devices import is_host
from streamkm.distributed.world import ALONE
from streamkm.kernels import kernel_notes
from streamkm.runs.engine.summary import final_figures, result_lines
from streamkm.runs.engine.timing import (
    PhaseClock,
    Waiting,
    hosts_of,
    process_figures,
    process_lines,
    stage_figures,
    stage_line,
)
from streamkm.runs.planning.environment import environment
from streamkm.stream.stages import StageTimes
from streamkm.tables import ALGORITHMS
from streamkm.text import counted

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from streamkm.distributed.world import World
    from streamkm.runs.engine.probe import Probe
    from streamkm.runs.engine.run_kernel import RunKernel
    from streamkm.runs.engine.snapshot import Cursor, Snapshot
    from streamkm.runs.planning.fit_plan import FitPlan
    from streamkm.runs.reporting.progress import Progress
    from streamkm.runs.storage.checkpoint import Checkpoint

__all__ = ["Announcer"]


class Announcer:
    """Says on `progress` what an attempt does, and records its figures there."""

    def __init__(
        self, plan: FitPlan, kernel: RunKernel, progress: Progress, world: World = ALONE
    ) -> None:
        self.progress = progress
        self.environment = environment(plan.device, plan.kernel)
        """What may change the last bits of a result; every checkpoint records it."""
        self._plan, self._kernel = plan, kernel
        self._clock, self._times = PhaseClock(), StageTimes()
        self._world, self._waiting = world, Waiting(world, on_host=is_host(plan.device))
        self._probe: Probe | None = None

    # ---- at the beginning ------------------------------------------------------------------

    def introduce(self) -> None:
        """Say what is clustered, under which settings, on which device, in how much memory."""
        if self.progress.is_silent:
            return
        plan, config, say = self._plan, self._plan.config, self.progress.say
        of_earlier = plan.earlier.notes(plan.config) if plan.earlier is not None else []
        of_kernel = kernel_notes(plan.execution.kernel, plan.device)
        self.progress.introduce(plan.source, [*of_kernel, *of_earlier])
        if plan.weights is not None:
            positive = f"{plan.weights.n_positive:,} of them positive"
            say(f"weights of rows: {plan.weights.name}, {positive}")
        begins = f"init {config.init}" if plan.earlier is None else f"from {config.from_run}"
        say(
            f"{config.algorithm}, k {config.k:,}, {config.metric}, scale {config.scale}, "
            f"{begins}, seed {config.seed}; epochs: at most {config.epochs:,}, each of "
            f"about {counted(plan.reading.n_batches(0), 'batch')} "
            f"of {config.batch_rows:,} rows or less"
        )
        if not (ALGORITHMS[config.algorithm].closes or config.closing_pass):
            say(
                f"note: each pass of {config.algorithm} could close the run; turning closing-pass "
                "off only leaves out the pass that would fill clusters which end without a row"
            )
        if self._world.size > 1:
            say(f"on {counted(self._world.size, 'process')} ({hosts_of(self._world)})")
        say(f"on {self.environment['device']}, {self._kernel}, {plan.memory}")
        if plan.device_memory is not None:
            say(str(plan.device_memory))
        if plan.resident is not None:
            say(f"stays in memory once it was read: {plan.resident}")

    def resumed(self, checkpoint: Checkpoint, cursor: Cursor) -> None:
        """Say where the attempt goes on, and what has changed that may change the last bits."""
        say = self.progress.say
        say(f"resumed: from {checkpoint.path.name} ({cursor})")
        saved_in = checkpoint.manifest["environment"]
        for name, here in self.environment.items():
            if (before := saved_in.get(name, "not recorded")) != here:
                say(
                    f"note: {name} was {before} and is {here}: the result will be as good, "
                    "but its last bits may differ from an uninterrupted run's"
                )

    # ---- on the way ----------------------------------------------------------------------------

    def phase(self, name: str) -> AbstractContextManager[None]:
        """Count the time of a ``with`` block as time of the phase `name`."""
        return self._clock.phase(name)

    def begin(self, phase: str, n_passes: int, done: int) -> StageTimes:
        """Show `n_passes` passes, `done` rows of them done; returns where their times go."""
        if phase not in ("close", "sizes"):  # These add to the times of training.
            self._times = StageTimes()
            self._waiting.begin()
        n_rows = n_passes * self._plan.reading.n_rows
        self.progress.begin(phase, n_rows, self._times, done=done)
        return self._times

    def report(self, now: Snapshot) -> None:
        """Show and record the figures of `now`, and what the kernel did."""
        self._waiting.count(self._times)
        if not self.progress.is_silent:  # Fetching the figures waits for the device.
            self.progress.report({**now.figures(), **self._kernel.shares()})

    def probed(self, probe: Probe) -> None:
        """Say and record what `probe` found; `conclude` compares the passes with it."""
        self._probe = probe
        self.progress.record({"phase": "probe", **probe.as_dict()})
        for line in probe.lines():
            self.progress.say(line)

    # ---- at the end ----------------------------------------------------------------------------

    def conclude(self, now: Snapshot, reason: str) -> None:
        """Say how the run ended, what came out and where the time went; a collective."""
        processes = []
        if self._world.size > 1:
            self._waiting.count(self._times)
            waited_s, assigned = self._waiting.seconds, self._kernel.assigned
            processes = process_figures(self._world, self._times, waited_s, assigned)
        if self.progress.is_silent:
            return
        figures, say, assigned = final_figures(now), self.progress.say, self._kernel.assigned
        timing = stage_figures(self._times, self._probe, self._clock, assigned)
        line = stage_line(self._times, self._probe, assigned, timing) if assigned.total() else ""
        lines = [line] if line else []
        if processes:
            self.progress.record({"phase": "processes", "processes": processes})
            lines = [f"process 0: {line}" for line in lines] + process_lines(processes)
            n_rows = sum(each["rows"] for each in processes)
            timing["rows_per_s"] = round(n_rows / self._times.elapsed_s, 1)
        self.progress.record({"phase": "end", "stopped_by": reason, **figures, **timing})
        say(f"stopped: {reason}; {counted(figures['step'], 'step')} in all")
        all_on_centroids = now.state is None or not bool(
            now.state.reservoir_keys_R.isfinite().any()
        )
        for line in result_lines(
            figures, self._plan.config, now.cursor.phase, all_on_centroids=all_on_centroids
        ):
            say(line)
        if figures["reseeded"]:
            say(f"reseeded: {counted(figures['reseeded'], 'cluster')}, empty or starved")
        if figures["dropped"]:
            rows = counted(figures["dropped"], "row")
            say(f"dropped: {rows} with NaN or infinity, in every epoch")
        for line in (str(self._clock), *lines):
            say(line)
