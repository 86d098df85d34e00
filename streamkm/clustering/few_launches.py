"""A step of mini-batches, or of a pass, by the few launches of a kernel that can make one.

On a GPU the operations of torch that follow an assignment take longer to launch than to carry out.
Steps of other kinds, of rows with weights, on the unit sphere, or of batches that processes share,
go the way of `streamkm.clustering.minibatch` and `streamkm.clustering.lloyd`, which do the same.
"""

from __future__ import annotations

from operator import attrgetter
from typing import TYPE_CHECKING

import torch

from streamkm.clustering.reservoir import OFFERED_PER_BATCH, mix, offered_of
from streamkm.clustering.state import BY_NO_IMPROVEMENT, BY_TOL
from streamkm.kernels import (
    LEAST_EXPONENT,
    AddRules,
    PassState,
    StepRules,
    StepState,
    bits_for,
    rounding_share,
)

if TYPE_CHECKING:
    from streamkm.clustering.batch import Batch
    from streamkm.clustering.state import KMeansState
    from streamkm.kernels import MadeKernel

__all__ = ["add_in_few_launches_", "step_state", "takes_few_launches", "update_in_few_launches_"]


_OF_STEP, _OF_PASS = attrgetter(*StepState._fields), attrgetter(*PassState._fields)
_ROUNDING = rounding_share(torch.float32, skips_zeros=False)


def step_state(state: KMeansState) -> StepState:
    """The tensors of `state` that a step of mini-batches changes."""
    return StepState._make(_OF_STEP(state))


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
    rules = StepRules(memory, n_all, patience, BY_TOL, BY_NO_IMPROVEMENT)
    kernel.stepper.update_(
        step_state(state),
        batch.x_BD, batch.sq_norms_B, batch.dropped_B,
        _add_rules(len(batch), entropy, OFFERED_PER_BATCH), rules,
    )  # fmt: skip


def add_in_few_launches_(
    kernel: MadeKernel,
    state: KMeansState,
    batch: Batch,
    *,
    entropy: tuple[int, ...],
    n_offered: int,
    counts_step: bool,
) -> None:
    """Do what `Lloyd.update_` does, with weights in units of 1."""
    assert kernel.stepper is not None
    kernel.stepper.add_to_pass_(
        PassState._make(_OF_PASS(state)),
        batch.x_BD, batch.sq_norms_B, batch.dropped_B,
        _add_rules(len(batch), entropy, n_offered), counts_step=counts_step,
    )  # fmt: skip


def _add_rules(n_rows: int, entropy: tuple[int, ...], n_offered: int) -> AddRules:
    seed = mix(*entropy) >> 1
    first, stride = offered_of(seed, n_rows, n_offered)
    return AddRules(
        seed=seed,
        first=first,
        stride=stride,
        rounding=_ROUNDING,
        n_bits=bits_for(n_rows),
        least_exponent=LEAST_EXPONENT[torch.float32],
    )
