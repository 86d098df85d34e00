"""How far centroids have moved since rows were compared with them, for ``native/carried.h``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch

__all__ = ["Drift"]

#: Shares of the centroids that rows are compared with, in order of drift. Of more than half, all:
#: bounds that are found anew are worth more then than what is saved.
STEPS = (1 / 32, 1 / 16, 1 / 8, 3 / 16, 1 / 4, 3 / 8, 1 / 2)
#: Steps are multiples of this number of centroids: half of the narrowest panel of AVX2.
STEP_LANES = 8
#: What is added to drifts for rounding while they are computed: a share, and what vanishes of
#: squares.
DRIFT_SLACK, DRIFT_VANISHED = 1 + 2.0**-20, 1e-150
#: Elements of differences that are in memory at once: 8 MiB.
TILE_ELEMENTS = 1 << 20


@dataclass(frozen=True)
class Drift:
    """How far centroids have moved since rows were compared with them.

    Centroids are in steps, those that moved most first; each step has those of the ones before.
    """

    members: torch.Tensor
    """Centroids of one step after the other, each ascending, int64."""
    offsets: torch.Tensor
    """Where in `members` each step begins, and its length, int64."""
    limits: torch.Tensor
    """The most that any centroid moved, and any beyond each step, float64."""
    farthest: int
    """The centroid that moved most."""
    next: float
    """The most that any other moved."""

    @classmethod
    def between(cls, before_KD: torch.Tensor, after_KD: torch.Tensor) -> Self:
        """The drift from one to the other, rounded up."""
        k, n_features = before_KD.shape
        drifts_K = torch.empty(k, dtype=torch.float64)
        for rows in torch.arange(k).split(max(TILE_ELEMENTS // n_features, 1)):
            moved_RD = after_KD[rows].double().sub_(before_KD[rows])
            drifts_K[rows] = moved_RD.square_().sum(dim=1)
        drifts_K.sqrt_().mul_(DRIFT_SLACK).add_(DRIFT_VANISHED)
        # What is not a number is farther than any.
        drifts_K.nan_to_num_(nan=torch.inf, posinf=torch.inf)
        sorted_K, order_K = drifts_K.sort(descending=True)
        padded = torch.cat([sorted_K, sorted_K.new_zeros(1)])
        ends = sorted({-(-round(k * share) // STEP_LANES) * STEP_LANES for share in STEPS})
        ends = [end for end in ends if 0 < end <= k // 2]
        steps = [order_K[:end].sort().values for end in ends]
        lengths = torch.tensor([0, *ends], dtype=torch.int64)
        return cls(
            torch.cat(steps) if steps else order_K[:0],
            lengths.cumsum(0),
            padded[[0, *ends]].contiguous(),
            int(order_K[0]),
            float(padded[1]),
        )
