"""Divides rows by their lengths."""

from __future__ import annotations

import torch

__all__ = ["normalize_", "normalized"]


def normalized(x_BD: torch.Tensor) -> torch.Tensor:
    """Rows divided by their lengths; rows of zeros stay as they are."""
    unit_BD = x_BD.clone()
    normalize_(unit_BD)
    return unit_BD


def normalize_(x_BD: torch.Tensor) -> None:
    """`normalized`, in place."""
    # First by the largest element: the squares of small elements would vanish.
    for order in (torch.inf, 2):
        norms_B1 = torch.linalg.vector_norm(x_BD, ord=order, dim=1, keepdim=True)
        x_BD.div_(norms_B1.clamp_min_(torch.finfo(x_BD.dtype).tiny))
