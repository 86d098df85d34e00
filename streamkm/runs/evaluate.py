"""Judges a clustering on an array: exact figures from one pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import torch

from streamkm.clustering.metrics import RunningClusterSums
from streamkm.distributed.world import ALONE
from streamkm.runs.engine.labelled import LookedAt
from streamkm.runs.engine.labelling import Labelling
from streamkm.runs.engine.summary import Spread, median_size
from streamkm.runs.engine.watch import Watch
from streamkm.runs.reporting.progress import Progress
from streamkm.runs.storage.model import load_model

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from streamkm.clustering.metrics import ClusterSums
    from streamkm.config import ExecutionConfig
    from streamkm.distributed.world import World
    from streamkm.runs.engine.labelled import EvaluatedBatch, LabelledBatch
    from streamkm.runs.reporting.signals import StopRequest
    from streamkm.runs.storage.model import Model
    from streamkm.sources import Source, Weights

__all__ = ["Evaluation", "add_batch_", "counted_labels", "evaluate"]

#: Every size is printed for up to this number of clusters.
SIZES_SHOWN = 32


@dataclass(frozen=True)
class Evaluation:
    """Figures of one clustering on one array, in the scaled space."""

    n_rows: int
    """Rows that were labelled; with weights, those of a positive one."""
    n_dropped: int
    """Rows left out because they are not finite."""
    inertia: float
    """Sum of the squared distances of rows to their nearest centroids, times their weights."""
    sizes: list[int]
    """Rows of each cluster; with weights, those of a positive one."""
    weights: list[float] | None = None
    """Sum of the weights of each cluster; None without weights."""

    silhouette: float | None = None
    """Simplified silhouette, in [0, 1]; None if fewer than two clusters have rows."""
    calinski_harabasz: float | None = None
    """As scikit-learn's; None as before, or if there are no more rows than clusters."""
    davies_bouldin: float | None = None
    """As scikit-learn's if centroids are means; None if fewer than two clusters have rows."""
    looked_at: LookedAt | None = None
    """After a fast search: rows that were compared with all centroids; None after an exact one."""
    chosen: str = ""
    """Which rows of the source these are, in words; empty if all."""

    @property
    def inertia_per_row(self) -> float:
        """Inertia by the number of rows, or by their weight."""
        return self.inertia / ((self.n_rows if self.weights is None else sum(self.weights)) or 1)

    @classmethod
    def of(
        cls,
        model: Model,
        found: ClusterSums,
        centroids_KD: torch.Tensor,
        n_dropped: int,
        *,
        weighted: bool,
        compare: bool = True,
        looked_at: LookedAt | None = None,
        chosen: str = "",
    ) -> Self:
        """The figures of a clustering by `model` from its sums, which are about `centroids_KD`.

        `compare` is that of `evaluate`, `looked_at` and `chosen` are those of the class.
        """
        return cls(
            int(found.sizes_K.sum()),
            n_dropped,
            found.inertia / model.scaling.unit**2,
            found.sizes_K.tolist(),
            found.masses_K.tolist() if weighted else None,
            found.simplified_silhouette(),
            found.calinski_harabasz(centroids_KD),
            found.davies_bouldin(centroids_KD) if compare else None,
            looked_at,
            chosen,
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        weights = {} if self.weights is None else {"weights": self.weights}
        search = {}
        if self.looked_at is not None:
            n_rows, n_true = self.looked_at
            search = {"true_nearest": n_true / (n_rows or 1), "true_nearest_rows": n_rows}
        return {
            "rows": self.n_rows,
            **({"chosen": self.chosen} if self.chosen else {}),
            "dropped": self.n_dropped,
            "inertia": self.inertia,
            "inertia_per_row": self.inertia_per_row,
            "silhouette": self.silhouette,
            "calinski_harabasz": self.calinski_harabasz,
            "davies_bouldin": self.davies_bouldin,
            "clusters": len(self.sizes),
            "empty_clusters": self.sizes.count(0),
            "sizes": self.sizes,
            "size_spread": Spread.of(sorted(self.sizes))._asdict(),
            **weights,
            **search,
        }

    def __str__(self) -> str:
        ordered = sorted(self.sizes)
        lines = [
            f"rows             {self.n_rows:,}" + (f" ({self.chosen})" if self.chosen else ""),
            f"dropped          {self.n_dropped:,}",
            f"inertia          {self.inertia:.9g}",
            f"inertia per row  {self.inertia_per_row:.9g}"
            + ("" if self.weights is None else " (per unit of weight)"),
            f"silhouette       {_shown(self.silhouette)} (simplified, of distances to centroids)",
            f"variance ratio   {_shown(self.calinski_harabasz)} (Calinski-Harabasz)",
            f"Davies-Bouldin   {_shown(self.davies_bouldin)}",
            f"clusters         {len(self.sizes):,}",
            f"empty clusters   {self.sizes.count(0):,}",
            (
                f"cluster sizes    {ordered[0]:,} least, {median_size(ordered):,} median, "
                f"{ordered[-1]:,} most"
            ),
            f"size spread      {Spread.of(ordered)}",
        ]
        if self.looked_at is not None:
            n_rows, n_true = self.looked_at
            lines.append(
                f"true nearest     {n_true / (n_rows or 1):.2%} of {n_rows:,} rows compared with "
                "every centroid (search fast: the figures above are of its labels)"
            )
        if len(self.sizes) <= SIZES_SHOWN:
            lines += [f"  cluster {i:<6} {size:,}" for i, size in enumerate(self.sizes)]
        else:
            lines.append("  (every size: --json)")
        return "\n".join(lines)


def _shown(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.6g}"


def evaluate(
    run_dir: Path,
    source: Source,
    execution: ExecutionConfig,
    *,
    nan: str | None = None,
    search: str = "exact",
    stop_request: StopRequest,
    weights: Weights | None = None,
    world: World = ALONE,
    look: Callable[[LabelledBatch], None] | None = None,
    compare: bool = True,
    quiet: bool = False,
) -> Evaluation:
    """Inertia, cluster sizes and measures of quality of the run in `run_dir` on `source`.

    One pass. Distances to the nearest centroids are sums of squared differences, and are
    added up in float64, so that no order shows (see `streamkm.kernels.add_graded_`).

    Parameters
    ----------
    run_dir : Path
        A finished run.
    source : Source
        N rows by as many features as the run's centroids have.
    execution : ExecutionConfig
        How to carry it out.
    nan : {"error", "drop"}, optional
        What to do about rows with NaN or infinity; by default as in the run.
    search : {"exact", "fast"}
        Whether each row is compared with every centroid, or with those around one branch. Then
        some rows are compared with all, to say how many find the nearest.
    stop_request : StopRequest
        Asked after every batch.
    weights : Weights, optional
        How much each row counts.
    world : World, optional
        The processes that share the rows. All call `evaluate` with the same arguments, and each
        returns the same figures.
    look : callable, optional
        Gets each batch of this process, for whoever wants more of the rows than their sums.
    compare : bool, optional
        Whether each centroid is compared with each other, as the Davies-Bouldin index takes. The
        work grows with the square of their number: of 100,000 it is half a minute of one core.
    quiet : bool, optional
        Whether nothing is said on stderr.

    Raises
    ------
    StreamkmError
        After `stop_request`.
    InputError
        If the run or the data cannot be used.
    """
    model = load_model(run_dir, world)
    nan = nan or model.settings["nan"]
    is_fast = search == "fast"
    labelling = Labelling(model, source, execution, weights, world=world, fast=is_fast)
    sums = RunningClusterSums(model.k, model.n_features)
    n_dropped, looked_at = torch.zeros(1, dtype=torch.int64), torch.zeros(2, dtype=torch.int64)
    watch = Watch(source, nan, world, stop_request)
    with (
        Progress(quiet=quiet or not world.is_first) as progress,
        labelling.evaluated() as batches,
    ):
        progress.introduce(source, labelling.notes)
        progress.say(
            f"on {labelling.device}, {labelling.kernel_description}, {labelling.memory_description}"
        )
        progress.begin("evaluate", source.spec.n_rows, labelling.times)
        for place in labelling.places():
            n_found = 0
            if place.owner == world.rank:
                evaluated = next(batches)
                n_found = add_batch_(sums, evaluated)
                looked_at += torch.tensor(evaluated.looked_at)
                if look is not None:
                    look(evaluated.labelled)
            n_dropped += n_found
            watch.after(place, n_found)
            progress.advance(place.n_rows)
            if progress.is_due():
                progress.report({})
        watch.finish()
        progress.say(labelling.times.summary())
    found = sums.of_all(world)
    world.sum_(n_dropped, looked_at)
    centroids_KD = labelling.centroids_KD.cpu()
    return Evaluation.of(
        model, found, centroids_KD, int(n_dropped), weighted=weights is not None, compare=compare,
        looked_at=LookedAt(*looked_at.tolist()) if is_fast else None,
        chosen=str(source.spec.choice or ""),
    )  # fmt: skip


def add_batch_(sums: RunningClusterSums, evaluated: EvaluatedBatch) -> int:
    """Add a batch to the sums; returns how many of its rows are not finite."""
    batch = evaluated.labelled
    weights_B = None if batch.weights_B is None else batch.weights_B.cpu()
    sums.update_(
        counted_labels(batch),
        batch.sq_distances_B.cpu(),
        evaluated.second_sq_distances_B.cpu(),
        evaluated.sums_KD.cpu(),
        weights_B,
    )
    return batch.n_dropped


def counted_labels(batch: LabelledBatch) -> torch.Tensor:
    """The labels of a batch, on the host; -1 for rows that do not count: of weight 0 or dropped."""
    labels_B = batch.labels_B.cpu()
    if batch.weights_B is None:
        return labels_B
    return labels_B.masked_fill(batch.weights_B.cpu() == 0, -1)
