"""How good a clustering is on an array: exact figures from one pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from streamkm.errors import StreamkmError
from streamkm.runs.labelling import Labelling
from streamkm.runs.model import load_run
from streamkm.runs.progress import Progress
from streamkm.runs.rows import non_finite_error

if TYPE_CHECKING:
    from pathlib import Path

    from streamkm.config import ExecutionConfig
    from streamkm.runs.interrupts import StopRequest
    from streamkm.sources import Source, Weights

__all__ = ["Evaluation", "evaluate"]

#: With no more clusters than this every size is printed.
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

    @property
    def inertia_per_row(self) -> float:
        """Inertia by the number of rows, or by their weight."""
        return self.inertia / ((self.n_rows if self.weights is None else sum(self.weights)) or 1)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        weights = {} if self.weights is None else {"weights": self.weights}
        return {
            "rows": self.n_rows,
            "dropped": self.n_dropped,
            "inertia": self.inertia,
            "inertia_per_row": self.inertia_per_row,
            "clusters": len(self.sizes),
            "empty_clusters": self.sizes.count(0),
            "sizes": self.sizes,
            **weights,
        }

    def __str__(self) -> str:
        ordered = sorted(self.sizes)
        lines = [
            f"rows             {self.n_rows:,}",
            f"dropped          {self.n_dropped:,}",
            f"inertia          {self.inertia:.9g}",
            f"inertia per row  {self.inertia_per_row:.9g}"
            + ("" if self.weights is None else " (per unit of weight)"),
            f"clusters         {len(self.sizes):,}",
            f"empty clusters   {self.sizes.count(0):,}",
            (
                f"cluster sizes    {ordered[0]:,} least, {ordered[len(ordered) // 2]:,} median, "
                f"{ordered[-1]:,} most"
            ),
        ]
        if len(self.sizes) <= SIZES_SHOWN:
            lines += [f"  cluster {i:<8} {size:,}" for i, size in enumerate(self.sizes)]
        else:
            lines.append("  (every size: --json)")
        return "\n".join(lines)


def evaluate(
    run_dir: Path,
    source: Source,
    execution: ExecutionConfig,
    *,
    nan: str | None = None,
    stop_request: StopRequest,
    weights: Weights | None = None,
) -> Evaluation:
    """Exact inertia and cluster sizes of the run in `run_dir` on `source`.

    Distances are taken as sums of squared differences and added up in float64.

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
    stop_request : StopRequest
        Is asked after every batch.
    weights : Weights, optional
        How much each row counts.
    """
    model = load_run(run_dir)
    labelling = Labelling(model, source, execution, weights)
    nan = nan or model.settings["nan"]
    n_rows = source.spec.n_rows
    sizes_K = torch.zeros(model.k, dtype=torch.int64)
    weights_K = torch.zeros(model.k, dtype=torch.float64)
    inertia, n_dropped = 0.0, 0
    with Progress() as progress, labelling.batches() as batches:
        progress.introduce(source)
        progress.say(f"on {labelling.device}, {labelling.kernel}, {labelling.memory}")
        progress.begin("evaluate", n_rows, labelling.times)
        for batch in batches:
            if batch.n_dropped and nan == "error":
                raise non_finite_error(source, batch.n_dropped)
            # One cluster more takes the label -1 of rows that were dropped.
            labels_B, sq_distances_B = batch.labels_B + 1, batch.sq_distances_B
            if batch.weights_B is not None:
                labels_B = labels_B.masked_fill(batch.weights_B == 0, 0)
                sq_distances_B = sq_distances_B * batch.weights_B
                on_host_B = batch.weights_B.cpu()  # Where sums have an order.
                weights_K += torch.bincount(labels_B.cpu(), on_host_B, model.k + 1)[1:]
            sizes_K += torch.bincount(labels_B, minlength=model.k + 1).cpu()[1:]
            inertia += float(sq_distances_B.nansum()) / model.scaling.unit**2
            n_dropped += batch.n_dropped
            progress.advance(len(batch.labels_B))
            if progress.is_due():
                progress.report({})
            if stop_request.signal_name is not None:
                raise StreamkmError(f"stopped by {stop_request.signal_name}; nothing was written")
        progress.say(labelling.times.summary())
    of_clusters = None if weights is None else weights_K.tolist()
    return Evaluation(int(sizes_K.sum()), n_dropped, inertia, sizes_K.tolist(), of_clusters)
