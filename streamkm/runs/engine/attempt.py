"""One attempt at a fit, from where the last one stopped: scale, seed, train, close, sizes.

A run goes through these phases. ``scale`` takes the moments of the features in one pass, where
z-score or min-max need them. ``seed`` draws a sample and finds the first centroids (see
`engine.seeding`). ``train`` streams the epochs through the algorithm. ``close`` makes passes of
Lloyd's algorithm: after mini-batches always, after another algorithm only where it left a
cluster without a row, never without ``closing_pass``. Its epochs are numbered on from
``--epochs``. Before the first of them, after mini-batches of the annealed rate, centroids of a few
rows go where they save more (see `clustering.spare`). ``sizes`` brings the sizes of clusters within
their bounds, if they have any (see `clustering.sizing`).

The cursor says how many batches of which epoch of which phase have been *applied*; rows that
were only read ahead do not count. All that is computed is a function of the cursor and the
state before it. So a run that goes on from a checkpoint ends with the same bits as one that was
never stopped. This file holds the phases; `engine.keeper` counts, saves and stops, and
`engine.announcer` speaks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from streamkm.clustering.algorithm import closing_algorithm, make_algorithm, stop_reason
from streamkm.clustering.branches import BranchKernel, level_above
from streamkm.clustering.lloyd import is_closed
from streamkm.clustering.preparation import Preparation
from streamkm.clustering.scaling import Scaling
from streamkm.clustering.seeding.shares import Shares
from streamkm.clustering.spare import spend_spare_
from streamkm.distributed.world import ALONE
from streamkm.kernels import Moments, moments_in_parts
from streamkm.ranges import shown
from streamkm.runs.engine.announcer import Announcer
from streamkm.runs.engine.bounded import begun_sizes, size_figures, size_line, sizing
from streamkm.runs.engine.comparing import COMPARED_ROWS, changes, changes_line
from streamkm.runs.engine.exchange import moments_of_all
from streamkm.runs.engine.keeper import Keeper
from streamkm.runs.engine.passes import open_passes
from streamkm.runs.engine.probe import Prober
from streamkm.runs.engine.run_kernel import RunKernel
from streamkm.runs.engine.seeding import Seeder
from streamkm.runs.engine.snapshot import Cursor, Snapshot
from streamkm.runs.engine.summary import model_figures
from streamkm.runs.reporting.signals import StopRequest
from streamkm.runs.storage.checkpoint import NoCheckpoints
from streamkm.runs.storage.model import Model
from streamkm.stream.pipeline import open_slots
from streamkm.tables import ALGORITHMS
from streamkm.text import counted

if TYPE_CHECKING:
    from streamkm.clustering.algorithm import Algorithm
    from streamkm.clustering.branches import Level
    from streamkm.clustering.state import KMeansState
    from streamkm.distributed.world import World
    from streamkm.runs.engine.listener import Listener
    from streamkm.runs.engine.passes import Passes
    from streamkm.runs.planning.fit_plan import FitPlan
    from streamkm.runs.reporting.progress import Progress
    from streamkm.runs.storage.checkpoint import Checkpointer
    from streamkm.stream.seat import Seat
    from streamkm.stream.slots import HostSlots

__all__ = ["Attempt"]


class Attempt:
    """One attempt at a fit; its snapshot is all that the next attempt needs."""

    def __init__(
        self,
        plan: FitPlan,
        checkpoints: Checkpointer | NoCheckpoints,
        progress: Progress,
        stop_request: StopRequest,
        listener: Listener | None = None,
        world: World = ALONE,
        seat: Seat | None = None,
    ) -> None:
        self._plan, self._listener, self._world, self._seat = plan, listener, world, seat
        self._kernel = RunKernel(plan)
        self._announcer = Announcer(plan, self._kernel, progress, world)
        now = Snapshot.beginning(plan)
        self._keeper = Keeper(plan, now, checkpoints, self._announcer, stop_request, world)

    @classmethod
    def of_seeding_alone(cls, plan: FitPlan, progress: Progress) -> Attempt:
        """An attempt for `seed`: it saves nothing, and no signal stops it."""
        return cls(plan, NoCheckpoints(), progress, StopRequest())

    def run(self) -> Model:
        """Go through the phases that are left, and return the model."""
        self._announcer.introduce()
        self._keeper.restore()
        with shown(wanted=self._plan.execution.nvtx), self._slots() as slots:
            state, scaling = self._until_seeded(slots)
            if self._plan.execution.probe:
                with self._announcer.phase("probe"):
                    self._probe(slots, state, scaling)
            if self._phase == "train":
                with self._announcer.phase("train"):
                    self._train(slots, state, scaling)
            if self._phase == "close":
                with self._announcer.phase("close"):
                    self._close(slots, state, scaling)
            if self._plan.config.is_bounded:
                with self._announcer.phase("sizes"):
                    self._size(slots, state, scaling)
            more = self._changes(slots, state) | size_figures(self._keeper.now, self._plan)
        config = self._plan.config
        self._keeper.finish()
        reason = stop_reason(int(state.stop), config.algorithm, config.epochs)
        if config.is_bounded:
            reason += "; then sizes were brought within their bounds"
        self._announcer.conclude(self._keeper.now, reason)
        return self._model(state, scaling, stop_reason=reason, **more)

    def seed(self) -> Model:
        """Find the first centroids only, and return them as a model that counts no row."""
        self._announcer.introduce()
        with self._slots() as slots:
            return self._model(*self._until_seeded(slots))

    def doing(self) -> str:
        """Where the attempt stands, for the message of an `AllocationError`."""
        now = self._keeper.now
        return f"fitting, after step {now.step:,} ({now.cursor})"

    # ---- the phases ---------------------------------------------------------------------------

    def _slots(self) -> HostSlots:
        if self._seat is not None:
            return self._seat
        plan = self._plan
        resident = plan.resident
        homes = None if resident is None else (resident.device, resident.host)
        return open_slots(plan.source, plan.memory.stream, plan.device, homes)

    def _until_seeded(self, slots: HostSlots) -> tuple[KMeansState, Scaling]:
        """Scale and seed, as far as that is left; the state and the scaling to train with."""
        if self._phase == "scale":
            with self._announcer.phase("scale"):
                self._scale(slots)
        if self._phase in ("rounds", "seed"):
            with self._announcer.phase("seed"):
                self._seed(slots)
        now = self._keeper.now
        assert now.state is not None
        assert now.scaling is not None
        return now.state, now.scaling

    def _scale(self, slots: HostSlots) -> None:
        """Take the moments of every feature in one pass, and fit the scaling to them."""
        plan, keeper, now = self._plan, self._keeper, self._keeper.now
        reading, first = plan.reading_of("scale"), now.cursor
        times = self._announcer.begin("scale", 1, reading.rows_before(0, first.batch))
        with open_passes(plan, first, range(1), slots, times, self._world) as passes:
            parts: list[tuple[int, Moments]] = []
            n_rows = 0
            for index, window, rows in passes.batches(0):
                x_BD, weights_N = window.x_ND[rows], window.weights_N
                weights_B = None if weights_N is None else weights_N[rows]
                if len(x_BD):
                    parts += ((index, part) for part in moments_in_parts(x_BD, weights_B))
                planned = window.window
                n_rows += planned.whole_rows(index - planned.first_batch)
                # Processes exchange what they have found of a window at its end.
                is_end = index + 1 == planned.first_batch + planned.n_batches
                if self._world.size == 1 or is_end:
                    now.moments.join_(moments_of_all(parts, self._world))
                    keeper.after_batch(Cursor("scale", 0, index + 1), n_rows)
                    parts, n_rows = [], 0
        keeper.check_dropped(now.moments.n_dropped)
        now.scaling = Scaling.fit(plan.config.scale, plan.config.metric, now.moments, plan.dtype)
        keeper.move_to(Cursor("seed"))

    def _seed(self, slots: HostSlots) -> None:
        """Find the first centroids."""
        keeper, now = self._keeper, self._keeper.now
        progress = self._announcer.progress
        now.state = Seeder(self._plan, self._kernel, slots, progress, keeper).run()
        now.candidates, now.seeding = None, {}
        keeper.move_to(Cursor("train"))
        if self._listener is not None:
            self._listener.after_seeding()
        # A step of its own: an attempt that was stopped after the last step of seeding has saved
        # a checkpoint under that step's number.
        now.step += 1
        keeper.save()

    def _probe(self, slots: HostSlots, state: KMeansState, scaling: Scaling) -> None:
        """Time reading, copying and arithmetic alone; the state of the run stays as it is."""
        prober = Prober(self._plan, slots, scaling)
        self._announcer.probed(prober.measure(state, closing_only=self._phase == "close"))

    def _train(self, slots: HostSlots, state: KMeansState, scaling: Scaling) -> None:
        """Stream the epochs that are left, and decide whether a closing pass follows."""
        config, keeper = self._plan.config, self._keeper
        algorithm = make_algorithm(
            self._kernel.for_clusters, config, self._plan.reading.n_rows, self._world,
            self._plan.weight_unit or 1.0, self._kernel.carried,
        )  # fmt: skip
        first = keeper.now.cursor.epoch
        left = range(first, first if keeper.is_stopped else config.epochs)
        self._passes(slots, state, scaling, algorithm, left)
        must_close = ALGORITHMS[config.algorithm].closes or bool((state.counts_K == 0).any())
        if config.closing_pass and must_close:
            keeper.move_to(Cursor("close", config.epochs))

    def _close(self, slots: HostSlots, state: KMeansState, scaling: Scaling) -> None:
        """Make closing passes until `is_closed`: exact clusters, none empty if the data allows."""
        config, keeper = self._plan.config, self._keeper
        algorithm = closing_algorithm(
            self._kernel.for_clusters, config, self._world, self._plan.weight_unit or 1.0
        )
        if config.rate == "annealed" and keeper.now.cursor == Cursor("close", config.epochs):
            n_moved = spend_spare_(state, spherical=config.metric == "cosine")
            if n_moved:
                self._announcer.progress.say(
                    f"note: {counted(n_moved, 'centroid')} of few rows moved to larger clusters, "
                    "which are halved"
                )
        while True:
            cursor = keeper.now.cursor
            if cursor.epoch > config.epochs and cursor.batch == 0:
                if is_closed(state):
                    return
                self._announcer.progress.say(
                    "note: another closing pass, some clusters have no row yet"
                )
            one = range(cursor.epoch, cursor.epoch + 1)
            self._passes(slots, state, scaling, algorithm, one)

    def _size(self, slots: HostSlots, state: KMeansState, scaling: Scaling) -> None:
        """Bring the sizes of clusters within bounds, and say what that has cost."""
        plan, keeper, now = self._plan, self._keeper, self._keeper.now
        if now.sizes is None:
            now.sizes = begun_sizes(now, plan)
            keeper.move_to(Cursor("sizes", max(now.cursor.epoch, plan.config.epochs)))
        while not now.sizes.is_done:
            algorithm = sizing(now, plan, self._kernel.for_clusters, self._world)
            epoch = now.cursor.epoch
            one, world = range(epoch, epoch + 1), algorithm.world
            self._passes(slots, state, scaling, algorithm, one, world)
        self._announcer.progress.say(size_line(now, plan))

    def _passes(
        self,
        slots: HostSlots,
        state: KMeansState,
        scaling: Scaling,
        algorithm: Algorithm,
        epochs: range,
        world: World | None = None,
    ) -> None:
        """Stream `epochs` through `algorithm`, from the cursor on; `world` shares the rows."""
        plan, keeper, phase = self._plan, self._keeper, self._phase
        first, reading = keeper.now.cursor, plan.reading_of(phase)
        prepare = Preparation.for_kernel(
            scaling, algorithm.kernel, batch_rows=plan.config.batch_rows, stored=plan.stored,
            dtype=plan.dtype, weight_unit=plan.weight_unit,
        )  # fmt: skip
        n_passes, done = 1, reading.rows_before(first.epoch, first.batch)
        if phase == "train":
            n_passes, done = plan.config.epochs, done + first.epoch * reading.n_rows
        times = self._announcer.begin(phase, n_passes, done)
        keeper.algorithm = algorithm
        if first.batch:
            algorithm.keep_own_(state)
        with (
            self._kernel.cores(),
            open_passes(plan, first, epochs, slots, times, world or self._world) as passes,
        ):
            for epoch in epochs:
                self._epoch(passes, prepare, algorithm, state, epoch)
                if self._listener is not None and phase == "train":
                    self._listener.after_pass(state, self._unit, epoch)
                if keeper.is_stopped:
                    break
        keeper.algorithm = None
        keeper.check_dropped(state.n_dropped)

    def _epoch(
        self,
        passes: Passes,
        prepare: Preparation,
        algorithm: Algorithm,
        state: KMeansState,
        epoch: int,
    ) -> None:
        """One epoch, or what is left of it: prepare each batch, assign and move, count."""
        keeper, phase = self._keeper, self._phase
        reading = self._plan.reading_of(phase)
        if keeper.now.cursor.batch == 0:
            algorithm.begin_epoch_(state)
        for index, batch in passes.prepared(epoch, prepare):
            algorithm.update_(state, batch, epoch=epoch, index=index)
            self._kernel.assigned[phase] += len(batch)
            asks = reading.ends_round(index + 1, self._world.size)
            keeper.after_batch(Cursor(phase, epoch, index + 1), batch.n_whole, asks=asks)
            if self._listener is not None and phase == "train":
                self._listener.after_step(state, self._unit, self._most_steps)
            if keeper.is_stopped:
                break
        algorithm.finish_epoch_(state)
        keeper.after_epoch(Cursor(phase, epoch + 1))

    # ---- what comes out -----------------------------------------------------------------------

    @property
    def _most_steps(self) -> int:
        return self._plan.reading.n_batches(0) * self._plan.config.epochs

    @property
    def _unit(self) -> float:
        assert self._keeper.now.scaling is not None
        return self._keeper.now.scaling.unit

    @property
    def _phase(self) -> str:
        return self._keeper.now.cursor.phase

    def _changes(self, slots: HostSlots, state: KMeansState) -> dict[str, Any]:
        """What has changed since the earlier run, if the fit went on from one: figures."""
        plan, progress = self._plan, self._announcer.progress
        if plan.earlier is None:
            return {}
        sample = Seeder(plan, self._kernel, slots, progress, self._keeper).usable(COMPARED_ROWS)
        found = changes(
            plan.earlier, state.centroids_KD, sample, self._kernel.for_clusters,
            Shares(self._world), plan.config.batch_rows,
        )  # fmt: skip
        progress.say(f"since {plan.config.from_run}: {changes_line(found)}")
        return {"changes": found}

    def _model(self, state: KMeansState, scaling: Scaling, **more: Any) -> Model:
        """The model of `state`, with `more` figures."""
        plan = self._plan
        figures = model_figures(state, scaling, plan.reading, plan.config, plan.source.spec.dtype)
        return Model(
            state.centroids_KD,
            state.counts_K,
            state.whole_sums_KD,
            state.weights_K,
            scaling,
            plan.config.as_dict(),
            self._keeper.now.settled_inertia(),
            figures | more,
            plan.source.spec.feature_names,
            self._level(state),
            None if self._keeper.now.sizes is None else self._keeper.now.sizes.rule,
            self._kernel.carried,
        )

    def _level(self, state: KMeansState) -> Level | None:
        """The branches of a tree, if one was trained."""
        config = self._plan.config
        if not int(state.n_listed_J.sum()):
            return None
        return level_above(
            BranchKernel(self._kernel.for_clusters, config.batch_rows), state.branches_JD,
            state.centroids_KD, state.whole_sums_KD, state.whole_mass_K,
            spherical=config.metric == "cosine",
        )  # fmt: skip
