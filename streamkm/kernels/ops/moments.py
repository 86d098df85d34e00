"""Moments of the features of a batch, in float64.

On the CPU the compiled extension, if there is one, computes them in parts that stay in a
cache. Otherwise torch computes them tile by tile.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from streamkm.kernels.extension import (
    address,
    can_weigh,
    instruction_sets,
    n_threads_for,
    stored_types,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Moments", "moments_in_parts"]

#: Elements that torch widens at once: 1 MiB of float64.
TILE_ELEMENTS = 1 << 17
#: Cost of one element, in products.
MOMENT_PRODUCTS = 8


@dataclass
class Moments:
    """Moments of rows; rows that are not finite count in `n_dropped` alone."""

    count: torch.Tensor
    """Number of the rows, or the sum of their weights."""
    mean_D: torch.Tensor
    m2_D: torch.Tensor
    """Sums of squared deviations from the mean."""
    min_D: torch.Tensor
    max_D: torch.Tensor
    n_dropped: torch.Tensor


def moments_in_parts(x_BD: torch.Tensor, weights_B: torch.Tensor | None) -> Iterator[Moments]:
    """Moments of a batch of any dtype, in one part or several for the caller to merge.

    With weights (float64), a row of weight w counts as w rows.
    """
    available = instruction_sets()
    if (
        available
        and x_BD.device.type == "cpu"
        and x_BD.is_contiguous()
        and x_BD.dtype in stored_types()
        and can_weigh(weights_B, len(x_BD))
    ):
        yield _compiled(x_BD, weights_B)
        return
    tile_rows = max(TILE_ELEMENTS // x_BD.shape[1], 1)
    for start in range(0, len(x_BD), tile_rows):
        tile = slice(start, start + tile_rows)
        weights_T1 = None if weights_B is None else weights_B[tile, None]
        yield _moments_of_tile(x_BD[tile].double(), weights_T1)


def _moments_of_tile(x_TD: torch.Tensor, weights_T1: torch.Tensor | None) -> Moments:
    finite_T1 = x_TD.sum(dim=1, keepdim=True).isfinite()
    kept_T1 = finite_T1 if weights_T1 is None else finite_T1 & (weights_T1 > 0)
    zeroed_TD = x_TD.masked_fill(~kept_T1, 0)
    if weights_T1 is None:
        count = kept_T1.sum().double()
        # Division by at least 1: a tile without a finite row then merges as nothing.
        mean_D = zeroed_TD.sum(dim=0) / count.clamp_min(1)
    else:
        count = (weights_T1 * kept_T1).sum()
        mean_D = (zeroed_TD * weights_T1).sum(dim=0) / torch.where(count > 0, count, 1)
    squares_TD = zeroed_TD.sub_(mean_D).masked_fill_(~kept_T1, 0).square_()
    return Moments(
        count=count,
        mean_D=mean_D,
        m2_D=(squares_TD if weights_T1 is None else squares_TD.mul_(weights_T1)).sum(dim=0),
        min_D=x_TD.masked_fill(~kept_T1, torch.inf).amin(dim=0),
        max_D=x_TD.masked_fill(~kept_T1, -torch.inf).amax(dim=0),
        n_dropped=(~finite_T1).sum(),
    )


def _compiled(x_BD: torch.Tensor, weights_B: torch.Tensor | None) -> Moments:
    n_rows, n_features = x_BD.shape
    best = instruction_sets()[0]
    numbers = torch.zeros(2 + 4 * n_features, dtype=torch.float64)
    count, n_dropped, mean_D, m2_D, min_D, max_D = numbers.split([1, 1, *[n_features] * 4])
    min_D.fill_(torch.inf)
    max_D.fill_(-torch.inf)
    counted_B = torch.empty(n_rows, dtype=torch.float64)
    weights_B = None if weights_B is None else weights_B.contiguous()
    best.functions.moments(
        best.number,
        stored_types()[x_BD.dtype],
        x_BD.data_ptr(),
        address(weights_B),
        counted_B.data_ptr(),
        numbers.data_ptr(),
        n_rows,
        n_features,
        n_threads_for(x_BD.numel() * MOMENT_PRODUCTS),
    )
    return Moments(count[0], mean_D, m2_D, min_D, max_D, n_dropped[0].long())
