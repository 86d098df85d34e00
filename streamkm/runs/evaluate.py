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
    from streamkm.sources import Source

__all__ = ["Evaluation", "evaluate"]

#: With no more clusters than this every size is printed.
SIZES_SHOWN = 32


@dataclass(frozen=True)
class Evaluation:
    """Figures of one clustering on one array, in the scaled space."""

    n_rows: int
    """Rows that were labelled."""
    n_dropped: int
    """Rows left out because they are not finite."""
    inertia: float
    """Sum of the squared distances of rows to their nearest centroids."""
    sizes: list[int]
    """Rows of each cluster."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "rows": self.n_rows,
            "dropped": self.n_dropped,
            "inertia": self.inertia,
            "inertia_per_row": self.inertia / max(self.n_rows, 1),
            "clusters": len(self.sizes),
            "empty_clusters": self.sizes.count(0),
            "sizes": self.sizes,
        }

    def __str__(self) -> str:
        ordered = sorted(self.sizes)
        lines = [
            f"rows             {self.n_rows:,}",
            f"dropped          {self.n_dropped:,}",
            f"inertia          {self.inertia:.9g}",
            f"inertia per row  {self.inertia / max(self.n_rows, 1):.9g}",
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
    """
    model = load_run(run_dir)
    labelling = Labelling(model, source, execution)
    nan = nan or model.settings["nan"]
    n_rows = source.spec.n_rows
    sizes_K = torch.zeros(model.k, dtype=torch.int64)
    inertia, n_dropped = 0.0, 0
    with Progress() as progress, labelling.batches() as batches:
        progress.introduce(source)
        progress.say(f"on {labelling.device}, {labelling.kernel}, {labelling.memory}")
        progress.begin("evaluate", n_rows, labelling.times)
        for batch in batches:
            if batch.n_dropped and nan == "error":
                raise non_finite_error(source, batch.n_dropped)
            # One cluster more takes the label -1 of rows that were dropped.
            counts = torch.bincount(batch.labels_B + 1, minlength=model.k + 1).cpu()
            sizes_K += counts[1:]
            inertia += float(batch.sq_distances_B.nansum())
            n_dropped += batch.n_dropped
            progress.advance(len(batch.labels_B))
            if progress.is_due():
                progress.report({})
            if stop_request.signal_name is not None:
                raise StreamkmError(f"stopped by {stop_request.signal_name}; nothing was written")
        progress.say(labelling.times.summary())
    return Evaluation(n_rows - n_dropped, n_dropped, inertia, sizes_K.tolist())
