"""The seam for kernels: arithmetic on one batch, tensors in and tensors out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    import torch

    from streamkm.kernels.drift import Drift
    from streamkm.kernels.passes import PassKernel
    from streamkm.kernels.rows import Rows
    from streamkm.kernels.stepping import StepKernel

__all__ = [
    "Assignment",
    "Carried",
    "InPlaceAssignment",
    "InPlaceKernel",
    "Kernel",
    "KernelRequest",
    "ListKernel",
    "Listed",
    "MadeKernel",
    "PassSums",
    "TwoNearest",
    "assign_then_add",
]


class Assignment(NamedTuple):
    """The nearest centroid of every row of a batch."""

    labels_B: torch.Tensor
    """Index of the nearest centroid, int64; the lowest index if several are nearest."""
    sq_distances_B: torch.Tensor
    """Squared Euclidean distance to it, in the dtype of the rows, never negative; right to a few
    parts in a hundred however small it is, and 0 for a row that equals its centroid."""


class TwoNearest(NamedTuple):
    """The nearest centroid of every row of a batch, and the distance to the second nearest."""

    labels_B: torch.Tensor
    """As in `Assignment`."""
    sq_distances_B: torch.Tensor
    """As in `Assignment`."""
    second_sq_distances_B: torch.Tensor
    """Squared distance to the second nearest centroid; infinite if there is only one."""


class InPlaceAssignment(NamedTuple):
    """The nearest centroid of every row of a batch, squared lengths, and dropped rows."""

    labels_B: torch.Tensor
    """As in `Assignment`; for a dropped row that of a row of zeros."""
    sq_distances_B: torch.Tensor
    """As in `Assignment`; if exact ones were asked for, float64 and without cancellation."""
    sq_norms_B: torch.Tensor
    """Squared lengths of the rows; 0 for dropped rows."""
    dropped_B: torch.Tensor | None
    """True for rows that are not finite or too long; None if there are none."""


class Listed(NamedTuple):
    """Rows in L lists, each to be compared with some centroids alone."""

    order_B: torch.Tensor
    """Numbers of the rows, list after list, int32."""
    starts: torch.Tensor
    """Where in `order_B` the rows of each list begin, and B, int64."""
    members_P: torch.Tensor
    """Centroids, list after list, each ascending, int64."""
    offsets: torch.Tensor
    """Where in `members_P` each list begins, and P, int64; none that has rows is empty."""


class PassSums(NamedTuple):
    """What batches of unweighted rows are added to during a pass, in place."""

    sums_LKD: torch.Tensor
    """Sums in whole numbers, and their grades: see `kernels.ops.graded`."""
    grades_K: torch.Tensor
    counts: tuple[torch.Tensor, torch.Tensor]
    """Two counts of rows by label, of the pass and of the epoch, int64."""


@dataclass(slots=True)
class Carried:
    """What one pass finds of the rows of a batch and the next one goes by; kept up to date."""

    labels_B: torch.Tensor
    """Index of the nearest centroid, int32."""
    lows_B: torch.Tensor
    """A distance below which there is no other centroid, float32; 0 where none is known."""
    drift: Drift | None = None
    """How far centroids have moved since; None if nothing is known of the rows."""
    n_compared: int = 0
    """Comparisons of rows with centroids that the last call made."""


@dataclass(frozen=True, slots=True)
class KernelRequest:
    """Sizes and settings that a kernel is made for."""

    batch_rows: int
    """Rows of a batch, at most."""
    k: int
    """Number of centroids, at most."""
    dtype: torch.dtype
    """Dtype of centroids and distances, float32 or float64."""
    device: torch.device
    """Device of all tensors."""
    precision: str = "exact"
    """``exact`` rechecks rows that the screen leaves in doubt; ``fast`` does not."""
    tune: bool = False
    """Whether a kernel that can cut its work in several ways may time them first."""


class MadeKernel(Protocol):
    """Assignment and accumulation, in buffers that are allocated once: what algorithms call."""

    @property
    def name(self) -> str:
        """Name of the kernel in ``--kernel`` and the log."""

    @property
    def n_rechecked(self) -> torch.Tensor:
        """Number of rows rechecked since the kernel was made, int64, on the device."""

    @property
    def stored_dtypes(self) -> tuple[torch.dtype, ...]:
        """Dtypes of rows that it takes as stored, beside the dtype of the centroids."""

    @property
    def distances_cancel(self) -> bool:
        """Whether its squared distances come from ``|x|^2 - 2 x.c + |c|^2``, which cancels.

        Such distances are good enough to choose a centroid and to draw rows by, not to add up
        and report.
        """

    @property
    def in_place(self) -> InPlaceKernel | None:
        """The kernel's way to take rows where they lie; None if it needs prepared rows."""

    @property
    def whole_passes(self) -> PassKernel | None:
        """The kernel's way to make passes and breaths in one call; None if it has none."""

    @property
    def by_lists(self) -> ListKernel | None:
        """The kernel's way to compare rows with some centroids alone; None if it has none."""

    @property
    def stepper(self) -> StepKernel | None:
        """The kernel's way to make a step in few launches; None if it has none."""

    def assign(
        self, x_BD: torch.Tensor, sq_norms_B: torch.Tensor, centroids_KD: torch.Tensor
    ) -> Assignment:
        """The true nearest centroid of each row, whatever the precision of the screen.

        `sq_norms_B` are the squared lengths of the rows. A kernel made with ``precision="fast"``
        returns the labels of the screen.
        """

    def assign_two(
        self, x_BD: torch.Tensor, sq_norms_B: torch.Tensor, centroids_KD: torch.Tensor
    ) -> TwoNearest:
        """`assign`, with the distance to the second nearest centroid."""

    def accumulate(
        self,
        x_BD: torch.Tensor,
        labels_B: torch.Tensor,
        *,
        sums_KD: torch.Tensor,
        counts_K: torch.Tensor,
        shares_B: torch.Tensor | None = None,
    ) -> None:
        """Add each row to the sum of its label (float64), and 1 to the count (int64).

        A row is first multiplied by its share, if there are any (float64). The same input gives
        the same bits on every call. The sum of equal float32 rows is exact.
        """

    def step(
        self,
        rows: Rows,
        centroids_KD: torch.Tensor,
        *,
        sums_KD: torch.Tensor,
        counts_K: torch.Tensor,
    ) -> Assignment:
        """`assign` and then `accumulate`, in one read of the rows if that is faster.

        `sums_KD` and `counts_K` have one place more than there are centroids; its content
        afterwards means nothing.
        """


