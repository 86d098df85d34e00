"""Measures the fits of a sweep without a read of its own, by the fits themselves and a sample.

The last pass of a fit assigns every row and then moves the centroids to the means of the clusters.
So the model knows sizes, sums and inertia of that partition, of all rows and about the centroids as
they are. Silhouettes and mean distances need each row once more, beside the final centroids. They
are taken of rows that were copied when the fits read them: one of each of equal stretches of the
array, with the labels that `predict` gives. The distances of a silhouette are to all rows, as far
as the model knows them: to their means, and as far as rows spread about these, which the sample
tells for each cluster.

Rejected: to gather these figures within the last pass. Whoever resumes it would have to save them
with every checkpoint, and the final centroids are not known then.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import combinations, groupby
from typing import TYPE_CHECKING

import numpy as np
import torch

from streamkm.clustering.agreement import agreement_of
from streamkm.clustering.metrics import RunningClusterSums
from streamkm.config import largest_batch_rows
from streamkm.devices import is_host
from streamkm.distributed.world import ALONE
from streamkm.errors import MemoryBudgetError
from streamkm.runs.engine.labelling import Labelling
from streamkm.runs.engine.watch import Watch
from streamkm.runs.evaluate import Evaluation, add_batch_, counted_labels
from streamkm.runs.planning.memory import plan_memory, predict_bytes
from streamkm.runs.sweeping.figures import (
    Measured,
    rows_of_stretches,
    silhouette_rows,
    weighted_mean,
)
from streamkm.runs.sweeping.planning import Group
from streamkm.sources.base import RowRange
from streamkm.sources.weights import open_weights
from streamkm.stream.plan import plan_reading
from streamkm.tables import ALGORITHMS

if TYPE_CHECKING:
    from streamkm.clustering.metrics import ClusterSums
    from streamkm.config import ExecutionConfig
    from streamkm.runs.reporting.progress import Progress
    from streamkm.runs.storage.model import Model
    from streamkm.runs.sweeping.planning import SweepPlan
    from streamkm.runs.sweeping.together import StopAll
    from streamkm.runs.sweeping.variants import Variant
    from streamkm.sources.base import Source
    from streamkm.sources.sampled import SampledRows
    from streamkm.sources.weights import Weights

__all__ = ["Sampling", "measure_sampled", "plan_sampling"]

#: Rows of the sample for each cluster of the largest K, at least: the spread of a cluster is then
#: known to a few per cent.
ROWS_PER_CLUSTER = 32


@dataclass(frozen=True)
class Sampling:
    """The sample that fits of a sweep are measured on."""

    rows_S: np.ndarray
    """Numbers of its rows."""
    weights_S: np.ndarray | None
    """Their weights, all positive; None without weights."""
    n_counted: int
    """Rows of the whole array, but for those of weight 0."""
    n_bytes: int
    """What it takes beside the fits."""
    group: Group
    """All fits, and the memory while they are measured."""


def plan_sampling(
    plan: SweepPlan, source: Source, execution: ExecutionConfig, weights: Weights | None
) -> Sampling | None:
    """The sample for all fits of `plan`.

    None if the memory beside the fits does not hold it, or if a fit ends without a full pass, so
    that no sums of all rows are known.
    """
    spec, config = source.spec, plan.any_plan.config
    if not config.closing_pass and ALGORITHMS[config.algorithm].closes:
        return None
    k, n_seeds = max(each.k for each in plan.plans), len({each.seed for each in plan.plans})
    wanted = max(silhouette_rows(plan, spec.n_features), ROWS_PER_CLUSTER * k)
    n_rows = min(wanted, spec.n_rows)
    # Its number, whether it was read, its weight and its labels by one K.
    n_bytes = n_rows * (spec.row_bytes + 8 + 1 + 16 + 8 * n_seeds)
    if n_bytes > min(group.free_bytes for group in plan.groups):
        return None
    rows_S = rows_of_stretches(n_rows, spec.n_rows)
    weights_S = None if weights is None else _weights_of(weights, rows_S)
    if weights_S is not None:
        rows_S, weights_S = rows_S[weights_S > 0], weights_S[weights_S > 0]
    if len(rows_S) == 0:
        return None
    reading = plan_reading(
        spec, batch_rows=largest_batch_rows(len(rows_S), spec.n_features), seed=None
    )
    needed = predict_bytes(spec, reading, k, on_host=is_host(plan.any_plan.device))
    try:
        memory = plan_memory(
            spec, reading, execution, fixed_bytes=needed + n_bytes, weighted=weights is not None
        )
    except MemoryBudgetError:
        return None
    n_counted = spec.n_rows if weights is None else weights.n_positive
    return Sampling(rows_S, weights_S, n_counted, n_bytes, Group(list(plan.plans), memory))


def _weights_of(weights: Weights, rows_S: np.ndarray) -> np.ndarray:
    found_S = np.empty(len(rows_S))
    for place, row in enumerate(rows_S.tolist()):
        weights.read(RowRange(row, row + 1), found_S[place : place + 1])
    return found_S


def measure_sampled(
    models: dict[Variant, Model],
    sampling: Sampling,
    rows: SampledRows,
    execution: ExecutionConfig,
    *,
    stop: StopAll,
    progress: Progress,
) -> tuple[list[Measured], list[tuple[Variant, list[float]]]]:
    """As `streamkm.runs.sweeping.figures.measure_all_rows`, without a read of all rows.

    `rows` are those of which the fits were made. Those of the sample that they have not read, as
    fits that were finished before, are read alone.
    """
    sample = rows.sample()
    weights = None
    if sampling.weights_S is not None:
        weights = open_weights(sampling.weights_S, len(sampling.weights_S))
    progress.say(f"measure: on a sample of {len(sampling.rows_S):,} rows")
    measured: list[Measured] = []
    agreed: list[tuple[Variant, list[float]]] = []
    for _, seeds in groupby(sorted(models), key=lambda each: each.of_all_seeds):
        labels: dict[Variant, torch.Tensor] = {}
        for variant in seeds:
            one = _Measuring(models[variant], sample, execution, weights, sampling, stop)
            measured.append(one.measure(variant))
            labels[variant] = one.labels_S
        if len(labels) > 1:
            pairs = combinations(labels.values(), 2)
            agreed.append((min(labels), [agreement_of(*pair, variant.k) for pair in pairs]))
    return measured, agreed


class _Measuring:
    """Measures one fit on the sample."""

    def __init__(
        self,
        model: Model,
        sample: Source,
        execution: ExecutionConfig,
        weights: Weights | None,
        sampling: Sampling,
        stop: StopAll,
    ) -> None:
        self._model, self._sampling = model.on_host(), sampling
        self._watch = Watch(sample, model.settings["nan"], ALONE, stop)
        self._labelling = Labelling(
            model, sample, execution, weights, output_bytes=sampling.n_bytes
        )
        self.labels_S = torch.empty(sample.spec.n_rows, dtype=torch.int64)
        """The labels of the sample; -1 for rows that are not finite."""

    def measure(self, variant: Variant) -> Measured:
        """The figures of the fit."""
        model = self._model
        weighted = len(model.weights_K) > 0
        masses_K = model.weights_K if weighted else model.counts_K.double()
        assert model.inertia is not None  # The last pass was a full one: see `plan_sampling`.
        inertia = model.inertia * model.scaling.unit**2
        found = self._sums().expanded(model.counts_K, model.sums_KD, masses_K, inertia)
        centroids_KD = self._labelling.centroids_KD.cpu()
        n_dropped = self._sampling.n_counted - int(model.counts_K.sum())
        silhouette, n_rows = self._silhouette(found, centroids_KD)
        evaluation = Evaluation.of(model, found, centroids_KD, n_dropped, weighted=weighted)
        if not bool((self.labels_S >= 0).any()):
            evaluation = replace(evaluation, silhouette=None, davies_bouldin=None)
        return Measured(
            variant,
            evaluation,
            found.explained_variance(centroids_KD),
            silhouette,
            n_rows,
            len(self.labels_S),
        )

    def _sums(self) -> ClusterSums:
        """Those of the sample; sets `labels_S`."""
        sums = RunningClusterSums(self._model.k, self._model.n_features)
        with self._labelling.evaluated() as batches:
            for place in self._labelling.places():
                evaluated = next(batches)
                n_found = add_batch_(sums, evaluated)
                labels_B = counted_labels(evaluated.labelled)
                self.labels_S[place.start_row : place.start_row + place.n_rows] = labels_B
                self._watch.after(place, n_found)
            self._watch.finish()
        return sums.of_all()

    def _silhouette(
        self, found: ClusterSums, centroids_KD: torch.Tensor
    ) -> tuple[float | None, int]:
        """The mean silhouette of the sample, and of how many rows it is."""
        if int((found.sizes_K > 0).sum()) < 2:
            return None, 0
        weights_S = self._sampling.weights_S
        weights = None if weights_S is None else torch.from_numpy(weights_S)
        # The last pass may have left the cluster empty that is now the nearest.
        counted_S = (self.labels_S >= 0) & (found.sizes_K[self.labels_S.clamp_min(0)] > 0)
        parts = []
        with self._labelling.prepared() as batches:
            for start_row, batch in batches:
                rows = slice(start_row, start_row + len(batch))
                counted_B = counted_S[rows]
                weights_B = None if weights is None else weights[rows][counted_B]
                x_BD, labels_B = batch.x_BD.cpu()[counted_B], self.labels_S[rows][counted_B]
                parts.append(found.silhouettes(x_BD, labels_B, centroids_KD, weights_B))
        values_S = torch.cat(parts)
        weights = None if weights is None else weights[counted_S]
        return weighted_mean(values_S, weights), len(values_S)
