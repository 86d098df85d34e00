"""Draws rows by weight, and takes the steps of greedy k-means++.

On the CPU the compiled extension, if there is one, takes a step in one call. It takes some thirty
operations of torch, which on a small sample take longer than their arithmetic.
"""

from __future__ import annotations

import torch

from streamkm.kernels.exact import cancelling_share
from streamkm.kernels.extension import address, can_weigh, instruction_sets, n_threads_for
from streamkm.kernels.ops.distances import sq_distances_with

__all__ = ["choose_", "drawn_by"]

#: Weights that are drawn by are first rounded down to integers. Of S weights the largest becomes
#: `WEIGHT_STEPS`, or ``MOST_STEPS / S`` if that is less, so that their sum fits int64.
WEIGHT_STEPS, MOST_STEPS = 2.0**40, 2.0**62


def drawn_by(uniform_L: torch.Tensor, weights_S: torch.Tensor) -> torch.Tensor:
    """Positions that numbers drawn evenly from 0 to 1 (float64) point to, in proportion to weights.

    Weights are rounded down to integers first: a running sum of floats depends on the
    order in which a GPU adds, one of integers does not.
    """
    weights_S = weights_S.double()
    largest = weights_S.max().clamp_min(torch.finfo(torch.float64).tiny)
    cumulative_S = (weights_S / largest).mul_(_steps(len(weights_S))).long().cumsum_(dim=0)
    drawn_L = torch.searchsorted(cumulative_S, (uniform_L * cumulative_S[-1]).long(), right=True)
    return drawn_L.clamp_(max=len(weights_S) - 1)


def _steps(n_weights: int) -> float:
    """What the largest of the weights becomes as an integer."""
    return min(WEIGHT_STEPS, MOST_STEPS / n_weights)


def choose_(
    x_SD: torch.Tensor,
    sq_norms_S: torch.Tensor,
    weights_S: torch.Tensor | None,
    uniform_L: torch.Tensor,
    *,
    closest_S: torch.Tensor,
    left_S: torch.Tensor,
    is_first: bool,
) -> torch.Tensor:
    """Choose the one of a few rows that leaves the least cost; its position, of shape (1,).

    Parameters
    ----------
    x_SD, sq_norms_S : Tensor of shape (S, D) and (S,)
        The rows, and their squared lengths.
    weights_S : float64 Tensor of shape (S,), or None
        Weights of the rows; None for 1.
    uniform_L : float64 Tensor of shape (L,)
        Numbers from 0 to 1, drawn evenly: each draws a row by its weighted squared distance.
    closest_S : Tensor of shape (S,)
        Squared distances to the nearest chosen row, infinite before the first; lowered in place.
    left_S : float64 Tensor of shape (S,)
        Weights of the rows, 0 for chosen ones; updated in place. They are what rows are drawn by
        if all lie on chosen ones.
    is_first : bool
        Whether no row is chosen yet, and rows are drawn by `left_S`.
    """
    tensors = [x_SD, sq_norms_S, closest_S, left_S, uniform_L]
    if _can_compile(x_SD, sq_norms_S, weights_S, closest_S, left_S) and all(
        tensor.is_cpu and tensor.is_contiguous() for tensor in tensors
    ):
        best, n_trials = instruction_sets()[0], uniform_L.shape[0]
        chosen = best.functions.choose(
            best.number,
            x_SD.dtype == torch.float64,
            x_SD.data_ptr(),
            sq_norms_S.data_ptr(),
            address(weights_S),
            closest_S.data_ptr(),
            left_S.data_ptr(),
            uniform_L.data_ptr(),
            *x_SD.shape,
            n_trials,
            _steps(x_SD.shape[0]),
            cancelling_share(x_SD.dtype, x_SD.shape[1]),
            is_first,
            n_threads_for(x_SD.numel() * n_trials),
        )
        return torch.tensor([chosen])
    by_S = left_S
    if not is_first:
        by_S = closest_S if weights_S is None else closest_S * weights_S
        # If all rows lie on chosen ones, to rounding, any other row will do.
        by_S = torch.where(by_S.max() > 0, by_S, left_S)
    drawn_L = drawn_by(uniform_L, by_S)
    distances_LS, cost_L = sq_distances_with(drawn_L, closest_S, x_SD, sq_norms_S, weights_S)
    best_1 = cost_L.argmin()[None]
    # index_select and not []: with an index that lies on the GPU, [] would make the host
    # wait in each of k steps.
    chosen_1 = drawn_L.index_select(0, best_1)
    left_S.index_fill_(0, chosen_1, 0)
    closest_S.copy_(distances_LS.index_select(0, best_1)[0])
    return chosen_1


def _can_compile(
    x_SD: torch.Tensor,
    sq_norms_S: torch.Tensor,
    weights_S: torch.Tensor | None,
    closest_S: torch.Tensor,
    left_S: torch.Tensor,
) -> bool:
    """Whether there is compiled code for these tensors on the CPU."""
    n_rows, dtype = x_SD.shape[0], x_SD.dtype
    return (
        bool(instruction_sets())
        and dtype in (torch.float32, torch.float64)
        and (sq_norms_S.dtype, closest_S.dtype, left_S.dtype) == (dtype, dtype, torch.float64)
        and sq_norms_S.shape == closest_S.shape == left_S.shape == (n_rows,)
        and can_weigh(weights_S, n_rows)
        and (weights_S is None or weights_S.is_contiguous())
    )
