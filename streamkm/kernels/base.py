"""What a kernel is: the arithmetic on one batch, tensors in and tensors out."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    import torch

__all__ = ["Assignment", "Kernel"]


class Assignment(NamedTuple):
    """The nearest centroid of every row of a batch."""

    labels_B: torch.Tensor
    """Index of the nearest centroid, int64; the lowest one where several are nearest."""
    sq_distances_B: torch.Tensor
    """Squared Euclidean distance to it, in the dtype of the rows, never negative."""


class Kernel(Protocol):
    """Assignment and accumulation; buffers are made once, when the kernel is."""

    @property
    def name(self) -> str:
        """As ``--kernel`` and the log name it."""

    @property
    def n_rechecked(self) -> torch.Tensor:
        """Rows that were scored again since the kernel was made: int64, on the device."""

    def assign(
        self, x_BD: torch.Tensor, sq_norms_B: torch.Tensor, centroids_KD: torch.Tensor
    ) -> Assignment:
        """The true nearest centroid of each row, in whatever precision rows were screened.

        `sq_norms_B` holds the rows' squared lengths. A kernel made with ``precision="fast"``
        leaves the labels as they were screened.
        """

    def accumulate(
        self,
        x_BD: torch.Tensor,
        labels_B: torch.Tensor,
        *,
        sums_KD: torch.Tensor,
        counts_K: torch.Tensor,
    ) -> None:
        """Add each row to the sum, and one to the count (int64), of its label.

        The same input gives the same bits on every call.
        """
