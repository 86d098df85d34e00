"""Moves points to the means of sums, or to their directions.

On the CPU the compiled extension, if there is one, does it in one read of the sums.
Otherwise it takes a few operations of torch.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from streamkm.kernels.extension import address, instruction_sets, n_threads_for
from streamkm.kernels.ops.normalize import normalized

__all__ = ["MOVE_PRODUCTS", "Sums", "means_of", "move_points_"]

#: Cost of moving one feature of a point, above all a division, in products.
MOVE_PRODUCTS = 32


class Sums(NamedTuple):
    """Sums of the rows of each cluster, in a unit in which no weight is too large."""

    sums_KD: torch.Tensor
    """Sums divided by the unit, float64."""
    unit: torch.Tensor
    """A power of two, float64: of the size of the weights, or 1 if rows have no weights."""

    def wide(self) -> torch.Tensor:
        """The sums times the unit, float64."""
        return self.sums_KD * self.unit


def move_points_(
    points_KD: torch.Tensor,
    sums_KD: torch.Tensor,
    masses_K: torch.Tensor,
    touched_K: torch.Tensor,
    *,
    spherical: bool,
    added: Sums | None = None,
    kept_K: torch.Tensor | None = None,
) -> torch.Tensor:
    """Add to the sums of touched clusters, then move their points, in place.

    Parameters
    ----------
    points_KD : Tensor of shape (K, D), float32 or float64
        The points; changed in place.
    sums_KD : float64 Tensor of shape (K, D)
        Sums of the clusters; `added` is added to those of touched clusters.
    masses_K : Tensor of shape (K,)
        Numbers of rows or sums of weights; means are sums divided by them.
    touched_K : bool Tensor of shape (K,)
        Which points move.
    spherical : bool
        Whether points move to the directions of the sums, not to the means. A point whose sum
        is 0 then stays.
    added : Sums, optional
        Sums of a batch.
    kept_K : float64 Tensor of shape (K,), optional
        Share of its sum that each touched cluster keeps before `added` is added; 1 by default.

    Returns
    -------
    Tensor of shape (), float64
        Sum of the squared distances that points moved.
    """
    if _can_move(points_KD, sums_KD):
        return _compiled_(points_KD, sums_KD, masses_K, touched_K, spherical, added, kept_K)
    if added is not None:
        if kept_K is not None:
            sums_KD.mul_(torch.where(touched_K, kept_K, 1)[:, None])
        sums_KD.add_(torch.where(touched_K[:, None], added.wide(), 0))
    if spherical:
        centres_KD = normalized(sums_KD)
        touched_K = touched_K & (sums_KD != 0).any(dim=1)
    else:
        centres_KD = sums_KD / torch.where(masses_K > 0, masses_K, 1)[:, None]
    moved_KD = torch.where(touched_K[:, None], centres_KD, points_KD).to(points_KD.dtype)
    shift = (moved_KD - points_KD).double().square_().sum()
    points_KD.copy_(moved_KD)
    return shift


def means_of(
    sums_KD: torch.Tensor, masses_K: torch.Tensor, points_KD: torch.Tensor, *, spherical: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """The means of clusters whose points were `points_KD`, and what that gains, float64.

    The gain is how much less the squared distances of the rows of each cluster are, in all, to
    their mean than to the point. Parameters are those of `move_points_`. A cluster of mass 0 keeps
    its point.
    """
    means_KD, touched_K = points_KD.clone(memory_format=torch.contiguous_format), masses_K > 0
    if _can_move(means_KD, sums_KD):
        gains_K = torch.empty_like(masses_K, dtype=torch.float64)
        _compiled_(means_KD, sums_KD, masses_K, touched_K, spherical, gains_K=gains_K)
        return means_KD, gains_K.sum()
    move_points_(means_KD, sums_KD, masses_K, touched_K, spherical=spherical)
    # |x - c|^2 - |x - c'|^2 = (c' - c) . (2 x - c - c'), summed over the rows of a cluster.
    from_KD, to_KD = points_KD.double(), means_KD.double()
    from_both_KD = 2 * sums_KD - masses_K[:, None] * (from_KD + to_KD)
    return means_KD, ((to_KD - from_KD) * from_both_KD).sum()


def _can_move(points_KD: torch.Tensor, sums_KD: torch.Tensor) -> bool:
    """Whether there is compiled code for these tensors."""
    lie_ready = points_KD.is_contiguous() and sums_KD.is_contiguous()
    return sums_KD.is_cpu and lie_ready and bool(instruction_sets())


def _compiled_(
    points_KD: torch.Tensor,
    sums_KD: torch.Tensor,
    masses_K: torch.Tensor,
    touched_K: torch.Tensor,
    spherical: bool,
    added: Sums | None = None,
    kept_K: torch.Tensor | None = None,
    gains_K: torch.Tensor | None = None,
) -> torch.Tensor:
    best, masses_K = instruction_sets()[0], masses_K.double()
    added_KD = None if added is None else added.sums_KD.double().contiguous()
    sq_steps_K = torch.empty_like(masses_K)
    shift = best.functions.move(
        best.number,
        points_KD.dtype == torch.float64,
        sums_KD.data_ptr(),
        address(kept_K),
        address(added_KD),
        1.0 if added is None else float(added.unit),
        masses_K.data_ptr(),
        touched_K.data_ptr(),
        points_KD.data_ptr(),
        sq_steps_K.data_ptr(),
        address(gains_K),
        *points_KD.shape,
        spherical,
        n_threads_for(points_KD.numel() * MOVE_PRODUCTS),
    )
    return torch.tensor(shift, dtype=torch.float64)
