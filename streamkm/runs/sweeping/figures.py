"""Measures all fits of a sweep in one read: what `evaluate` gives, silhouettes and stability.

Labels are those of the saved centroids, as `predict` gives them, so the read follows the fits. A
silhouette needs the sums of all clusters, which are known only after the read. It is taken of rows
that were kept from it: of all rows, or of as many as memory and arithmetic allow. Their distances
are to all rows in any case.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from streamkm.clustering.agreement import MOST_CLUSTERS, RunningAgreement
from streamkm.clustering.metrics import RunningClusterSums
from streamkm.clustering.preparation import Preparation
from streamkm.config import largest_batch_rows
from streamkm.devices import is_host
from streamkm.distributed.world import ALONE
from streamkm.errors import MemoryBudgetError
from streamkm.runs.engine.labelling import Labelling
from streamkm.runs.engine.summary import median_size
from streamkm.runs.engine.watch import Watch
from streamkm.runs.evaluate import Evaluation, add_batch_, counted_labels
from streamkm.runs.planning.memory import bytes_together, plan_memory, predict_bytes
from streamkm.runs.sweeping.planning import Group, in_groups
from streamkm.stream.pipeline import open_slots
from streamkm.stream.plan import draws, plan_reading
from streamkm.stream.shared import SharedStream
from streamkm.stream.transfer import as_stored_tensor

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from streamkm.clustering.metrics import ClusterSums
    from streamkm.config import ExecutionConfig
    from streamkm.runs.planning.memory import MemoryPlan
    from streamkm.runs.reporting.progress import Progress
    from streamkm.runs.storage.model import Model
    from streamkm.runs.sweeping.planning import SweepPlan
    from streamkm.runs.sweeping.together import StopAll
    from streamkm.runs.sweeping.variants import Variant
    from streamkm.sources.base import Source
    from streamkm.sources.weights import Weights
    from streamkm.stream.plan import ReadingPlan
    from streamkm.stream.seat import Seat
    from streamkm.stream.transfer import DeviceWindow

__all__ = [
    "Measured",
    "MeasuringPlan",
    "measure_all_rows",
    "plan_measuring",
    "rows_of_stretches",
    "silhouette_rows",
    "weighted_mean",
]

#: Rows whose silhouettes are taken, at most: their mean is then within 0.004 of that of all rows,
#: twice its standard error. Fewer, but this number at least, where they would take more bytes or
#: more products of two numbers (about two seconds of one core in float64).
MOST_ROWS, LEAST_ROWS, ROWS_BYTES, ROWS_PRODUCTS = 1 << 15, 1 << 12, 64 << 20, 1 << 34
#: Where the memory does not hold these, half of them, and so on down to this number.
FEWEST_ROWS = 1 << 8
#: Kind of the draw of these rows, beside those of `stream.plan` and `stream.sample_plan`.
_SILHOUETTE_ROWS = 4


@dataclass(frozen=True)
class Measured:
    """Figures of one fit."""

    variant: Variant
    evaluation: Evaluation
    explained_variance: float | None
    silhouette: float | None
    """Mean silhouette by squared Euclidean distances, of `silhouette_rows`, times their weights;
    None with fewer than two clusters that have rows."""
    silhouette_rows: int
    sampled_rows: int | None = None
    """Rows of the sample that both silhouettes, Davies-Bouldin and the stability are taken of; None
    if all are of all rows, but for the exact silhouette."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        found = self.evaluation.as_dict()
        sizes, simplified = found.pop("sizes"), found.pop("silhouette")
        ordered = sorted(sizes)
        sampled = {} if self.sampled_rows is None else {"sampled_rows": self.sampled_rows}
        return {
            **self.variant.as_dict(),
            **found,
            "explained_variance": self.explained_variance,
            "silhouette": self.silhouette,
            "silhouette_rows": self.silhouette_rows,
            "simplified_silhouette": simplified,
            **sampled,
            "least_rows": ordered[0],
            "median_rows": median_size(ordered),
            "most_rows": ordered[-1],
            "sizes": sizes,
        }


@dataclass(frozen=True)
class MeasuringPlan:
    """The reads that measure the fits of a sweep."""

    groups: list[Group]
    """Fits that share one read."""
    silhouette_rows: int
    """Rows that are kept for silhouettes."""


def plan_measuring(
    plan: SweepPlan, source: Source, execution: ExecutionConfig, weights: Weights | None
) -> MeasuringPlan:
    """Which fits of a sweep are measured in one read, and in how much memory.

    All of them, or as many as the memory holds; the seeds of one K stay together. Where it does not
    hold those of one K, silhouettes are taken of fewer rows.

    Raises
    ------
    MemoryBudgetError
        If the memory does not hold those of one K with `FEWEST_ROWS` either.
    """
    n_rows = min(silhouette_rows(plan, source.spec.n_features), source.spec.n_rows)
    while True:
        try:
            return MeasuringPlan(_groups(plan, source, execution, weights, n_rows), n_rows)
        except MemoryBudgetError:
            n_rows //= 2
            if n_rows < FEWEST_ROWS:
                raise


