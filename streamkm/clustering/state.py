"""The state of a clustering in progress: a value made of tensors alone.

It holds, on the device, all that decides the next step: sums and counts, the rows
that wait to fill empty clusters, the smoothed inertia, and whether the run is over.
So a step needs no scalar back on the host, and saving the state is saving its
tensors. The place of the run in the stream (the cursor) is not part of it.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import torch

from streamkm.clustering.branch_plan import listed
from streamkm.clustering.branches import Branches
from streamkm.clustering.reservoir_plan import reservoir_rows
from streamkm.kernels import LEAST_GRADE, Reservoir, move_points_
from streamkm.ranges import named

if TYPE_CHECKING:
    from streamkm.kernels import Sums

__all__ = [
    "BY_MIN_GAIN",
    "BY_NO_IMPROVEMENT",
    "BY_TOL",
    "CONVERGED",
    "RUNNING",
    "STOP_REASONS",
    "KMeansState",
    "initial_state",
]

RUNNING, BY_TOL, BY_NO_IMPROVEMENT, CONVERGED, BY_MIN_GAIN = range(5)
#: Why a state has stopped, by its `stop` code.
STOP_REASONS = {
    BY_TOL: "the centroid shift fell to tol",
    BY_NO_IMPROVEMENT: "the smoothed inertia did not improve for max-no-improvement steps",
    CONVERGED: "converged: no centroid moves any more, every row is with its nearest",
    BY_MIN_GAIN: "the last epoch lowered the inertia by no more than min-gain",
}


@dataclass
class KMeansState:
    """K centroids over D features, and all that their updates need.

    Tensors without a dimension are float64 unless their line says otherwise.
    """

    centroids_KD: torch.Tensor
    """In the scaled space, float32 or float64."""
    sums_KD: torch.Tensor
    """Sums of the rows that each cluster remembers, float64: those of the pass (lloyd), or of the
    run (minibatch), of which older rows may count less."""
    pass_sums_LKD: torch.Tensor
    """Sums of the rows of each cluster since a pass of lloyd began, in whole numbers (see
    `add_graded_`); a process's own, where several share the pass."""
    pass_grades_K: torch.Tensor
    """Their grades."""
    pass_totals_LT: torch.Tensor
    """The inertia and then the weights of the clusters since the pass began, in the same way."""
    pass_total_grades_T: torch.Tensor
    """Their grades."""
    mass_K: torch.Tensor
    """Mass of the remembered rows, float64: sums divided by it are means."""
    counts_K: torch.Tensor
    """Numbers of rows of each cluster over the run (minibatch) or the pass (lloyd), int64; rows of
    weight 0 are not counted."""
    weights_K: torch.Tensor
    """Sums of their weights, float64; of shape (0,) where rows have no weights."""
    epoch_counts_K: torch.Tensor
    """Numbers of rows of each cluster since the epoch began, int64."""
    epoch_weights_K: torch.Tensor
    """Sums of their weights, as `weights_K`."""
    reservoir_RD: torch.Tensor
    """Rows drawn by squared distance, to fill empty clusters."""
    reservoir_keys_R: torch.Tensor
    """Their keys, least first, float64; infinite where there is no row."""
    reservoir_labels_R: torch.Tensor
    """The clusters that they were assigned to, int64; 0 where there is no row."""
    reservoir_weights_R: torch.Tensor
    """Their weights, float64; of shape (0,) where rows have no weights."""
    branches_JD: torch.Tensor
    """Where the branches of a tree are, in the dtype of the centroids; none in other algorithms."""
    listed_P: torch.Tensor
    """Clusters that the rows of each branch are compared with, int64 (see `Branches`)."""
    n_listed_J: torch.Tensor
    """Numbers of them, int64."""
    tolerance: torch.Tensor
    """Squared centroid shift at which the run stops."""
    inertia: torch.Tensor
    """Sum of squared distances since the epoch began, each taken when its row was assigned."""
    former_inertia: torch.Tensor
    """Mean squared distance of the rows of the epoch before, taken as `inertia`; NaN where the
    next is not to be compared with it."""
    settled_inertia: torch.Tensor
    """Sum of squared distances of the last full pass (lloyd, closing pass), from rows to the
    centroids of their clusters after the pass moved them; NaN before."""
    batch_inertia: torch.Tensor
    """Mean squared distance of the rows of the last batch."""
    shift: torch.Tensor
    """Squared centroid shift of the last update."""
    smoothed_inertia: torch.Tensor
    """Exponentially weighted average of `batch_inertia`; NaN before the second step."""
    best_inertia: torch.Tensor
    """Least `smoothed_inertia` so far."""
    no_improvement: torch.Tensor
    """Steps since `best_inertia` fell, int64."""
    n_steps: torch.Tensor
    """Updates applied, int64."""
    n_dropped: torch.Tensor
    """Rows dropped since the epoch began because they are not finite, int64."""
    n_reseeded: torch.Tensor
    """Clusters reseeded over the run, int64."""
    stop: torch.Tensor
    """`RUNNING`, or the code of why the state has stopped, int64."""

    @property
    def k(self) -> int:
        """Number of clusters."""
        return self.centroids_KD.shape[0]

    @property
    def is_weighted(self) -> bool:
        """Whether rows have weights."""
        return self.weights_K.shape[0] > 0

    @property
    def whole_mass_K(self) -> torch.Tensor:
        """Mass of the rows that `counts_K` counts, whether their cluster remembers them or not."""
        return self.weights_K if self.is_weighted else self.counts_K

    @property
    def whole_sums_KD(self) -> torch.Tensor:
        """Sums of that mass whose means are those of `sums_KD`; 0 where a cluster got no row."""
        known_K = self.mass_K > 0
        return self.sums_KD * torch.where(known_K, self.whole_mass_K / self.mass_K, 1)[:, None]

    @property
    def epoch_mass(self) -> torch.Tensor:
        """Mass of the rows since the epoch began."""
        return (self.epoch_weights_K if self.is_weighted else self.epoch_counts_K).sum()

    @property
    def reservoir(self) -> Reservoir:
        """The reservoir, on the memory of the state."""
        return Reservoir(
            self.reservoir_RD,
            self.reservoir_keys_R,
            self.reservoir_labels_R,
            self.reservoir_weights_R,
        )

    @property
    def branches(self) -> Branches:
        """The branches, on the memory of the state."""
        return Branches(self.branches_JD, self.listed_P, self.n_listed_J)

    def clone(self) -> KMeansState:
        """A copy whose tensors have memory of their own."""
        return KMeansState(**{name: tensor.clone() for name, tensor in self.tensors().items()})

    def tensors(self) -> dict[str, torch.Tensor]:
        """Every tensor by its name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def move_(
        self,
        touched_K: torch.Tensor,
        *,
        spherical: bool,
        added: Sums | None = None,
        kept_K: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Move touched centroids to the means of their clusters, or the directions of their sums.

        First the sums of these clusters keep the share `kept_K`, or all, and `added`, the sums of
        a batch, is added to them; `mass_K` must already be so. A spherical cluster whose sum has
        no direction keeps its centroid.

        Returns
        -------
        Tensor of shape (), float64
            Squared centroid shift: the sum of the squared distances that they moved.
        """
        with named("move"):
            return move_points_(
                self.centroids_KD,
                self.sums_KD,
                self.mass_K,
                touched_K,
                spherical=spherical,
                added=added,
                kept_K=kept_K,
            )

    def begin_epoch_(self, *, closing: bool = False) -> None:
        """Reset what the epoch before gathered.

        A state that has stopped stays as it is, unless a closing pass begins.
        """
        live = (self.stop == RUNNING) | closing
        for tensor in (self.epoch_counts_K, self.epoch_weights_K, self.inertia, self.n_dropped):
            tensor.masked_fill_(live, 0)
        self.reservoir_keys_R.masked_fill_(live, torch.inf)


