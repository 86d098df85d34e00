"""Rows divided by their lengths."""

from __future__ import annotations

import torch

__all__ = ["normalize_", "normalized"]


def normalized(x_BD: torch.Tensor) -> torch.Tensor:
    """Rows divided by their lengths; a row of zeros stays one."""
    unit_BD = x_BD.clone()
    normalize_(unit_BD)
    return unit_BD


def normalize_(x_BD: torch.Tensor) -> None:
    """`normalized`, in place."""
    # By the largest element first: the square of a small one would vanish.
    for order in (torch.inf, 2):
        norms_B1 = torch.linalg.vector_norm(x_BD, ord=order, dim=1, keepdim=True)
        x_BD.div_(norms_B1.clamp_min_(torch.finfo(x_BD.dtype).tiny))