class Kernel(MadeKernel, Protocol):
    """A kernel that can be chosen by name.

    A new kernel is one class with these members and those of `MadeKernel`, one line in
    `streamkm.tables.KERNELS` and one subclass of the contract test in
    ``tests/kernels/contract.py``.
    """

    @classmethod
    def check(cls, device: torch.device) -> None:
        """Raise a DeviceError with cause and remedy if the kernel cannot run on `device`."""

    @classmethod
    def make(cls, request: KernelRequest) -> Kernel:
        """The kernel, with its buffers."""


class InPlaceKernel(Protocol):
    """A kernel that takes rows where they lie in a window, and computes their lengths itself."""

    def assign_in_place(
        self,
        x_ND: torch.Tensor,
        positions_B: torch.Tensor | None,
        centroids_KD: torch.Tensor,
        *,
        most_sq_norm: float,
        exact: bool,
        carried: Carried | None = None,
    ) -> InPlaceAssignment:
        """Find nearest centroids, squared lengths and rows to drop in one read of the rows.

        Parameters
        ----------
        x_ND : Tensor of shape (N, D)
            The window, in the dtype of the centroids.
        positions_B : int32 Tensor of shape (B,), or None
            Positions of the rows in it; None for all its rows.
        centroids_KD : Tensor of shape (K, D)
        most_sq_norm : float
            Rows whose squared length is greater, or NaN, are dropped.
        exact : bool
            Whether distances are sums of squared differences, float64.
        carried : Carried, optional
            What a pass before has found, brought up to date; only with `exact`.
        """

    def assign_and_add(
        self,
        x_ND: torch.Tensor,
        positions_B: torch.Tensor | None,
        centroids_KD: torch.Tensor,
        *,
        most_sq_norm: float,
        added: PassSums,
        unit: float,
        carried: Carried | None = None,
    ) -> InPlaceAssignment:
        """`assign_in_place` with exact distances; rows are added to `added`, times `unit`.

        The sums are those of `accumulate` and `add_graded_`. Dropped rows are left out. What is
        `carried` spares comparisons, and is brought up to date; it changes no bit of the result.
        """

    def accumulate(
        self,
        x_BD: torch.Tensor,
        labels_B: torch.Tensor,
        *,
        sums_KD: torch.Tensor,
        counts_K: torch.Tensor,
        shares_B: torch.Tensor | None = None,
        positions_B: torch.Tensor | None = None,
    ) -> None:
        """`Kernel.accumulate`; with `positions_B` (int32), of those rows of the window `x_BD`."""


class ListKernel(Protocol):
    """A kernel that compares the rows of a batch with lists of centroids in one call."""

    def assign_listed(
        self,
        x_BD: torch.Tensor,
        sq_norms_B: torch.Tensor,
        centroids_KD: torch.Tensor,
        lists: Listed,
    ) -> Assignment:
        """As `Kernel.assign` for the rows of each list and its centroids; labels are of all K."""


def assign_then_add(
    kernel: MadeKernel,
    rows: Rows,
    centroids_KD: torch.Tensor,
    *,
    sums_KD: torch.Tensor,
    counts_K: torch.Tensor,
) -> Assignment:
    """`Kernel.step` as `assign` followed by `accumulate`."""
    assignment = kernel.assign(rows.x_BD, rows.sq_norms_B, centroids_KD)
    labels_B = assignment.labels_B
    if rows.zeros_first:
        labels_B.masked_fill_(rows.sq_norms_B == 0, 0)
    if rows.left_out_B is not None:
        labels_B = labels_B.masked_fill(rows.left_out_B, len(centroids_KD))
    kernel.accumulate(
        rows.x_BD, labels_B, sums_KD=sums_KD, counts_K=counts_K, shares_B=rows.shares_B
    )
    return assignment
