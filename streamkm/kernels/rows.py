"""Rows as kernels are given them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

__all__ = ["Rows"]


@dataclass(frozen=True, slots=True)
class Rows:
    """B rows to assign and add up, and how each of them counts."""

    x_BD: torch.Tensor
    sq_norms_B: torch.Tensor
    """Squared lengths of the rows."""
    shares_B: torch.Tensor | None = None
    """Factor of each row in the sums, float64; None for 1."""
    left_out_B: torch.Tensor | None = None
    """True for rows that no cluster counts; None if all rows count."""
    zeros_first: bool = False
    """Whether rows of zeros get label 0, wherever the centroids are."""
