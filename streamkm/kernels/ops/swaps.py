"""Gains of swapping centroids for candidates, from distances that are known already."""

from __future__ import annotations

import torch

from streamkm.kernels.extension import address, can_weigh, instruction_sets, n_threads_for

__all__ = ["MOST_STEPS", "WEIGHT_STEPS", "swap_gains"]

#: Numbers that must add up to the same in any order are first rounded down to integers. Of S
#: numbers the largest becomes `WEIGHT_STEPS`, or ``MOST_STEPS / S`` if that is less, so that
#: their sum fits int64.
WEIGHT_STEPS, MOST_STEPS = 2.0**40, 2.0**62
#: Cost of a pair of a row and a candidate, in products.
SWAP_PRODUCTS = 64


def swap_gains(
    distances_LS: torch.Tensor,
    first_S: torch.Tensor,
    second_S: torch.Tensor,
    label_S: torch.Tensor,
    weights_S: torch.Tensor | None,
    k: int,
) -> torch.Tensor:
    """Fall of the cost if each of L candidates takes each of the K places.

    The costs of all K swaps are one histogram over the labels (Lattanzi & Sohler 2019).

    Parameters
    ----------
    distances_LS : Tensor of shape (L, S)
        Squared distances of the candidates to all rows.
    first_S, second_S : Tensor of shape (S,)
        Squared distances of each row to its nearest and second nearest centroid.
    label_S : int64 Tensor of shape (S,)
        Index of the nearest of the `k` centroids.
    weights_S : float64 Tensor of shape (S,), or None
        Weights of the rows; None for 1.
    k : int
        Number of centroids.

    Returns
    -------
    float64 Tensor of shape (L, K)
    """
    dtypes = {tensor.dtype for tensor in (distances_LS, first_S, second_S)}
    if (
        instruction_sets()
        and distances_LS.device.type == "cpu"
        and dtypes in ({torch.float32}, {torch.float64})
        and label_S.dtype == torch.int64
        and {tensor.shape for tensor in (first_S, second_S, label_S)} == {distances_LS.shape[1:]}
        and can_weigh(weights_S, len(label_S))
    ):
        return _compiled(distances_LS, first_S, second_S, label_S, weights_S, k)

    def weighted(values_S: torch.Tensor) -> torch.Tensor:
        return values_S if weights_S is None else values_S * weights_S

    with_it_LS = torch.minimum(distances_LS, first_S)
    gained_L = weighted(first_S - with_it_LS).sum(dim=1, dtype=torch.float64)
    # Rows whose centroid goes turn to the candidate or to their second nearest.
    lost_LS = weighted(torch.minimum(distances_LS, second_S) - with_it_LS).double()
    # As integers, which add up to the same in whatever order a GPU takes them.
    unit = lost_LS.max().clamp_min(torch.finfo(torch.float64).tiny)
    unit /= min(WEIGHT_STEPS, MOST_STEPS / len(first_S))
    first_L1 = k * torch.arange(len(lost_LS), device=lost_LS.device)[:, None]
    lost_LK = torch.zeros(len(lost_LS) * k, dtype=torch.int64, device=lost_LS.device)
    lost_LK.scatter_add_(0, (label_S + first_L1).view(-1), (lost_LS / unit).long().reshape(-1))
    return gained_L[:, None] - lost_LK.view(-1, k) * unit


def _compiled(
    distances_LS: torch.Tensor,
    first_S: torch.Tensor,
    second_S: torch.Tensor,
    label_S: torch.Tensor,
    weights_S: torch.Tensor | None,
    k: int,
) -> torch.Tensor:
    gains_LK = distances_LS.new_empty((len(distances_LS), k), dtype=torch.float64)
    rows = [tensor.contiguous() for tensor in (distances_LS, first_S, second_S, label_S)]
    weights_S = None if weights_S is None else weights_S.contiguous()
    instruction_sets()[0].functions.swap_gains(
        distances_LS.dtype == torch.float64,
        *(tensor.data_ptr() for tensor in rows),
        address(weights_S),
        gains_LK.data_ptr(),
        *distances_LS.shape,
        k,
        n_threads_for(distances_LS.numel() * SWAP_PRODUCTS),
    )
    return gains_LK
