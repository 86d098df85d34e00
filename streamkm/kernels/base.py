"""The seam for kernels: arithmetic on one batch, tensors in and tensors out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    import torch

    from streamkm.kernels.stepping import StepKernel

__all__ = [
    "Assignment",
    "BreathRules",
    "Breathed",
    "InPlaceAssignment",
    "InPlaceKernel",
    "Kernel",
    "KernelRequest",
    "MadeKernel",
    "PassKernel",
    "PassedOver",
    "Passes",
    "Rows",
    "TwoNearest",
    "assign_then_add",
]


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


class PassedOver(NamedTuple):
    """What passes of Lloyd's algorithm over rows in memory found."""

    n_made: int
    """Number of passes."""
    is_full: bool
    """Whether every cluster has mass."""
    is_worth_it: bool
    """Whether the last pass gained enough for another."""
    labels_B: torch.Tensor
    """As in `Assignment`, before the last pass."""
    sq_distances_B: torch.Tensor
    """As in `Assignment`; if exact ones were asked for, without cancellation."""
    mass_K: torch.Tensor
    """Weights of the rows of each cluster, float64."""
    after_KD: torch.Tensor
    """The centroids after the last pass; those of clusters of mass 0 did not move."""
    gains_K: torch.Tensor
    """How much less the squared distances of the rows of each cluster are to these, float64."""


class BreathRules(NamedTuple):
    """How breaths are taken; see `streamkm.clustering.seeding.breathing`."""

    n_passes_in: int
    """Passes with the added centroids."""
    n_passes_out: int
    """Passes after as many were removed, with exact distances in the last."""
    step: int
    """Every `step`-th row of a cluster is looked at for those around a drawn one."""
    most_around: int
    """Rows around a drawn one that it is averaged with."""
    slack: float
    """Rows are as near as another up to this multiple of its squared distance."""
    settled: float
    """Breaths end if the cheapest merger costs more than this multiple of the costliest cluster."""
    tried: int
    """They end so only after this number of breaths in a row that were not kept."""
    blur: float
    """Power of the exponential variables that costs are multiplied by, after a breath that was not
    kept."""
    least_share: float
    """A breath is kept if it lowers the cost by more than this share."""
    shrunk: float
    """Size of a breath, as a share of that of the one before if that was not kept."""
    patience: int
    """Breaths end after this number in a row that were not kept."""


class Breathed(NamedTuple):
    """What breaths have made of K centroids."""

    n_taken: int
    """Fewer than asked for, or 0, where the next one cannot be taken in one call with others: it
    would not gain, or leaves a cluster without a row; or if patience has ended."""
    size: int
    """Centroids that the next breath adds."""
    n_refused: int
    """Breaths in a row that were not kept."""
    is_kept: bool
    """Whether any was kept. If none was, `gains_K` means nothing."""
    centroids_KD: torch.Tensor
    labels_B: torch.Tensor
    """Nearest centroid of each row before the last pass."""
    sq_distances_B: torch.Tensor
    """Squared distances to them."""
    gains_K: torch.Tensor
    """As in `PassedOver`."""


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


class PassKernel(Protocol):
    """A kernel that makes several passes of Lloyd's algorithm over rows in memory in one call."""

    def passes_over(
        self,
        rows: Rows,
        weights_B: torch.Tensor | None,
        unit: torch.Tensor,
        *,
        spherical: bool,
    ) -> Passes:
        """What makes passes over `rows`, which must not change meanwhile.

        Parameters
        ----------
        rows : Rows
            Any number of rows, none left out; those of weight 0 have the share 0.
        weights_B : float64 Tensor of shape (B,), or None
            Weights of the rows; None for 1.
        unit : float64 Tensor of shape ()
            By which weights are divided to give shares.
        spherical : bool
            Whether centroids move to the directions of the sums, not to the means.
        """


class Passes(Protocol):
    """Makes passes over the same rows again and again, by one kernel."""

    def make(
        self,
        centroids_KD: torch.Tensor,
        n_passes: int,
        *,
        exact: bool,
        cost_before: float = 0.0,
        least_share: float = -1.0,
    ) -> PassedOver:
        """Make `n_passes` passes, or fewer if one finds a cluster of mass 0, which stays so.

        Or if one is not worth another: if the cost of the centroids that it begins from is not
        lower than that of those before by more than a share of it.

        They give the bits that `Kernel.step` and `means_of` give one after the other.

        Parameters
        ----------
        centroids_KD : Tensor of shape (K, D)
        n_passes : int
            At least 1.
        exact : bool
            Whether distances of the last of `n_passes` are sums of squared differences.
        cost_before : float
            Cost of the centroids before `centroids_KD`.
        least_share : float
            The share; below 0 passes go on whatever they gain.
        """

    def breathe(
        self,
        centroids_KD: torch.Tensor,
        labels_B: torch.Tensor,
        sq_distances_B: torch.Tensor,
        cost: float,
        uniform_MU: torch.Tensor,
        rules: BreathRules,
        *,
        size: int,
        n_refused: int,
    ) -> Breathed:
        """Take M breaths, or fewer; not if centroids are directions.

        Parameters
        ----------
        centroids_KD : Tensor of shape (K, D)
        labels_B, sq_distances_B : Tensor of shape (B,)
            The nearest of them, int64, and squared distances to them.
        cost : float
            The cost to lower.
        uniform_MU : float64 Tensor of shape (M, B + K + size)
            Numbers from 0 to 1. The first B of each breath draw rows. The others blur the costs of
            mergers, and mean nothing in a breath after one that was kept.
        rules : BreathRules
        size : int
            Centroids that the first breath adds, at least 1.
        n_refused : int
            Breaths in a row before it that were not kept.
        """


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
