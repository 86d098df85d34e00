"""A step of mini-batches by the few launches of a kernel that can make one.

On a GPU the operations of torch that follow an assignment take longer to launch than to carry out.
Steps of all other kinds, of rows with weights, on the unit sphere, or shared by several processes,
go the way of `streamkm.clustering.minibatch`, which does the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from streamkm.clustering.reservoir import mix, offered_of
from streamkm.clustering.state import BY_NO_IMPROVEMENT, BY_TOL
from streamkm.kernels import LEAST_EXPONENT, StepRules, StepState, bits_for, rounding_share

if TYPE_CHECKING:
    from streamkm.clustering.batch import Batch
    from streamkm.clustering.state import KMeansState
    from streamkm.kernels import MadeKernel

__all__ = ["step_state", "takes_few_launches", "update_in_few_launches_"]


def step_state(state: KMeansState) -> StepState:
    """The tensors of `state` that a step of mini-batches changes."""
    return StepState(*(getattr(state, name) for name in StepState._fields))


def takes_few_launches(kernel: MadeKernel, batch: Batch, *, spherical: bool) -> bool:
    """Whether `kernel` makes a step of `batch` in few launches."""
    return (
        kernel.stepper is not None
        and len(batch) > 0
        and not (spherical or batch.is_normalized)
        and batch.weights_B is None
        and batch.numbers_B is None
        and batch.sq_norms_B.dtype == torch.float32
        and batch.x_BD.is_contiguous()
    )


def update_in_few_launches_(
    kernel: MadeKernel,
    state: KMeansState,
    batch: Batch,
    *,
    entropy: tuple[int, ...],
    memory: float | None,
    n_all: int,
    patience: int | None,
) -> None:
    """Do what `MiniBatch.update_` does; `entropy` are the numbers that name the step."""
    assert kernel.stepper is not None
    seed = mix(*entropy) >> 1
    first, stride = offered_of(seed, len(batch))
    rules = StepRules(
        seed=seed,
        first=first,
        stride=stride,
        rounding=rounding_share(torch.float32, skips_zeros=False),
        n_bits=bits_for(len(batch)),
        least_exponent=LEAST_EXPONENT[torch.float32],
        memory=memory,
        n_all=n_all,
        patience=patience,
        by_tol=BY_TOL,
        by_no_improvement=BY_NO_IMPROVEMENT,
    )
    kernel.stepper.update_(step_state(state), batch.x_BD, batch.sq_norms_B, batch.dropped_B, rules)