def silhouette_rows(plan: SweepPlan, n_features: int) -> int:
    """Rows whose silhouettes are taken, if the array has that many and the memory holds them."""
    products = sum(each.k for each in plan.plans) * n_features
    bound = min(ROWS_BYTES // (n_features * 8), ROWS_PRODUCTS // products, MOST_ROWS)
    return max(bound, LEAST_ROWS)


def rows_of_stretches(n_chosen: int, n_rows: int) -> np.ndarray:
    """Numbers of `n_chosen` rows of an array, ascending: one of each of equal stretches."""
    # (The start of a stretch is its row where every row is one.)
    phase_S = draws(0, _SILHOUETTE_ROWS).random(n_chosen) if n_chosen < n_rows else 0
    places_S = (np.arange(n_chosen) + phase_S) * (n_rows / max(n_chosen, 1))
    return np.minimum(places_S.astype(np.int64), n_rows - 1)


def weighted_mean(values_S: torch.Tensor, weights_S: torch.Tensor | None) -> float | None:
    """The mean of `values_S`, with weights if there are any; None of no values."""
    if len(values_S) == 0:
        return None
    if weights_S is None:
        return float(values_S.mean())
    return float((values_S * weights_S).sum() / weights_S.sum())


def _groups(
    plan: SweepPlan,
    source: Source,
    execution: ExecutionConfig,
    weights: Weights | None,
    n_kept: int,
) -> list[Group]:
    """The groups of `plan_measuring`, with `n_kept` rows for silhouettes."""
    spec, reading = source.spec, _reading(source)
    variants, on_host = sorted(plan.plans), is_host(plan.any_plan.device)
    kept_bytes = n_kept * (spec.row_bytes + spec.n_features * 16)
    resident = 0 if weights is None else weights.resident_bytes

    def memory(members: Sequence[Variant]) -> MemoryPlan:
        needed = [predict_bytes(spec, reading, each.k, on_host=on_host) for each in members]
        fixed = bytes_together(needed) + resident + kept_bytes
        for (_, k), seeds in groupby(members, key=lambda each: each.of_all_seeds):
            n_seeds = len(list(seeds))
            if n_seeds > 1 and k <= MOST_CLUSTERS:
                fixed += n_seeds * (n_seeds - 1) // 2 * k * k * 8
                fixed += n_seeds * reading.window_rows * 8
        return plan_memory(
            spec, reading, execution, fixed_bytes=fixed, weighted=weights is not None
        )

    parts = [list(seeds) for _, seeds in groupby(variants, key=lambda each: each.of_all_seeds)]
    largest_first = sorted(parts, key=lambda seeds: -seeds[0].k)
    groups = in_groups(largest_first, memory)
    return [Group(members, memory(members)) for members in groups]


def measure_all_rows(
    models: dict[Variant, Model],
    plan: MeasuringPlan,
    source: Source,
    execution: ExecutionConfig,
    *,
    stop: StopAll,
    weights: Weights | None,
    progress: Progress,
) -> tuple[list[Measured], list[tuple[Variant, list[float]]]]:
    """The figures of each fit, and of those of several seeds the agreement of every pair.

    That stands beside the first of these fits, in their order. There is one read for each of the
    groups of `plan`.

    Raises
    ------
    StreamkmError
        After a signal.
    """
    kept = _KeptSample(source, plan.silhouette_rows)
    measured: list[Measured] = []
    agreed: list[tuple[Variant, list[float]]] = []
    for number, group in enumerate(plan.groups):
        which = f" {number + 1} of {len(plan.groups)}" if len(plan.groups) > 1 else ""
        name = f"measure{which}"
        one = _Reader(
            models, source, execution, group.variants, stop, weights, kept, progress, name
        )
        found, of_group = one.read(group.memory)
        measured += found
        agreed += of_group
    return sorted(measured, key=lambda each: each.variant), sorted(agreed)


def _reading(source: Source) -> ReadingPlan:
    spec = source.spec
    batch_rows = largest_batch_rows(spec.n_rows, spec.n_features)
    return plan_reading(spec, batch_rows=batch_rows, seed=None)


class _KeptSample:
    """Rows that are kept from the read, as they are stored: one of each of equal stretches."""

    def __init__(self, source: Source, n_rows: int) -> None:
        spec = source.spec
        self.rows_S = rows_of_stretches(n_rows, spec.n_rows)
        stored = as_stored_tensor(np.empty((0, 0), spec.storage), spec.dtype).dtype
        self.x_SD = torch.empty((n_rows, spec.n_features), dtype=stored)

    def within(self, start_row: int, n_rows: int) -> tuple[slice, torch.Tensor]:
        """Which of the kept rows lie in a range of rows, and their positions in it."""
        first, last = np.searchsorted(self.rows_S, (start_row, start_row + n_rows))
        chosen = slice(int(first), int(last))
        return chosen, torch.from_numpy(self.rows_S[chosen] - start_row)

    def take_(self, window: DeviceWindow) -> None:
        """Copy the rows that lie in `window`, whose rows follow each other."""
        start_row = window.window.reads[0].start
        chosen, positions = self.within(start_row, len(window.x_ND))
        self.x_SD[chosen] = window.taken(positions.to(window.x_ND.device)).cpu()


class _Reader:
    """One read of the rows, which measures some of the fits."""

    def __init__(
        self,
        models: dict[Variant, Model],
        source: Source,
        execution: ExecutionConfig,
        members: Sequence[Variant],
        stop: StopAll,
        weights: Weights | None,
        kept: _KeptSample,
        progress: Progress,
        name: str,
    ) -> None:
        self._models, self._source, self._execution = models, source, execution
        self._members, self._stop, self._weights = members, stop, weights
        self._kept, self._progress, self._name = kept, progress, name
        self._agreements: dict[Variant, RunningAgreement] = {}
        for each in members:
            n_seeds = len(self._beside(each))
            if n_seeds > 1 and each.k <= MOST_CLUSTERS and each == self._beside(each)[0]:
                self._agreements[each] = RunningAgreement(each.k, n_seeds)

    def _beside(self, variant: Variant) -> list[Variant]:
        """The fits that differ from this one in the seed alone, and this one."""
        found = (each for each in self._members if each.of_all_seeds == variant.of_all_seeds)
        return sorted(found)

    def read(self, memory: MemoryPlan) -> tuple[list[Measured], list[tuple[Variant, list[float]]]]:
        """What `measure_all_rows` returns, of the members."""
        device = self._models[self._members[0]].centroids_KD.device
        with open_slots(self._source, memory.stream, device) as slots:
            shared = SharedStream(self._source, slots, self._weights, on_window=self._on_window)
            self._progress.begin(self._name, self._source.spec.n_rows, shared.times)
            works: list[Callable[[Seat], Measured]] = [
                partial(self._measure, each) for each in self._members
            ]
            measured = shared.run(works, self._stop.after)
        return measured, [(first, each.indices()) for first, each in self._agreements.items()]

    def _on_window(self, window: DeviceWindow, _order: int) -> None:
        self._kept.take_(window)
        self._progress.advance(len(window.x_ND))
        if self._progress.is_due():
            self._progress.report({})

    def _measure(self, variant: Variant, seat: Seat) -> Measured:
        model, weights, kept = self._models[variant], self._weights, self._kept
        # Batches as its own reading has them: the slots are for those.
        batch_rows = _reading(self._source).batch_rows
        labelling = Labelling(model, self._source, self._execution, weights, batch_rows, seat=seat)
        sums = RunningClusterSums(model.k, model.n_features)
        watch = Watch(self._source, model.settings["nan"], ALONE, self._stop)
        beside = self._beside(variant)
        agreement, number = self._agreements.get(beside[0]), beside.index(variant)
        labels_S = torch.empty(len(kept.rows_S), dtype=torch.int64)
        weights_S = None if weights is None else torch.empty(len(labels_S), dtype=torch.float64)
        n_dropped = 0
        with labelling.evaluated() as batches:
            for place in labelling.places():
                evaluated = next(batches)
                n_found = add_batch_(sums, evaluated)
                labels_B = counted_labels(evaluated.labelled)
                chosen, positions = kept.within(place.start_row, place.n_rows)
                labels_S[chosen] = labels_B[positions]
                if weights_S is not None and evaluated.labelled.weights_B is not None:
                    weights_S[chosen] = evaluated.labelled.weights_B.cpu()[positions]
                if agreement is not None:
                    agreement.add_(number, place.start_row, labels_B)
                n_dropped += n_found
                watch.after(place, n_found)
            watch.finish()
        found, centroids_KD = sums.of_all(), labelling.centroids_KD.cpu()
        silhouette, n_rows = self._silhouette(model, found, centroids_KD, labels_S, weights_S)
        return Measured(
            variant,
            Evaluation.of(model, found, centroids_KD, n_dropped, weighted=weights is not None),
            found.explained_variance(centroids_KD),
            silhouette,
            n_rows,
        )

    def _silhouette(
        self,
        model: Model,
        found: ClusterSums,
        centroids_KD: torch.Tensor,
        labels_S: torch.Tensor,
        weights_S: torch.Tensor | None,
    ) -> tuple[float | None, int]:
        """The mean silhouette of the kept rows that have a label, and how many they are."""
        if int((found.sizes_K > 0).sum()) < 2 or len(labels_S) == 0:
            return None, 0
        x_SD = self._kept.x_SD
        scaling = model.on_host().scaling
        prepare = Preparation.widened(scaling, batch_rows=len(x_SD), dtype=centroids_KD.dtype)
        batch = prepare(x_SD, slice(None), is_shared=True)
        labelled_S = labels_S >= 0
        weights_S = None if weights_S is None else weights_S[labelled_S]
        values_S = found.silhouettes(
            batch.x_BD[labelled_S], labels_S[labelled_S], centroids_KD, weights_S
        )
        return weighted_mean(values_S, weights_S), len(values_S)
