"""What a model finds of a batch of rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch

    from streamkm.kernels import Nearest

__all__ = ["EvaluatedBatch", "LabelledBatch", "LookedAt"]


@dataclass(frozen=True, slots=True)
class LabelledBatch:
    """Consecutive rows and their nearest centroids, on the device."""

    start_row: int
    labels_B: torch.Tensor
    """int64; -1 for rows that are not finite."""
    sq_distances_B: torch.Tensor
    """Squared distances in the scaled space, float64; NaN for rows that are not finite."""
    weights_B: torch.Tensor | None = None
    """Float64; 0 for rows that are not finite; None without weights."""
    several: Nearest | None = None
    """The nearest centroids, if the labelling ranks several; as above for rows not finite."""

    @property
    def n_dropped(self) -> int:
        """Rows that are not finite; waits for the device."""
        return int((self.labels_B < 0).sum())


class LookedAt(NamedTuple):
    """Rows of a fast search that were compared with all centroids."""

    n_rows: int
    n_true: int
    """Those whose label is a nearest centroid."""


@dataclass(frozen=True, slots=True)
class EvaluatedBatch:
    """A labelled batch, and what else judging a clustering takes."""

    labelled: LabelledBatch
    second_sq_distances_B: torch.Tensor
    """Squared distances to the second nearest centroid; infinite if there is only one."""
    sums_KD: torch.Tensor
    """Sum of the rows of each cluster, times their weights, float64."""
    looked_at: LookedAt
