"""The first centroids of a run: from a sample of the data, or from candidates of all of it.

A seeding is a list of stages (see `clustering.seeding.sample`); ``--n-init`` says how many
seedings there are. The cursor counts the stages of all of them, and the steps of the stage under
way. The run can be saved between any two steps. Within a long step it can be stopped; the
resumed run repeats that step.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import torch

from streamkm.clustering.growing import grown_state
from streamkm.clustering.preparation import Preparation
from streamkm.clustering.scaling import RunningMoments, Scaling
from streamkm.clustering.seeding.breathing import Breathing
from streamkm.clustering.seeding.kmeans_parallel import first_candidate
from streamkm.clustering.seeding.kmeans_plusplus import BatchedPlusPlus, GreedyPlusPlus, RandomRows
from streamkm.clustering.seeding.plan import FIRST_PASSES, N_ROUNDS, breath_size
from streamkm.clustering.seeding.sample import Sample, merged, near_one
from streamkm.clustering.seeding.sample_lloyd import SampleLloyd
from streamkm.clustering.seeding.shares import Shares
from streamkm.clustering.seeding.tree import Tree
from streamkm.clustering.state import initial_state
from streamkm.errors import RunError
from streamkm.runs.engine.passes import open_passes
from streamkm.runs.engine.sampling import check_usable, draw_sample, split_sample, usable_rows
from streamkm.runs.engine.snapshot import Cursor
from streamkm.stream.stages import StageTimes
from streamkm.text import counted

if TYPE_CHECKING:
    from streamkm.clustering.seeding.kmeans_parallel import Candidates
    from streamkm.clustering.seeding.sample import Stage
    from streamkm.clustering.state import KMeansState
    from streamkm.kernels import Kernel
    from streamkm.runs.engine.keeper import Keeper
    from streamkm.runs.engine.passes import Passes
    from streamkm.runs.engine.run_kernel import RunKernel
    from streamkm.runs.planning.earlier import Earlier
    from streamkm.runs.planning.fit_plan import FitPlan
    from streamkm.runs.reporting.progress import Progress
    from streamkm.stream.slots import HostSlots

__all__ = ["Seeder"]

#: The best of several seedings and its cost, by their names in `Snapshot.seeding`.
BEST = ("best_KD", "best_cost")

#: The next sample is this many times larger where one holds too few usable rows.
REDRAWN_FACTOR = 4


@dataclass(frozen=True)
class Seeder:
    """Seeds one attempt: draws a sample, finds candidates for k-means||, runs the stages."""

    plan: FitPlan
    kernel: RunKernel
    slots: HostSlots
    progress: Progress
    keeper: Keeper

    def run(self) -> KMeansState:
        """The state before the first epoch, from where the snapshot of `keeper` stands.

        The snapshot moves along: its scaling, candidates, stages and cursor.
        """
        plan, config, began = self.plan, self.plan.config, time.monotonic()
        now, weighted = self.keeper.now, plan.weights is not None
        if plan.earlier is not None:
            return self._grown(plan.earlier)
        sample = self._draw_sample()
        tolerance = self._tolerance(sample) if config.tol else 0.0
        assert now.scaling is not None
        if plan.given_KD is not None:
            self.progress.say(f"seeded ({config.init}): the {config.k:,} centroids that were given")
            given_KD = now.scaling.transform(torch.from_numpy(plan.given_KD).to(plan.device))
            return initial_state(
                given_KD.to(plan.dtype), tolerance, weighted=weighted, n_branches=config.n_branches
            )
        n_judged = plan.seeding.judged_rows
        share = n_judged / (n_judged + plan.seeding.sample_rows)
        sample, judged = split_sample(sample, config.k, share)
        if plan.seeding.sample_rows >= plan.reading.n_rows:
            sample = merged(sample, config.k)
        if plan.seeding.candidate_rows:
            sample = self._candidates(sample)
        stages = StageRunner(plan, self.kernel, sample, judged, self.progress, self.keeper)
        centroids_KD = stages.run()
        # The same in all processes, unless they run on unlike processors.
        self.keeper.world.broadcast_(centroids_KD)
        self._say(len(sample), time.monotonic() - began)
        return initial_state(
            centroids_KD, tolerance, weighted=weighted, n_branches=config.n_branches
        )

    def _grown(self, earlier: Earlier) -> KMeansState:
        """The state that an earlier run has ended with."""
        plan, config = self.plan, self.plan.config
        self.progress.say(
            f"on from {config.from_run}: {config.k:,} centroids of "
            f"{counted(int(earlier.counts_K.sum()), 'row')}"
        )
        tolerance = self._tolerance(self.usable(plan.seeding.sample_rows)) if config.tol else 0.0
        return grown_state(
            earlier.centroids_KD.to(plan.device, plan.dtype, copy=True),
            earlier.sums_KD.to(plan.device),
            earlier.counts_K.to(plan.device),
            earlier.weights_K.to(plan.device),
            tolerance,
            weighted=plan.is_weighted,
        )

    def _tolerance(self, sample: Sample) -> float:
        """Squared centroid shift at which the run stops: ``tol`` times the variance of a sample."""
        variance_D = RunningMoments.of(sample.x_SD, sample.weights_S).variance_D
        return float(self.plan.config.tol * float(variance_D.mean()))

    def _draw_sample(self) -> Sample:
        """Scaled rows that a centroid may stand on, at least one for every cluster."""
        seeding, k, n_all = self.plan.seeding, self.plan.config.k, self.plan.reading.n_rows
        n_rows = seeding.sample_rows + seeding.judged_rows
        sample = self.usable(n_rows)
        while len(sample) < k and n_rows < n_all:
            # Too few of these rows are usable; the rest of the array may hold enough.
            n_rows = min(REDRAWN_FACTOR * n_rows, n_all)
            sample = self.usable(n_rows)
        check_usable(len(sample), n_all, k)
        return sample

    def usable(self, n_rows: int) -> Sample:
        """The usable rows of a sample of `n_rows`; fits the scaling if no pass has done so."""
        plan, now = self.plan, self.keeper.now
        with self.kernel.cores():
            sample_SD, weights_S, n_heavy = draw_sample(
                plan.source,
                plan.reading,
                n_rows,
                k=plan.config.k,
                seed=plan.config.seed,
                dtype=plan.dtype,
                slots=self.slots,
                progress=self.progress,
                on_window=self.keeper.stop_if_asked,
                weights=plan.weights,
                world=self.keeper.world,
            )
        if now.scaling is None:
            moments = RunningMoments.of(sample_SD, weights_S)
            now.scaling = Scaling.fit(plan.config.scale, plan.config.metric, moments, plan.dtype)
        sample = Preparation(now.scaling, sample_SD)(sample_SD, slice(None), weights_S)
        if sample.dropped_B is not None:
            self.keeper.check_dropped(sample.dropped_B.sum())
        return usable_rows(sample, n_heavy)

    def _candidates(self, sample: Sample) -> Sample:
        """The candidates of k-means||, each weighted by the mass of the rows nearest to it."""
        now, config = self.keeper.now, self.plan.config
        if now.candidates is None:
            now.candidates = first_candidate(sample, config.k, config.seed)
            now.cursor = Cursor("rounds")
        if now.cursor.phase == "rounds":
            self._rounds(now.candidates)
        found = now.candidates.as_sample()
        assert found.weights_S is not None
        # With fewer than k distinct rows in the data, any rows will do for the rest.
        n_lacking = max(config.k - len(found), 0)
        rows_CD = torch.cat((found.x_SD, sample.x_SD[:n_lacking]))
        weights_C = torch.cat((found.weights_S, found.weights_S.new_zeros(n_lacking)))
        return Sample(rows_CD, near_one(weights_C))

    def _rounds(self, candidates: Candidates) -> None:
        """Make the passes of k-means|| that are left: `N_ROUNDS` that draw, one that counts."""
        plan, keeper, config = self.plan, self.keeper, self.plan.config
        reading, first, scaling = plan.reading_of("rounds"), keeper.now.cursor, keeper.now.scaling
        assert scaling is not None
        prepare = Preparation.widened(
            scaling, batch_rows=config.batch_rows, dtype=plan.dtype, weight_unit=plan.weight_unit
        )
        epochs, times = range(first.epoch, N_ROUNDS + 1), StageTimes()
        done = first.epoch * reading.n_rows + reading.rows_before(0, first.batch)
        total = (N_ROUNDS + 1) * reading.n_rows
        self.progress.begin("seed: k-means||", total, times, done=done)
        if first.batch:
            candidates.keep_own_(keeper.world)
        with (
            self.kernel.cores(),
            open_passes(plan, first, epochs, self.slots, times, keeper.world) as passes,
        ):
            for epoch in epochs:
                self._pass(passes, prepare, candidates, epoch)
                candidates.gather_(keeper.world)
                if epoch < N_ROUNDS:
                    candidates.finish_round_()
                    keeper.move_to(Cursor("rounds", epoch + 1))
        keeper.move_to(Cursor("seed"))

    def _pass(
        self, passes: Passes, prepare: Preparation, candidates: Candidates, epoch: int
    ) -> None:
        """One pass of k-means||; its kernel, for the candidates so far, is freed at its end."""
        kernel, seed = self.kernel.for_centroids(len(candidates.rows_CD)), self.plan.config.seed
        reading = self.plan.reading_of("rounds")
        for index, batch in passes.prepared(epoch, prepare):
            if len(batch):  # Others are of other processes.
                candidates.update_(batch, kernel, seed, epoch=epoch, index=index)
            asks = reading.ends_round(index + 1, self.keeper.world.size)
            cursor = Cursor("rounds", epoch, index + 1)
            self.keeper.after_batch(cursor, batch.n_whole, asks=asks)

    def _say(self, n_rows: int, spent_s: float) -> None:
        if self.progress.is_silent:
            return
        seeding, config = self.plan.seeding, self.plan.config
        refinement, work = seeding.refinement, ""
        method = "random rows" if config.init != "k-means++" else "greedy k-means++"
        if refinement is not None:
            method = "greedy k-means++, " if refinement.greedy else "k-means++ in batches, "
            if refinement.breaths:
                method += f"up to {counted(refinement.breaths, 'breath')}, "
            method += "Lloyd's algorithm" if refinement.final_passes else "no passes"
        if seeding.tree is not None:
            levels = " -> ".join(f"{n:,}" for n in seeding.tree.levels)
            exchanges = counted(seeding.tree.exchanges, "exchange")
            method = f"a tree of {levels} clusters, {exchanges}"
        chosen = seeding.tree or refinement
        if chosen is not None:
            work = f": at most the work of {seeding.epochs(config.k, config.n_init):.2f} epochs"
            if config.n_branches:
                work += " that compare every row with every cluster"
            elif chosen.epochs > config.epochs:
                work = ", which may be more than all epochs take: they are short here"
        rows = f"{n_rows:,} of {self.plan.reading.n_rows:,} rows"
        if seeding.candidate_rows:
            rows = f"{n_rows:,} candidates from {N_ROUNDS} rounds of k-means||"
        times = f", best of {config.n_init}" if config.n_init > 1 else ""
        self.progress.say(
            f"seeded ({config.init}): {method} on {rows}{times}; {spent_s:.2f} s{work}"
        )
        self.progress.record({"phase": "seeded", "seconds": round(spent_s, 3), **asdict(seeding)})


@dataclass(frozen=True)
class StageRunner:
    """Runs ``n_init`` seedings on `sample`, stage by stage, and keeps the best."""

    plan: FitPlan
    kernel: RunKernel
    sample: Sample
    judged: Sample
    """Rows on which several seedings are compared."""
    progress: Progress
    keeper: Keeper
    """The cursor and `seeding` of its snapshot move along."""

    def run(self) -> torch.Tensor:
        """The centroids of the best seeding, (K, D), from where the cursor stands."""
        now, config = self.keeper.now, self.plan.config
        kinds, first = self.plan.seeding.stages(config.init), now.cursor
        times = StageTimes()
        with self.kernel.cores():
            for number in range(first.epoch, len(kinds) * config.n_init):
                stage = self._stage(kinds[number % len(kinds)], number)
                self.keeper.begin_steps()
                index = first.batch if number == first.epoch else 0
                if index:
                    self._check_sample(stage)
                    stage.restore_(now.seeding, index)
                self.progress.begin(
                    f"seed: {stage.name}", stage.n_units, times,
                    done=stage.n_done, unit=stage.unit,
                )  # fmt: skip
                self._advance(stage, number, index, is_last=(number + 1) % len(kinds) == 0)
        return now.seeding["best_KD" if config.n_init > 1 else "centroids_KD"]

    def _advance(self, stage: Stage, number: int, index: int, *, is_last: bool) -> None:
        """Take the steps of `stage` from `index` on; after the last stage compare seedings."""
        now, n_init, n_taken = self.keeper.now, self.plan.config.n_init, 1
        best = {name: held for name, held in now.seeding.items() if name in BEST}
        while n_taken:
            before = stage.n_done
            n_taken = self._as_first(stage, index, stage.step_(index))
            index += n_taken
            if n_taken:
                now.cursor, now.seeding = Cursor("seed", number, index), best | stage.tensors()
            else:
                if is_last and n_init > 1:
                    best = self._better(best, stage.centroids_KD)
                now.cursor = Cursor("seed", number + 1)
                now.seeding = best | {"centroids_KD": stage.centroids_KD}
            self.keeper.after_step(stage.n_done - before)

    def _as_first(self, stage: Stage, index: int, n_taken: int) -> int:
        """Bring `stage` to where process 0 is, and return what step `index` has returned there.

        That is where all are, but on unlike processors the last bits may lead to other draws, and
        to more steps or fewer.
        """
        world = self.keeper.world
        if world.is_alike:
            return n_taken
        tensors, taken = stage.tensors(), torch.tensor([n_taken])
        for tensor in (*tensors.values(), taken):
            world.broadcast_(tensor)
        stage.restore_(tensors, index + int(taken))
        return int(taken)

    def _better(
        self, best: dict[str, torch.Tensor], centroids_KD: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """The seeding that costs less on `judged`; the earlier one where both cost the same."""
        _, sq_distances_S = self._shares.assign(
            self.judged, centroids_KD, kernel=self._for_clusters(),
            batch_rows=self.plan.config.batch_rows, pause=self.keeper.stop_if_asked,
        )  # fmt: skip
        cost = self.judged.total(sq_distances_S)
        if best and bool(best["best_cost"] <= cost):
            return best
        return {"best_KD": centroids_KD, "best_cost": cost}

    def _check_sample(self, stage: Stage) -> None:
        """Refuse a checkpoint whose sample had another size, which shows only once one is drawn."""
        now = self.keeper.now
        for name, tensor in stage.tensors().items():
            if (found := now.seeding[name]).shape != tensor.shape:
                raise RunError(
                    f"the checkpoint of step {now.step} is whole, yet of another sample "
                    f"(seeding.{name} is of shape {tuple(found.shape)}, not "
                    f"{tuple(tensor.shape)}); remove its folder, and the one before it is taken"
                )

    def _stage(self, kind: str, number: int) -> Stage:
        """The stage of a kind that `SeedingPlan.stages` names, `number` counted over seedings."""
        config, refinement, sample = self.plan.config, self.plan.seeding.refinement, self.sample
        spherical, pause = config.metric == "cosine", self.keeper.stop_if_asked
        if kind == "random":
            return RandomRows(sample, config.k, config.seed, number)
        if kind == "greedy":
            return GreedyPlusPlus(sample, config.k, config.seed, number)
        if kind == "tree":
            assert self.plan.seeding.tree is not None
            return Tree(
                sample,
                config.k,
                self.plan.seeding.tree,
                config.seed,
                number,
                make_kernel=self.kernel.for_centroids,
                batch_rows=config.batch_rows,
                spherical=spherical,
                shares=self._shares,
                pause=pause,
            )
        assert refinement is not None
        if kind == "batched":
            return BatchedPlusPlus(
                sample,
                config.k,
                config.seed,
                number,
                kernel=self._for_clusters(),
                batch_rows=config.batch_rows,
                shares=self._shares,
            )
        centroids_KD = self.keeper.now.seeding["centroids_KD"]
        if kind == "breathing":
            return Breathing(
                sample,
                centroids_KD,
                refinement.breaths,
                config.seed,
                number,
                kernel=self.kernel.for_centroids(config.k + breath_size(config.k)),
                batch_rows=config.batch_rows,
                spherical=spherical,
                shares=self._shares,
                pause=pause,
            )
        return SampleLloyd(
            sample,
            centroids_KD,
            refinement.final_passes if kind == "final passes" else FIRST_PASSES,
            config.seed,
            number,
            kernel=self._for_clusters(),
            batch_rows=config.batch_rows,
            spherical=spherical,
            shares=self._shares,
            pause=pause,
        )

    @property
    def _shares(self) -> Shares:
        return Shares(self.keeper.world)

    def _for_clusters(self) -> Kernel:
        """A kernel for one stage alone, whose buffers are freed with it."""
        return self.kernel.for_centroids(self.plan.config.k)
