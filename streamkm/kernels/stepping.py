"""A step in few launches, of mini-batches or of a pass: what is asked of a kernel."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    import torch

__all__ = ["AddRules", "PassState", "StepKernel", "StepRules", "StepState"]


class StepState(NamedTuple):
    """What a step of mini-batches changes of a state: its own tensors; see `KMeansState`."""

    centroids_KD: torch.Tensor
    sums_KD: torch.Tensor
    mass_K: torch.Tensor
    counts_K: torch.Tensor
    epoch_counts_K: torch.Tensor
    reservoir_RD: torch.Tensor
    reservoir_keys_R: torch.Tensor
    reservoir_labels_R: torch.Tensor
    inertia: torch.Tensor
    batch_inertia: torch.Tensor
    shift: torch.Tensor
    smoothed_inertia: torch.Tensor
    best_inertia: torch.Tensor
    no_improvement: torch.Tensor
    n_steps: torch.Tensor
    n_dropped: torch.Tensor
    tolerance: torch.Tensor
    stop: torch.Tensor


class PassState(NamedTuple):
    """What a batch changes of a state during a pass of Lloyd's algorithm; see `KMeansState`."""

    centroids_KD: torch.Tensor
    """These stay as they are."""
    pass_sums_LKD: torch.Tensor
    pass_grades_K: torch.Tensor
    pass_totals_LT: torch.Tensor
    """Of rows without weights: T = 1."""
    pass_total_grades_T: torch.Tensor
    counts_K: torch.Tensor
    epoch_counts_K: torch.Tensor
    reservoir_RD: torch.Tensor
    reservoir_keys_R: torch.Tensor
    reservoir_labels_R: torch.Tensor
    inertia: torch.Tensor
    batch_inertia: torch.Tensor
    n_steps: torch.Tensor
    n_dropped: torch.Tensor


class AddRules(NamedTuple):
    """How the rows of a batch are added up, and which are offered to the reservoir."""

    seed: int
    """Of the draws of this step."""
    first: int
    stride: int
    """Row `first` of the batch and every `stride`-th after it are offered to the reservoir."""
    rounding: float
    """Share of a row's squared length up to which its squared distance is rounding."""
    n_bits: int
    least_exponent: int
    """See `FixedSums`."""

    def n_offered(self, n_rows: int) -> int:
        """How many of `n_rows` are offered."""
        return len(range(self.first, n_rows, self.stride))


class StepRules(NamedTuple):
    """What a step of mini-batches goes by: numbers that the host knows."""

    memory: float | None
    """Rows that a cluster remembers at most; None where it remembers every row."""
    n_all: int
    """Rows of the whole array."""
    patience: int | None
    """Steps without improvement after which the state stops; None for never."""
    by_tol: int
    by_no_improvement: int
    """Codes of why a state stops; 0 is that of one that runs."""


class StepKernel(Protocol):
    """A kernel that makes a step in few launches, and waits for no value."""

    def prepare(
        self,
        x_ND: torch.Tensor,
        positions_B: torch.Tensor | None,
        out_BD: torch.Tensor,
        shift_D: torch.Tensor | None,
        factor_D: torch.Tensor | None,
        *,
        most_sq_norm: float,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Gather, widen and scale rows into `out_BD`, which may be the rows of `x_ND` themselves.

        Returns their squared lengths, and which are dropped because these are greater than
        `most_sq_norm`, or NaN: those hold zeros. Both are valid until the next call.
        """

    def update_(
        self,
        state: StepState,
        x_BD: torch.Tensor,
        sq_norms_B: torch.Tensor,
        dropped_B: torch.Tensor | None,
        adding: AddRules,
        rules: StepRules,
    ) -> None:
        """Do to `state` what `MiniBatch.update_` does with a batch of rows without weights."""

    def add_to_pass_(
        self,
        state: PassState,
        x_BD: torch.Tensor,
        sq_norms_B: torch.Tensor,
        dropped_B: torch.Tensor | None,
        adding: AddRules,
        *,
        counts_step: bool,
    ) -> None:
        """Do to `state` what `Lloyd.update_` does with a batch of rows without weights.

        A pass that closes a run does not count its steps.
        """