def initial_state(
    centroids_KD: torch.Tensor, tolerance: float, *, weighted: bool = False, n_branches: int = 0
) -> KMeansState:
    """The state before the first row, with the centroids of the seeding; branches begin at 0."""
    k, n_features = centroids_KD.shape
    device = centroids_KD.device

    def scalar(value: float) -> torch.Tensor:
        return torch.full((), value, dtype=torch.float64, device=device)

    def integer() -> torch.Tensor:
        return torch.zeros((), dtype=torch.int64, device=device)

    def weights(size: int) -> torch.Tensor:
        return torch.zeros(size if weighted else 0, dtype=torch.float64, device=device)

    n_reservoir, n_totals = reservoir_rows(k), 1 + (k if weighted else 0)
    return KMeansState(
        centroids_KD=centroids_KD,
        sums_KD=torch.zeros((k, n_features), dtype=torch.float64, device=device),
        pass_sums_LKD=torch.zeros((2, k, n_features), dtype=torch.int64, device=device),
        pass_grades_K=torch.full((k,), LEAST_GRADE, device=device),
        pass_totals_LT=torch.zeros((2, n_totals), dtype=torch.int64, device=device),
        pass_total_grades_T=torch.full((n_totals,), LEAST_GRADE, device=device),
        mass_K=torch.zeros(k, dtype=torch.float64, device=device),
        counts_K=torch.zeros(k, dtype=torch.int64, device=device),
        weights_K=weights(k),
        epoch_counts_K=torch.zeros(k, dtype=torch.int64, device=device),
        epoch_weights_K=weights(k),
        reservoir_RD=centroids_KD.new_zeros((n_reservoir, n_features)),
        reservoir_keys_R=torch.full((n_reservoir,), torch.inf, dtype=torch.float64, device=device),
        reservoir_labels_R=torch.zeros(n_reservoir, dtype=torch.int64, device=device),
        reservoir_weights_R=weights(n_reservoir),
        branches_JD=centroids_KD.new_zeros((n_branches, n_features)),
        listed_P=torch.zeros(listed(k, n_branches), dtype=torch.int64, device=device),
        n_listed_J=torch.zeros(n_branches, dtype=torch.int64, device=device),
        tolerance=scalar(tolerance),
        inertia=scalar(0),
        former_inertia=scalar(torch.nan),
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
