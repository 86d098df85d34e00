"""What a step of mini-batches does beside assigning rows and adding them up, in two calls.

These are some sixty operations on tensors of K numbers or one, which took torch 2 ms a step, in
each process of a run. The compiled extension does the same on the CPU; without it, or elsewhere,
torch does (see `streamkm.clustering.minibatch` and `StepSums`).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch

from streamkm.kernels.extension import instruction_sets, n_threads_for
from streamkm.kernels.ops.move import MOVE_PRODUCTS

if TYPE_CHECKING:
    from streamkm.kernels.ops.fixed import FixedSums
    from streamkm.kernels.stepping import StepRules, StepState

__all__ = ["Added", "can_finish", "expected_exponents", "finish_step_"]


class Added(NamedTuple):
    """The sums of a batch without weights, over all processes."""

    sums: FixedSums
    """Of K + 1 clusters; the last is of rows that no cluster counts."""
    counts_K: torch.Tensor
    """Numbers of rows, of K clusters or more; int16, int32 or int64."""
    ahead: torch.Tensor
    """int64: the sum of squared distances in quanta, and how many rows were dropped."""


def expected_exponents(
    sq_norms_K: torch.Tensor,
    labels_B: torch.Tensor,
    sq_norms_B: torch.Tensor,
    sq_distances_B: torch.Tensor,
    *,
    reach: float,
    least_share: float,
    most_share: float,
) -> tuple[torch.Tensor, int]:
    """Exponents for `FixedSums` of rows within reach of their centroids, and which do not fit.

    On the CPU, with the extension. All are contiguous, and of one dtype but for labels.

    Parameters
    ----------
    sq_norms_K : Tensor of shape (K,)
        Squared lengths of the centroids.
    labels_B : int64 Tensor of shape (B,)
        K for rows that no cluster counts, which may be of any length.
    sq_norms_B, sq_distances_B : Tensor of shape (B,)
        Squared lengths of the rows and distances to their centroids.
    reach : float
        Farthest that a row is expected to be from its centroid.
    least_share, most_share : float
        Squared lengths that fit, but for 0, are within these shares of 4 to the power of the
        exponent.

    Returns
    -------
    int32 Tensor of shape (K + 2,)
        See `FixedSums.exponents_E`.
    int
        Rows that are longer or shorter than that, and one more if any is too far away.
    """
    exponents_E = torch.empty(len(sq_norms_K) + 2, dtype=torch.int32)
    n_misfits: int = instruction_sets()[0].functions.expect(
        sq_norms_B.dtype == torch.float64,
        labels_B.data_ptr(),
        sq_norms_B.data_ptr(),
        sq_distances_B.data_ptr(),
        sq_norms_K.data_ptr(),
        exponents_E.data_ptr(),
        len(labels_B),
        len(sq_norms_K),
        reach,
        least_share,
        most_share,
    )
    return exponents_E, n_misfits


def can_finish(state: StepState) -> bool:
    """Whether there is compiled code for the end of a step of `state`."""
    return bool(instruction_sets()) and all(
        tensor.is_cpu and tensor.is_contiguous() for tensor in state
    )


def finish_step_(state: StepState, added: Added, rules: StepRules, *, spherical: bool) -> None:
    """Do to a running state what `MiniBatch.update_` does with the sums of a batch.

    Only for a state that `can_finish`; rows have no weights.
    """
    best, (sums, counts_K, ahead) = instruction_sets()[0], added
    n_limbs, _, n_features = sums.sums_LKD.shape
    k = len(state.centroids_KD)
    best.functions.finish_step(
        best.number,
        state.centroids_KD.dtype == torch.float64,
        state.centroids_KD.data_ptr(),
        state.sums_KD.data_ptr(),
        state.mass_K.data_ptr(),
        state.counts_K.data_ptr(),
        state.epoch_counts_K.data_ptr(),
        state.inertia.data_ptr(),
        state.batch_inertia.data_ptr(),
        state.shift.data_ptr(),
        state.smoothed_inertia.data_ptr(),
        state.best_inertia.data_ptr(),
        state.no_improvement.data_ptr(),
        state.n_steps.data_ptr(),
        state.n_dropped.data_ptr(),
        state.tolerance.data_ptr(),
        state.stop.data_ptr(),
        sums.sums_LKD.data_ptr(),
        sums.exponents_E.data_ptr(),
        counts_K.data_ptr(),
        ahead.data_ptr(),
        n_limbs,
        counts_K.itemsize,
        sums.n_bits,
        math.nan if rules.memory is None else rules.memory,
        rules.n_all + 1,
        -1 if rules.patience is None else rules.patience,
        rules.by_tol,
        rules.by_no_improvement,
        spherical,
        k,
        n_features,
        n_threads_for(k * n_features * MOVE_PRODUCTS),
    )
