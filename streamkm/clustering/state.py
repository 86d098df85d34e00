"""The state of a clustering in progress: a value made of tensors, and nothing else.

Everything that decides what comes next is in here, on the device: the sums and
counts, the rows that wait to replace empty clusters, the smoothed inertia and
the verdict that the run is over. No scalar has to come back to the host
for a step to be taken, and saving the state is saving its tensors. Where the
run stands in the stream (the cursor) is not part of it.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch

from streamkm.kernels import Reservoir

__all__ = [
    "BY_NO_IMPROVEMENT",
    "BY_TOL",
    "CONVERGED",
    "RUNNING",
    "STOP_REASONS",
    "KMeansState",
    "initial_state",
    "reservoir_rows",
]

RUNNING, BY_TOL, BY_NO_IMPROVEMENT, CONVERGED = range(4)
#: Why a state is frozen, by its `stop` code.
STOP_REASONS = {
    BY_TOL: "the centroid shift fell to tol",
    BY_NO_IMPROVEMENT: "the smoothed inertia did not improve for max-no-improvement steps",
    CONVERGED: "converged: no centroid moves any more, every row is with its nearest",
}

#: Rows that wait to replace empty clusters: for so many clusters one, and at least.
CLUSTERS_PER_RESERVOIR_ROW, MIN_RESERVOIR_ROWS = 16, 256


@dataclass
class KMeansState:
    """K centroids over D features, with all that updating them needs.

    Unless said otherwise, tensors of no dimension are float64.
    """

    centroids_KD: torch.Tensor
    """In the scaled space, float32 or float64."""
    sums_KD: torch.Tensor
    """Sum of the rows of each cluster, float64: over the run for minibatch, the pass for lloyd."""
    counts_K: torch.Tensor
    """Number of those rows, int64; with weights, those of a positive one."""
    weights_K: torch.Tensor
    """Sum of their weights, float64; of shape (0,) where rows have none."""
    epoch_counts_K: torch.Tensor
    """Rows of each cluster since the epoch began, int64."""
    epoch_weights_K: torch.Tensor
    """Sum of their weights, as `weights_K`."""
    reservoir_RD: torch.Tensor
    """Rows drawn with probability by squared distance, to replace empty clusters."""
    reservoir_keys_R: torch.Tensor
    """Their keys, least first, infinite where there is no row; float64."""
    reservoir_labels_R: torch.Tensor
    """The clusters that they were assigned to, int64; 0 where there is no row."""
    reservoir_weights_R: torch.Tensor
    """Their weights, float64; of shape (0,) where rows have none."""
    tolerance: torch.Tensor
    """Squared centroid shift at which the run stops."""
    inertia: torch.Tensor
    """Sum of squared distances since the epoch began, to the centroids as they stood then."""
    settled_inertia: torch.Tensor
    """The same for the last pass that ended (lloyd, closing pass), every row to its cluster's
    centroid as it stands since; NaN before."""
    batch_inertia: torch.Tensor
    """Mean squared distance of the rows of the last batch."""
    shift: torch.Tensor
    """Squared centroid shift of the last update."""
    smoothed_inertia: torch.Tensor
    """Exponentially weighted average of `batch_inertia`; NaN before the second step."""
    best_inertia: torch.Tensor
    """Least value that it had."""
    no_improvement: torch.Tensor
    """Steps since then, int64."""
    n_steps: torch.Tensor
    """Updates that were applied, int64."""
    n_dropped: torch.Tensor
    """Rows left out since the epoch began because they are not finite, int64."""
    n_reseeded: torch.Tensor
    """Clusters that were reseeded, int64."""
    stop: torch.Tensor
    """`RUNNING`, or why the state is frozen, int64."""

    @property
    def k(self) -> int:
        """Number of clusters."""
        return len(self.centroids_KD)

    @property
    def is_weighted(self) -> bool:
        """Whether rows have weights."""
        return len(self.weights_K) > 0

    @property
    def masses_K(self) -> torch.Tensor:
        """What the sums are divided by to give means: the rows' number, or their weight."""
        return self.weights_K if self.is_weighted else self.counts_K

    @property
    def epoch_mass(self) -> torch.Tensor:
        """Number of the epoch's rows, or their weight."""
        return (self.epoch_weights_K if self.is_weighted else self.epoch_counts_K).sum()

    @property
    def reservoir(self) -> Reservoir:
        """The rows that wait to replace empty clusters, on the same memory."""
        return Reservoir(
            self.reservoir_RD,
            self.reservoir_keys_R,
            self.reservoir_labels_R,
            self.reservoir_weights_R,
        )

    def tensors(self) -> dict[str, torch.Tensor]:
        """Every tensor by its name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def begin_epoch_(self, *, closing: bool = False) -> None:
        """Forget what was gathered over the epoch before.

        A frozen state stays as it is, unless what begins is the closing pass.
        """
        live = (self.stop == RUNNING) | closing
        for tensor in (self.epoch_counts_K, self.epoch_weights_K, self.inertia, self.n_dropped):
            tensor.masked_fill_(live, 0)
        self.reservoir_keys_R.masked_fill_(live, torch.inf)


def initial_state(
    centroids_KD: torch.Tensor, tolerance: float, *, weighted: bool = False
) -> KMeansState:
    """The state before the first row: `centroids_KD` seeded, nothing counted."""
    k, n_features = centroids_KD.shape
    device = centroids_KD.device

    def scalar(value: float) -> torch.Tensor:
        return torch.tensor(value, dtype=torch.float64, device=device)

    def integer() -> torch.Tensor:
        return torch.zeros((), dtype=torch.int64, device=device)

    def weights(size: int) -> torch.Tensor:
        return torch.zeros(size if weighted else 0, dtype=torch.float64, device=device)

    n_reservoir = reservoir_rows(k)
    return KMeansState(
        centroids_KD=centroids_KD,
        sums_KD=torch.zeros((k, n_features), dtype=torch.float64, device=device),
        counts_K=torch.zeros(k, dtype=torch.int64, device=device),
        weights_K=weights(k),
        epoch_counts_K=torch.zeros(k, dtype=torch.int64, device=device),
        epoch_weights_K=weights(k),
        reservoir_RD=centroids_KD.new_zeros((n_reservoir, n_features)),
        reservoir_keys_R=torch.full((n_reservoir,), torch.inf, dtype=torch.float64, device=device),
        reservoir_labels_R=torch.zeros(n_reservoir, dtype=torch.int64, device=device),
        reservoir_weights_R=weights(n_reservoir),
        tolerance=scalar(tolerance),
        inertia=scalar(0),
        settled_inertia=scalar(torch.nan),
        batch_inertia=scalar(torch.nan),
        shift=scalar(torch.nan),
        smoothed_inertia=scalar(torch.nan),
        best_inertia=scalar(torch.inf),
        no_improvement=integer(),
        n_steps=integer(),
        n_dropped=integer(),
        n_reseeded=integer(),
        stop=integer(),
    )


def reservoir_rows(k: int) -> int:
    """Rows that may wait to replace empty clusters."""
    return min(k, max(MIN_RESERVOIR_ROWS, k // CLUSTERS_PER_RESERVOIR_ROW))
