"""What a kernel is: the arithmetic on one batch, tensors in and tensors out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    import torch

__all__ = [
    "Assignment",
    "InPlaceAssignment",
    "InPlaceKernel",
    "Kernel",
    "KernelRequest",
    "Rows",
    "TwoNearest",
    "assign_then_add",
]


@dataclass(frozen=True, slots=True)
class Rows:
    """B rows that are assigned and added up, and how they count."""

    x_BD: torch.Tensor
    sq_norms_B: torch.Tensor
    """Their squared lengths."""
    shares_B: torch.Tensor | None = None
    """What each is multiplied by in the sums, in the dtype of centroids; None for 1."""
    left_out_B: torch.Tensor | None = None
    """True for rows that no cluster counts; None where all count."""
    zeros_first: bool = False
    """Whether rows of zeros have label 0, wherever the centroids are."""


class Assignment(NamedTuple):
    """The nearest centroid of every row of a batch."""

    labels_B: torch.Tensor
    """Index of the nearest centroid, int64; the lowest one where several are nearest."""
    sq_distances_B: torch.Tensor
    """Squared Euclidean distance to it, in the dtype of the rows, never negative."""


class TwoNearest(NamedTuple):
    """The nearest centroid of every row of a batch, and how far the second nearest is."""

    labels_B: torch.Tensor
    """As in `Assignment`."""
    sq_distances_B: torch.Tensor
    """As in `Assignment`."""
    second_sq_distances_B: torch.Tensor
    """Likewise to the second nearest centroid; infinite if there is one centroid only."""


class InPlaceAssignment(NamedTuple):
    """The nearest centroid of every row of a batch, and what was found out about the rows."""

    labels_B: torch.Tensor
    """As in `Assignment`, of a row of zeros where a row was dropped."""
    sq_distances_B: torch.Tensor
    """As in `Assignment`, or float64 and free of cancellation, as was asked for."""
    sq_norms_B: torch.Tensor
    """Squared lengths of the rows; 0 where a row was dropped."""
    dropped_B: torch.Tensor | None
    """True for rows whose squared length is beyond what was asked for; None if there is none."""


@dataclass(frozen=True, slots=True)
class KernelRequest:
    """What a kernel is made for."""

    batch_rows: int
    """Rows of a batch, at most."""
    k: int
    """Centroids, at most."""
    dtype: torch.dtype
    """Of centroids and distances, float32 or float64."""
    device: torch.device
    """Where they lie."""
    precision: str = "exact"
    """Whether rows that screening cannot tell apart are scored again: ``exact`` or ``fast``."""
    tune: bool = False
    """Whether a kernel that has several ways to cut its work may time them first."""


class Kernel(Protocol):
    """Assignment and accumulation; buffers are made once, when the kernel is.

    A new kernel is one class with these members, one line in `streamkm.tables.KERNELS` and one
    subclass of the contract test in ``tests/kernels/contract.py``.
    """

    @classmethod
    def check(cls, device: torch.device) -> None:
        """Raise a DeviceError, which says why and what to do, where it cannot run on `device`."""

    @classmethod
    def make(cls, request: KernelRequest) -> Kernel:
        """The kernel, with its buffers."""

    @property
    def name(self) -> str:
        """As ``--kernel`` and the log name it."""

    @property
    def n_rechecked(self) -> torch.Tensor:
        """Rows that were scored again since the kernel was made: int64, on the device."""

    @property
    def stored_dtypes(self) -> tuple[torch.dtype, ...]:
        """Dtypes in which it takes rows as they are stored, beside that of the centroids."""

    @property
    def distances_cancel(self) -> bool:
        """Whether its squared distances are what is left of |x|^2 - 2 x.c + |c|^2 after rounding.

        Such distances are enough to choose by, not to be added up and reported.
        """

    @property
    def in_place(self) -> InPlaceKernel | None:
        """The kernel as one that takes rows where they lie; None if they must be prepared."""

    def assign(
        self, x_BD: torch.Tensor, sq_norms_B: torch.Tensor, centroids_KD: torch.Tensor
    ) -> Assignment:
        """The true nearest centroid of each row, in whatever precision rows were screened.

        `sq_norms_B` holds the rows' squared lengths. A kernel made with ``precision="fast"``
        leaves the labels as they were screened.
        """

    def assign_two(
        self, x_BD: torch.Tensor, sq_norms_B: torch.Tensor, centroids_KD: torch.Tensor
    ) -> TwoNearest:
        """`assign`, and the distance to the second nearest centroid beside it."""

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

    def step(
        self,
        rows: Rows,
        centroids_KD: torch.Tensor,
        *,
        sums_KD: torch.Tensor,
        counts_K: torch.Tensor,
    ) -> Assignment:
        """`assign` and then `accumulate`, in one read of the rows where that is faster.

        `sums_KD` and `counts_K` have one place more than there are centroids: what it holds
        afterwards means nothing.
        """


class InPlaceKernel(Protocol):
    """A kernel that takes rows of a window where they lie, and finds out about them by itself."""

    def assign_in_place(
        self,
        x_ND: torch.Tensor,
        positions_B: torch.Tensor | None,
        centroids_KD: torch.Tensor,
        *,
        most_sq_norm: float,
        exact: bool,
    ) -> InPlaceAssignment:
        """Nearest centroid of rows of a window of which nothing is known, in one pass over them.

        Parameters
        ----------
        x_ND : Tensor of shape (N, D)
            The window, in the dtype of the centroids.
        positions_B : int32 Tensor of shape (B,), or None
            Which of its rows; None for all of them.
        centroids_KD : Tensor of shape (K, D)
        most_sq_norm : float
            Rows whose squared length is greater, or NaN, are dropped.
        exact : bool
            Whether distances are to be sums of squared differences.
        """

    def accumulate(
        self,
        x_BD: torch.Tensor,
        labels_B: torch.Tensor,
        *,
        sums_KD: torch.Tensor,
        counts_K: torch.Tensor,
        positions_B: torch.Tensor | None = None,
    ) -> None:
        """`Kernel.accumulate`; with `positions_B`, int32, of those rows of a window `x_BD`."""


def assign_then_add(
    kernel: Kernel,
    rows: Rows,
    centroids_KD: torch.Tensor,
    *,
    sums_KD: torch.Tensor,
    counts_K: torch.Tensor,
) -> Assignment:
    """`Kernel.step` by its two parts."""
    assignment = kernel.assign(rows.x_BD, rows.sq_norms_B, centroids_KD)
    labels_B, x_BD = assignment.labels_B, rows.x_BD
    if rows.zeros_first:
        labels_B.masked_fill_(rows.sq_norms_B == 0, 0)
    if rows.left_out_B is not None:
        labels_B = labels_B.masked_fill(rows.left_out_B, len(centroids_KD))
    if rows.shares_B is not None:
        x_BD = x_BD * rows.shares_B[:, None]
    kernel.accumulate(x_BD, labels_B, sums_KD=sums_KD, counts_K=counts_K)
    return assignment
