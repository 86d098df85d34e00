"""One attempt at a fit, from where the last one stopped: scale, seed, train, close.

A run goes through four phases. ``scale`` takes the moments of the features in
one pass, where z-score or min-max need them. ``seed`` draws a sample and finds
the first centroids (see `runs.seeding`). ``train`` streams the epochs. ``close``
is a pass of Lloyd's algorithm after those of mini-batches, and after others where clusters are left
without a row; its epochs are numbered on from --epochs. The cursor says how many
batches of which epoch of which phase have been *applied*; what was read ahead
is not counted. Everything that is computed is a function of the cursor and the
state before it, so that a run that goes on from a checkpoint ends with the
same bits as one that was never stopped.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING

import torch

from streamkm.clustering.lloyd import is_closed
from streamkm.clustering.scaling import RunningMoments, Scaling
from streamkm.clustering.state import RUNNING, STOP_REASONS
from streamkm.config import counted
from streamkm.errors import Interrupted, Option, StorageError
from streamkm.kernels import kernel_notes, measuring
from streamkm.runs.checkpoint import NoCheckpoints
from streamkm.runs.demanded import check_checkpoint
from streamkm.runs.devices import environment
from streamkm.runs.interrupts import StopRequest
from streamkm.runs.model import Model
from streamkm.runs.outcome import final_figures, model_figures, result_lines
from streamkm.runs.probe import Prober
from streamkm.runs.rows import non_finite_error
from streamkm.runs.seeding import SeedingPhase
from streamkm.runs.snapshot import Cursor, Snapshot
from streamkm.runs.timing import PhaseClock, stage_figures, stage_line
from streamkm.stream.pipeline import stream
from streamkm.stream.slots import HostSlots
from streamkm.stream.stages import StageTimes

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from streamkm.clustering.lloyd import Lloyd
    from streamkm.clustering.minibatch import MiniBatch
    from streamkm.clustering.state import KMeansState
    from streamkm.runs.checkpoint import Checkpoint, Checkpointer
    from streamkm.runs.probe import Probe
    from streamkm.runs.progress import Progress
    from streamkm.runs.setup import FitSetup
    from streamkm.stream.plan import Plan, Window
    from streamkm.stream.transfer import DeviceWindow

__all__ = ["Attempt"]


class Attempt:
    """One attempt at a fit; what must survive it is the cursor, the step and the tensors."""

    def __init__(self, setup: FitSetup) -> None:
        self._setup = setup
        self._source, self._config, self._device = setup.source, setup.config, setup.device
        self._weights, self._plan = setup.weights, setup.plan
        self._arithmetic = setup.arithmetic()
        self._environment = environment(self._device, self._arithmetic.kernel_name)
        self._probe: Probe | None = None
        self._clock = PhaseClock()

        needs_moments = self._config.scale in ("zscore", "minmax")
        self._now = Snapshot(
            Cursor("scale" if needs_moments else "seed"),
            RunningMoments.empty(self._source.spec.n_features, self._device),
        )
        self._times = StageTimes()
        self._is_stopped = False

    def run(
        self,
        checkpoints: Checkpointer | NoCheckpoints,
        progress: Progress,
        stop_request: StopRequest,
    ) -> Model:
        """Go through the phases that are left."""
        self._begin(checkpoints, progress, stop_request)
        checkpoint = checkpoints.load(partial(check_checkpoint, setup=self._setup))
        if checkpoint is not None:
            self._restore(checkpoint)
        now = self._now
        with HostSlots(self._setup.memory.stream, self._device) as self._slots:
            state, scaling = self._until_seeded(now)
            if self._setup.execution.probe:
                self._measure(now, state, scaling)
            if now.cursor.phase == "train":
                with self._clock.phase("train"):
                    self._train(now, state, scaling)
            if now.cursor.phase == "close":
                with self._clock.phase("close"):
                    self._close(now, state, scaling)
        all_done = f"all epochs are done ({self._config.epochs:,})"
        self._conclude(STOP_REASONS.get(int(state.stop), all_done))
        return self._model(state, scaling)

    def doing(self) -> str:
        """Where it stands, for an error that does not know."""
        return f"fitting, after step {self._now.step:,} ({self._now.cursor})"

    def seed(self, progress: Progress) -> Model:
        """Only pick the first centroids; no row is counted in the model."""
        self._begin(NoCheckpoints(), progress, StopRequest())
        with HostSlots(self._setup.memory.stream, self._device) as self._slots:
            return self._model(*self._until_seeded(self._now))

    def _begin(
        self,
        checkpoints: Checkpointer | NoCheckpoints,
        progress: Progress,
        stop_request: StopRequest,
    ) -> None:
        self._checkpoints, self._progress, self._stop_request = checkpoints, progress, stop_request
        self._announce()

    def _until_seeded(self, now: Snapshot) -> tuple[KMeansState, Scaling]:
        """Go through what is left before training."""
        if now.cursor.phase == "scale":
            with self._clock.phase("scale"):
                self._scale(now)
        if now.cursor.phase in ("rounds", "seed"):
            with self._clock.phase("seed"):
                self._seed(now)
        assert now.state is not None
        assert now.scaling is not None
        return now.state, now.scaling

    def _model(self, state: KMeansState, scaling: Scaling) -> Model:
        return Model(
            state.centroids_KD,
            state.counts_K,
            state.sums_KD,
            state.weights_K,
            scaling,
            self._config.as_dict(),
            self._now.settled_inertia(),
            model_figures(state, scaling, self._plan, self._config, self._source.spec.dtype),
        )

    def _conclude(self, reason: str) -> None:
        """Say how the run ended."""
        figures, say = final_figures(self._now), self._progress.say
        timing = stage_figures(self._times, self._probe, self._clock)
        self._progress.record({"phase": "end", "stopped_by": reason, **figures, **timing})
        say(f"stopped: {reason}; {counted(figures['step'], 'step')} in all")
        for line in result_lines(figures, self._config.k, self._now.cursor.phase):
            say(line)
        if figures["reseeded"]:
            say(f"reseeded: {counted(figures['reseeded'], 'cluster')}, empty or starved")
        if figures["dropped"]:
            rows = counted(figures["dropped"], "row")
            say(f"dropped: {rows} with NaN or infinity, in every epoch")
        say(str(self._clock))
        if self._clock.rows:
            say(stage_line(self._times, self._probe, self._clock, timing))

    # ---- the phases ---------------------------------------------------------

    def _scale(self, now: Snapshot) -> None:
        """Take the moments of every feature, in one pass."""
        plan, first = replace(self._plan, seed=None), now.cursor
        done = plan.rows_before(0, first.batch)
        with self._stream("scale", plan.windows(0, first.batch), done) as windows:
            for window in windows:
                for index, rows in window.batches(first.batch):
                    x_BD = window.x_ND[rows]
                    weights_N = window.weights_N
                    now.moments.update_(x_BD, None if weights_N is None else weights_N[rows])
                    now.cursor = Cursor("scale", 0, index + 1)
                    self._after_batch(len(x_BD))
        self._check_dropped(now.moments.n_dropped)
        now.scaling = Scaling.fit(
            self._config.scale, self._config.metric, now.moments, self._setup.dtype
        )
        now.cursor = Cursor("seed")

    def _seed(self, now: Snapshot) -> None:
        """Find the first centroids."""
        phase = SeedingPhase(
            self._source,
            self._plan,
            self._config,
            self._setup.seeding_plan,
            self._setup.given_KD,
            self._arithmetic,
            self._slots,
            self._progress,
            now,
            self._weights,
            after_step=self._after_batch,
            pause=self._stop_if_asked,
            check_dropped=self._check_dropped,
        )
        now.state = phase.run()
        now.candidates, now.seeding, now.cursor = None, {}, Cursor("train")
        # A step by itself: a checkpoint of an attempt that was stopped before has the number.
        now.step += 1
        self._save()

    def _measure(self, now: Snapshot, state: KMeansState, scaling: Scaling) -> None:
        """Find out what each stage could do alone; nothing of the run is touched."""
        with self._clock.phase("probe"):
            prober = Prober(self._setup, self._slots, scaling)
            self._probe = prober.measure(state, closing_only=now.cursor.phase == "close")
        self._progress.record({"phase": "probe", **self._probe.as_dict()})
        for line in self._probe.lines():
            self._progress.say(line)

    def _train(self, now: Snapshot, state: KMeansState, scaling: Scaling) -> None:
        """Stream the epochs that are left."""
        config = self._config
        left = range(now.cursor.epoch, now.cursor.epoch if self._is_stopped else config.epochs)
        self._passes(
            now, state, scaling, self._arithmetic.algorithm(self._plan.n_rows), self._plan, left
        )
        must_close = config.algorithm == "minibatch" or bool((state.counts_K == 0).any())
        if config.closing_pass and must_close:
            now.cursor = Cursor("close", config.epochs)

    def _close(self, now: Snapshot, state: KMeansState, scaling: Scaling) -> None:
        """Make the centroids the means of exact clusters, none of them empty if that can be."""
        plan, algorithm = replace(self._plan, seed=None), self._arithmetic.closing()
        first = self._config.epochs
        while now.cursor.epoch == first or now.cursor.batch or not is_closed(state):
            if now.cursor.epoch > first and now.cursor.batch == 0:
                self._progress.say("note: another closing pass, some clusters have no row yet")
            self._passes(
                now, state, scaling, algorithm, plan, range(now.cursor.epoch, now.cursor.epoch + 1)
            )

    def _passes(
        self,
        now: Snapshot,
        state: KMeansState,
        scaling: Scaling,
        algorithm: MiniBatch | Lloyd,
        plan: Plan,
        epochs: range,
    ) -> None:
        """Stream `epochs` through `algorithm`, from the cursor on."""
        first, closing = now.cursor, now.cursor.phase == "close"
        workspace_BD = torch.empty(
            (self._config.batch_rows, self._source.spec.n_features),
            dtype=scaling.row_dtype(
                self._setup.stored, self._setup.dtype, algorithm.kernel.stored_dtypes
            ),
            device=self._device,
        )
        kernel = measuring(algorithm.kernel)
        # Readers go from one epoch to the next without a pause.
        upcoming = chain.from_iterable(
            plan.windows(epoch, first.batch if epoch == first.epoch else 0) for epoch in epochs
        )
        done = plan.rows_before(first.epoch, first.batch)
        done += 0 if closing else first.epoch * plan.n_rows
        with self._arithmetic.cores(), self._stream(first.phase, upcoming, done) as windows:
            for window in windows:
                epoch = window.window.epoch
                for index, rows in window.batches(first.batch if epoch == first.epoch else 0):
                    if index == 0:
                        state.begin_epoch_(closing=closing)
                    batch = scaling.prepare(
                        window.x_ND, rows, workspace_BD, window.weights_N, measured_by=kernel
                    )
                    algorithm.update_(state, batch, epoch=epoch, index=index)
                    self._arithmetic.n_assigned += len(batch)
                    self._clock.rows[first.phase] += len(batch)
                    now.cursor = Cursor(first.phase, epoch, index + 1)
                    if index == window.window.last_batch:
                        algorithm.finish_epoch_(state)
                        now.cursor = Cursor(first.phase, epoch + 1)
                    self._after_batch(len(batch))
                    if now.cursor.batch == 0:
                        self._report()
                if self._is_stopped and not closing:
                    break
        self._check_dropped(state.n_dropped)

    # ---- parts of them ------------------------------------------------------

    @contextmanager
    def _stream(
        self, phase: str, windows: Iterator[Window], done: int
    ) -> Iterator[Iterator[DeviceWindow]]:
        if phase != "close":  # Which goes on with the times of training.
            self._times = StageTimes()
        n_passes = self._config.epochs if phase == "train" else 1
        self._progress.begin(phase, n_passes * self._plan.n_rows, self._times, done=done)
        with stream(
            self._source, windows, self._slots, self._times, self._weights
        ) as device_windows:
            yield device_windows

    # ---- after every batch --------------------------------------------------

    def _after_batch(self, n_rows: int) -> None:
        self._now.step += 1
        self._progress.advance(n_rows)
        if self._progress.is_due():
            self._report()
        if self._checkpoints.is_due(self._now.step):
            self._save()
        self._stop_if_asked()

    def _stop_if_asked(self) -> None:
        name = self._stop_request.signal_name
        if name is not None:
            resume = Option("resume", value=True)
            try:
                path = self._save(is_last=True)
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

    def _report(self) -> None:
        """Fetch the scalars, which waits for the device, and show them."""
        state = self._now.state
        self._check_dropped((state or self._now.moments).n_dropped)
        self._progress.report({**self._now.figures(), **self._arithmetic.rechecked()})
        self._is_stopped = state is not None and int(state.stop) != RUNNING

    def _check_dropped(self, n_dropped: torch.Tensor) -> None:
        if self._config.nan == "error" and (n_found := int(n_dropped)):
            raise non_finite_error(self._source, n_found)

    # ---- checkpoints --------------------------------------------------------

    def _save(self, *, is_last: bool = False) -> Path | None:
        """Save a checkpoint of what has been applied, never of rows that must not be used."""
        now = self._now
        if now.state is not None:
            self._check_dropped(now.state.n_dropped)
        manifest = {**now.manifest(), "environment": self._environment}
        return self._checkpoints.save(now.step, now.tensors(), manifest, is_last=is_last)

    def _restore(self, checkpoint: Checkpoint) -> None:
        self._now = Snapshot.from_checkpoint(checkpoint, self._device, self._config)
        if self._now.state is not None:
            self._is_stopped = int(self._now.state.stop) != RUNNING
        say = self._progress.say
        say(f"resumed: from {checkpoint.path.name} ({self._now.cursor})")
        saved_in = checkpoint.manifest["environment"]
        for name, here in self._environment.items():
            if (before := saved_in.get(name, "not told")) != here:
                say(
                    f"note: {name} was {before} and is {here}: the result will be as good, "
                    "but its last bits may differ from an uninterrupted run's"
                )

    def _announce(self) -> None:
        config = self._config
        notes = kernel_notes(self._setup.execution.kernel, self._device)
        self._progress.introduce(self._source, notes)
        if self._weights is not None:
            positive = f"{self._weights.n_positive:,} of them positive"
            self._progress.say(f"weights of rows: {self._weights.name}, {positive}")
        self._progress.say(
            f"{config.algorithm}, k {config.k:,}, {config.metric}, scale {config.scale}, "
            f"init {config.init}, seed {config.seed}; epochs: at most {config.epochs:,}, each of "
            f"about {counted(self._plan.n_batches(0), 'batch')} "
            f"of {config.batch_rows:,} rows or less"
        )
        if config.algorithm == "lloyd" and not config.closing_pass:
            self._progress.say(
                "note: each pass of lloyd is one that could close the run; without closing-pass "
                "only the one is left out that would fill clusters which end without a row"
            )
        self._progress.say(
            f"on {self._environment['device']}, {self._arithmetic}, {self._setup.memory}"
        )
