"""The choices of a breath: where a centroid is added, and with which other one each is merged.

On the CPU the compiled extension, if there is one, makes each in one call. It takes a dozen
operations of torch, which on a small sample take longer than their arithmetic.
"""

from __future__ import annotations

import torch

from streamkm.kernels.extension import address, can_weigh, instruction_sets

__all__ = ["cheapest_mergers", "mean_around"]

#: Distances that exceed another by less than this factor count as equal to it.
SLACK = 1 + 1e-9
#: Products of two numbers up to which the compiled code is faster than a matrix product.
FEW_PRODUCTS = 1 << 20
#: Products of the masses and distances of pairs of centroids that torch holds at a time.
TILE_ELEMENTS = 1 << 20
#: ``c * SPLIT - (c * SPLIT - c)`` rounds c to 24 bits (Veltkamp 1968).
SPLIT = 2.0**29 + 1


def cheapest_mergers(
    centroids_KD: torch.Tensor, mass_K: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """What the cheapest merger of each of two or more centroids costs, and with which one it is.

    A merger costs the product of the masses over the sum, times the squared distance (Ward 1963).
    Costs are rounded to 24 bits: so the cost of two that are each other's cheapest is the same
    for both, however it was computed.

    Returns
    -------
    costs_K : float64 Tensor of shape (K,)
    partner_K : int64 Tensor of shape (K,)
    """
    k, n_features = centroids_KD.shape
    if mass_K.is_cpu and k * k * n_features <= FEW_PRODUCTS and instruction_sets():
        costs_K, partner_K = torch.empty_like(mass_K), torch.empty(k, dtype=torch.int64)
        columns_DK = centroids_KD.T.to(torch.float64, memory_format=torch.contiguous_format)
        masses_K = mass_K.contiguous()
        instruction_sets()[0].functions.mergers(
            columns_DK.data_ptr(),
            masses_K.data_ptr(),
            costs_K.data_ptr(),
            partner_K.data_ptr(),
            k,
            n_features,
        )
    else:
        costs_K, partner_K = _by_matrix_products(centroids_KD.double(), mass_K)
    wide_K = costs_K * SPLIT
    return wide_K - (wide_K - costs_K), partner_K


def _by_matrix_products(
    wide_KD: torch.Tensor, mass_K: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    sq_norms_K, costs, partners = wide_KD.square().sum(dim=1), [], []
    tile = max(TILE_ELEMENTS // len(wide_KD), 1)
    for start in range(0, len(wide_KD), tile):
        rows = slice(start, start + tile)
        mass_T1 = mass_K[rows, None]
        costs_TK = torch.addmm(sq_norms_K, wide_KD[rows], wide_KD.T, alpha=-2)
        costs_TK += sq_norms_K[rows, None]
        costs_TK *= mass_T1 * mass_K / (mass_T1 + mass_K).clamp_min_(torch.finfo(mass_K.dtype).tiny)
        costs_TK.diagonal(start).fill_(torch.inf)
        least_T, partner_T = costs_TK.min(dim=1)
        costs.append(least_T)
        partners.append(partner_T)
    return torch.cat(costs), torch.cat(partners)


def mean_around(
    x_SD: torch.Tensor,
    weights_S: torch.Tensor | None,
    label_S: torch.Tensor,
    row: torch.Tensor,
    *,
    step: int,
    most: int,
) -> torch.Tensor:
    """Weighted mean of a row and the rows of its cluster nearest to it, shape (1, D).

    Parameters
    ----------
    x_SD, weights_S : Tensor of shape (S, D) and (S,)
        The rows and their weights, float64, or None if each weighs 1.
    label_S : int64 Tensor of shape (S,)
        The cluster of each row.
    row : int64 Tensor of shape ()
        The row.
    step : int
        Every `step`-th row of the cluster is looked at.
    most : int
        Of these the nearest `most` count, or half of them if that is less. Rows as near as the last
        of them count too.
    """
    if _can_compile(x_SD, weights_S, label_S):
        best, mean_LD = instruction_sets()[0], x_SD.new_empty((1, x_SD.shape[1]))
        best.functions.around(
            best.number,
            x_SD.dtype == torch.float64,
            x_SD.data_ptr(),
            address(weights_S),
            label_S.data_ptr(),
            mean_LD.data_ptr(),
            *x_SD.shape,
            int(row),
            step,
            most,
            SLACK,
        )
        return mean_LD
    row = row.view(1)
    members = (label_S == label_S.index_select(0, row)).nonzero().squeeze(1)[::step]
    wide_MD, own_LD = x_SD.index_select(0, members).double(), x_SD.index_select(0, row)
    distances_M = (wide_MD - own_LD).square().sum(dim=1)
    n_near = min(most, (len(members) + 1) // 2)
    limit = distances_M.topk(n_near, largest=False, sorted=False).values.amax() * SLACK
    near_N = torch.cat((row, members[distances_M <= limit]))
    x_ND = x_SD.index_select(0, near_N).double()
    if weights_S is None:
        return x_ND.mean(dim=0, keepdim=True).to(x_SD.dtype)
    weights_N1 = weights_S.index_select(0, near_N)[:, None]
    return ((weights_N1 * x_ND).sum(dim=0, keepdim=True) / weights_N1.sum()).to(x_SD.dtype)


def _can_compile(x_SD: torch.Tensor, weights_S: torch.Tensor | None, label_S: torch.Tensor) -> bool:
    """Whether there is compiled code for these tensors."""
    tensors = [x_SD, label_S] if weights_S is None else [x_SD, label_S, weights_S]
    return (
        bool(instruction_sets())
        and all(tensor.is_cpu and tensor.is_contiguous() for tensor in tensors)
        and x_SD.dtype in (torch.float32, torch.float64)
        and label_S.dtype == torch.int64
        and label_S.shape == x_SD.shape[:1]
        and can_weigh(weights_S, len(x_SD))
    )
