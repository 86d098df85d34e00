"""The first centroids of a run: from a sample of the data, or candidates from all of it.

A way of seeding is a list of stages (see `clustering.seeding.sample`), gone through as
many times as ``--n-init`` asks for. The cursor counts stages and the steps of one;
between any two steps the run can be saved, and within the long ones it can be
stopped, to repeat that step when it is resumed.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING

import torch

from streamkm.clustering.scaling import RunningMoments, Scaling
from streamkm.clustering.seeding.kmeans_parallel import first_candidate
from streamkm.clustering.seeding.kmeans_plusplus import BatchedPlusPlus, GreedyPlusPlus, RandomRows
from streamkm.clustering.seeding.local_search import LocalSearch
from streamkm.clustering.seeding.plan import N_ROUNDS, PASSES_BETWEEN
from streamkm.clustering.seeding.sample import Sample, sample_cost
from streamkm.clustering.seeding.sample_lloyd import SampleLloyd
from streamkm.clustering.state import initial_state
from streamkm.errors import RunError
from streamkm.runs.engine.sampling import check_usable, draw_sample, split_sample, usable_rows
from streamkm.runs.engine.snapshot import Cursor
from streamkm.stream.pipeline import stream
from streamkm.stream.stages import StageTimes

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np

    from streamkm.clustering.seeding.kmeans_parallel import Candidates
    from streamkm.clustering.seeding.plan import SeedingPlan
    from streamkm.clustering.seeding.sample import Stage
    from streamkm.clustering.state import KMeansState
    from streamkm.config import ResolvedFitConfig
    from streamkm.kernels import Kernel
    from streamkm.runs.engine.arithmetic import Arithmetic
    from streamkm.runs.engine.snapshot import Snapshot
    from streamkm.runs.reporting.progress import Progress
    from streamkm.sources.base import Source
    from streamkm.sources.weights import Weights
    from streamkm.stream.plan import Plan
    from streamkm.stream.slots import HostSlots

__all__ = ["Seeding", "SeedingPhase"]

#: Names under which the best of several seedings is held.
BEST = ("best_KD", "best_cost")

#: So many times larger is the sample that is drawn where one has too few rows of use.
REDRAWN_FACTOR = 4


@dataclass(frozen=True)
class SeedingPhase:
    """All that happens between the statistics for scaling and the first epoch."""

    source: Source
    order: Plan
    config: ResolvedFitConfig
    plan: SeedingPlan
    given_KD: np.ndarray | None
    """Centroids to begin with, in the space of the input."""
    arithmetic: Arithmetic
    slots: HostSlots
    progress: Progress
    now: Snapshot
    """Is moved along, from wherever the cursor stands."""
    weights: Weights | None
    """How much each row counts."""
    after_step: Callable[[int], None]
    """Called after every batch or step, with the units that it did; may raise to stop."""
    pause: Callable[[], None]
    """Called within long steps; may raise to stop."""
    check_dropped: Callable[[torch.Tensor], None]
    """Raises if rows were dropped that must not be."""

    def run(self) -> KMeansState:
        """The state before the first epoch."""
        now, config, began = self.now, self.config, time.monotonic()
        weighted = self.weights is not None
        sample = self._draw_sample()
        tolerance = 0.0
        if config.tol:
            variance_D = RunningMoments.of(sample.x_SD, sample.weights_S).variance_D
            tolerance = config.tol * float(variance_D.mean())
        assert now.scaling is not None
        if self.given_KD is not None:
            self.progress.say(f"seeded ({config.init}): the {config.k:,} centroids that were given")
            given_KD = now.scaling.transform(torch.from_numpy(self.given_KD).to(self.slots.device))
            return initial_state(given_KD.to(self.arithmetic.dtype), tolerance, weighted=weighted)
        share = self.plan.judged_rows / (self.plan.judged_rows + self.plan.sample_rows)
        sample, judged = split_sample(sample, config.k, share)
        if self.plan.candidate_rows:
            sample = self._candidates(sample)
        seeding = Seeding(
            config,
            self.plan,
            self.arithmetic,
            sample,
            judged,
            now,
            self.progress,
            self.after_step,
            self.pause,
        )
        centroids_KD = seeding.run()
        self._say(len(sample), time.monotonic() - began)
        return initial_state(centroids_KD, tolerance, weighted=weighted)

    def _draw_sample(self) -> Sample:
        """The sample as rows that a centroid may stand on, scaled; enough for every cluster."""
        n_rows = self.plan.sample_rows + self.plan.judged_rows
        sample = self._usable(n_rows)
        while len(sample) < self.config.k and n_rows < self.order.n_rows:
            # Most rows that were drawn were of no use; there may be enough others.
            n_rows = min(REDRAWN_FACTOR * n_rows, self.order.n_rows)
            sample = self._usable(n_rows)
        check_usable(len(sample), self.order.n_rows, self.config.k)
        return sample

    def _usable(self, n_rows: int) -> Sample:
        now, config, dtype = self.now, self.config, self.arithmetic.dtype
        with self.arithmetic.cores():
            sample_SD, weights_S, n_heavy = draw_sample(
                self.source,
                self.order,
                n_rows,
                k=config.k,
                seed=config.seed,
                dtype=dtype,
                slots=self.slots,
                progress=self.progress,
                on_window=self.pause,
                weights=self.weights,
            )
        if now.scaling is None:
            moments = RunningMoments.of(sample_SD, weights_S)
            now.scaling = Scaling.fit(config.scale, config.metric, moments, dtype)
        sample = now.scaling.prepare(sample_SD, slice(None), sample_SD, weights_S)
        if sample.dropped_B is not None:
            self.check_dropped(sample.dropped_B.sum())
        return usable_rows(sample, n_heavy)

    def _candidates(self, sample: Sample) -> Sample:
        """The candidates of k-means||, each weighted by the rows that are nearest to it."""
        now, config = self.now, self.config
        if now.candidates is None:
            now.candidates = first_candidate(sample, config.k, config.seed)
            now.cursor = Cursor("rounds")
        if now.cursor.phase == "rounds":
            self._rounds(now, now.candidates)
        found = now.candidates.as_sample()
        assert found.weights_S is not None
        # Where the data has fewer than k rows that differ, any will do for the rest.
        n_lacking = max(config.k - len(found), 0)
        rows_CD = torch.cat((found.x_SD, sample.x_SD[:n_lacking]))
        return Sample(rows_CD, torch.cat((found.weights_S, found.weights_S.new_zeros(n_lacking))))

    def _rounds(self, now: Snapshot, candidates: Candidates) -> None:
        """The passes of k-means|| that are left."""
        config, order, first = self.config, replace(self.order, seed=None), now.cursor
        assert now.scaling is not None
        workspace_BD = torch.empty(
            (config.batch_rows, self.source.spec.n_features),
            dtype=self.arithmetic.dtype, device=self.slots.device,
        )  # fmt: skip
        epochs = range(first.epoch, N_ROUNDS + 1)
        windows = chain.from_iterable(
            order.windows(epoch, first.batch if epoch == first.epoch else 0) for epoch in epochs
        )
        times, kernel = StageTimes(), None
        done = first.epoch * order.n_rows + order.rows_before(0, first.batch)
        self.progress.begin("seed: k-means||", (N_ROUNDS + 1) * order.n_rows, times, done=done)
        with (
            self.arithmetic.cores(),
            stream(self.source, windows, self.slots, times, self.weights) as device_windows,
        ):
            for window in device_windows:
                epoch = window.window.epoch
                for index, rows in window.batches(first.batch if epoch == first.epoch else 0):
                    if kernel is None:
                        kernel = self.arithmetic.kernel_for(len(candidates.rows_CD))
                    batch = now.scaling.prepare(window.x_ND, rows, workspace_BD, window.weights_N)
                    candidates.update_(batch, kernel, config.seed, epoch=epoch, index=index)
                    now.cursor = Cursor("rounds", epoch, index + 1)
                    if index == window.window.last_batch:
                        kernel = None
                        now.cursor = Cursor("seed")
                        if epoch < N_ROUNDS:
                            candidates.finish_round_()
                            now.cursor = Cursor("rounds", epoch + 1)
                    self.after_step(len(batch.x_BD))

    def _say(self, n_rows: int, spent_s: float) -> None:
        plan, refinement, config, share = self.plan, self.plan.refinement, self.config, ""
        method = "random rows" if config.init != "k-means++" else "greedy k-means++"
        if refinement is not None:
            method = "greedy k-means++, " if refinement.greedy else "k-means++ in batches, "
            if refinement.searches:
                plural = "es" if refinement.searches > 1 else ""
                method += f"{refinement.searches} local search{plural} of "
                method += f"{refinement.draws:,} draws, "
            method += "Lloyd's algorithm" if refinement.final_passes else "no passes"
            share = f": at most the work of {plan.epochs(config.k, config.n_init):.2f} epochs"
            if refinement.epochs > 1:
                share = ", which may be more than an epoch takes: epochs are short here"
        rows = f"{n_rows:,} of {self.order.n_rows:,} rows"
        if plan.candidate_rows:
            rows = f"{n_rows:,} candidates from {N_ROUNDS} rounds of k-means||"
        times = f", best of {config.n_init}" if config.n_init > 1 else ""
        self.progress.say(
            f"seeded ({config.init}): {method} on {rows}{times}; {spent_s:.2f} s{share}"
        )
        self.progress.record({"phase": "seeded", "seconds": round(spent_s, 3), **asdict(plan)})


@dataclass(frozen=True)
class Seeding:
    """Takes the stages on `sample` in turn, as often as asked, and keeps the best result."""

    config: ResolvedFitConfig
    plan: SeedingPlan
    arithmetic: Arithmetic
    sample: Sample
    judged: Sample
    """Rows on which several seedings are compared."""
    now: Snapshot
    """Its cursor and `seeding` are moved along."""
    progress: Progress
    after_step: Callable[[int], None]
    pause: Callable[[], None]

    def run(self) -> torch.Tensor:
        """The centroids, (K, D); from the cursor on, if it stands within."""
        now, kinds = self.now, self.plan.stages(self.config.init)
        first = now.cursor
        for number in range(first.epoch, len(kinds) * self.config.n_init):
            stage = self._stage(kinds[number % len(kinds)], number)
            index = first.batch if number == first.epoch else 0
            if index:
                self._check_sample(stage)
                stage.restore_(now.seeding)
            self.progress.begin(
                f"seed: {stage.name}", stage.n_units, StageTimes(),
                done=stage.n_done, unit=stage.unit,
            )  # fmt: skip
            self._advance(stage, number, index, is_last=(number + 1) % len(kinds) == 0)
        return now.seeding["best_KD" if self.config.n_init > 1 else "centroids_KD"]

    def _advance(self, stage: Stage, number: int, index: int, *, is_last: bool) -> None:
        now, goes_on = self.now, True
        best = {name: held for name, held in now.seeding.items() if name in BEST}
        while goes_on:
            before = stage.n_done
            with self.arithmetic.cores():
                goes_on = stage.step_(index)
            index += 1
            if goes_on:
                now.cursor, now.seeding = Cursor("seed", number, index), best | stage.tensors()
            else:
                if is_last and self.config.n_init > 1:
                    best = self._better(best, stage.centroids_KD)
                now.cursor = Cursor("seed", number + 1)
                now.seeding = best | {"centroids_KD": stage.centroids_KD}
            self.after_step(stage.n_done - before)

    def _better(
        self, best: dict[str, torch.Tensor], centroids_KD: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """The better one of two seedings; the earlier one where they cost the same."""
        kernel, batch_rows = self._kernel(), self.config.batch_rows
        cost = sample_cost(self.judged, centroids_KD, kernel, batch_rows, self.pause)
        if best and bool(best["best_cost"] <= cost):
            return best
        return {"best_KD": centroids_KD, "best_cost": cost}

    def _check_sample(self, stage: Stage) -> None:
        """Refuse tensors of another sample: how many rows one has shows when it is drawn."""
        for name, tensor in stage.tensors().items():
            if (found := self.now.seeding[name]).shape != tensor.shape:
                raise RunError(
                    f"the checkpoint of step {self.now.step} is whole, yet of another sample "
                    f"(seeding.{name} is of shape {tuple(found.shape)}, not "
                    f"{tuple(tensor.shape)}); remove its folder, and the one before it is taken"
                )

    def _stage(self, kind: str, number: int) -> Stage:
        config, plan, sample = self.config, self.plan.refinement, self.sample
        if kind == "random":
            return RandomRows(sample, config.k, config.seed, number)
        if kind == "greedy":
            return GreedyPlusPlus(sample, config.k, config.seed, number)
        assert plan is not None
        if kind == "batched":
            return BatchedPlusPlus(
                sample,
                config.k,
                config.seed,
                number,
                kernel=self._kernel(),
                batch_rows=config.batch_rows,
            )
        centroids_KD = self.now.seeding["centroids_KD"]
        if kind == "search":
            return LocalSearch(
                sample,
                centroids_KD,
                plan.draws,
                config.seed,
                number,
                spherical=config.metric == "cosine",
                pause=self.pause,
            )
        return SampleLloyd(
            sample,
            centroids_KD,
            plan.final_passes if kind == "final passes" else PASSES_BETWEEN,
            config.seed,
            number,
            kernel=self._kernel(),
            batch_rows=config.batch_rows,
            spherical=config.metric == "cosine",
            pause=self.pause,
        )

    def _kernel(self) -> Kernel:
        return self.arithmetic.kernel_for(self.config.k)
