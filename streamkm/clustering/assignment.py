"""Labels of the rows of a batch, and the sums that the batch adds to each cluster.

Algorithms, prediction and evaluation all assign rows through these functions. They hide whether
the kernel takes rows where they lie in a window and computes their lengths in the same read.
They also handle what kernels do not know: row weights, rows left out, rows of zeros under the
cosine metric, and distances exact enough to report.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from streamkm.clustering.batch import MOST_SQ_NORM
from streamkm.clustering.graded_sums import serial_sum
from streamkm.clustering.step_sums import StepSums
from streamkm.kernels import (
    Assignment,
    Nearest,
    PassSums,
    Rows,
    Sums,
    TwoNearest,
    mass_by_label,
    rank_nearest,
    sq_distances_to,
)
from streamkm.ranges import named

if TYPE_CHECKING:
    from collections.abc import Callable

    from streamkm.clustering.batch import Batch
    from streamkm.clustering.step_sums import Sharing
    from streamkm.kernels import Carried, MadeKernel

__all__ = [
    "BatchSums",
    "nearest",
    "nearest_and_added_",
    "nearest_and_fixed_sums",
    "nearest_and_sums",
    "nearest_several",
    "nearest_two",
    "sums_by_label",
    "totals_by_label",
    "weighted_sum",
]


class BatchSums(NamedTuple):
    """What a batch adds to each cluster."""

    sums: Sums
    """Sums of the rows, each times its weight."""
    counts_K: torch.Tensor
    """Numbers of rows of positive weight, int64."""
    weights_K: torch.Tensor
    """Sums of their weights, float64; of shape (0,) where rows have no weights."""


def nearest(
    kernel: MadeKernel,
    batch: Batch,
    centroids_KD: torch.Tensor,
    *,
    spherical: bool,
    carried: Carried | None = None,
) -> Assignment:
    """The nearest centroid of each row, with distances exact enough to report.

    What is `carried` from a pass before is brought up to date; it is for rows that lie in a window.

    If `spherical`, rows of zeros get label 0: they are at distance 1 from every unit vector,
    and the last bits of the centroids' lengths must not decide the tie.
    """
    if batch.lies_in_window:
        return _nearest_in_window_(kernel, batch, centroids_KD, exact=True, carried=carried)
    labels_B, sq_distances_B = _nearest_by_kernel_(kernel, batch, centroids_KD, spherical=spherical)
    return Assignment(labels_B, _exact(kernel, batch, labels_B, sq_distances_B, centroids_KD))


def nearest_two(
    kernel: MadeKernel, batch: Batch, centroids_KD: torch.Tensor, *, spherical: bool
) -> TwoNearest:
    """`nearest`, with the distance to the second nearest centroid."""
    labels_B, sq_distances_B, second_B = kernel.assign_two(
        batch.x_BD, batch.sq_norms_B, centroids_KD
    )
    if spherical:
        labels_B.masked_fill_(batch.sq_norms_B == 0, 0)
    sq_distances_B = _exact(kernel, batch, labels_B, sq_distances_B, centroids_KD)
    return TwoNearest(labels_B, sq_distances_B, second_B)


def nearest_several(
    batch: Batch, centroids_KD: torch.Tensor, n_nearest: int, *, spherical: bool
) -> Nearest:
    """The `n_nearest` nearest centroids of each row, nearest first; rows must not lie in a window.

    The first is that of `nearest`. If `spherical`, rows of zeros get the lowest labels, in order.
    """
    found = rank_nearest(batch.x_BD, batch.sq_norms_B, centroids_KD, n_nearest)
    if spherical:
        lowest_M = torch.arange(n_nearest, device=batch.x_BD.device)
        is_zero_B1 = (batch.sq_norms_B == 0)[:, None]
        lengths_M = centroids_KD[:n_nearest].double().square().sum(dim=1)
        found = Nearest(
            torch.where(is_zero_B1, lowest_M, found.labels_BM),
            torch.where(is_zero_B1, lengths_M, found.sq_distances_BM),
        )
    return found


def nearest_and_sums(
    kernel: MadeKernel, batch: Batch, centroids_KD: torch.Tensor, *, spherical: bool, exact: bool
) -> tuple[Assignment, BatchSums]:
    """`nearest`, and the sums and counts of each cluster over the batch.

    Without `exact`, distances are those of the kernel: good enough to choose a centroid by, not
    to report. Rows left out are added to an extra cluster, which is then thrown away.
    """
    (k, n_features), weights_B = centroids_KD.shape, batch.weights_B
    sums_KD = centroids_KD.new_zeros((k + 1, n_features), dtype=torch.float64)
    counts_K = torch.zeros(k + 1, dtype=torch.int64, device=sums_KD.device)
    shares_B, unit = batch.shares
    if batch.lies_in_window:
        assignment = _nearest_in_window_(kernel, batch, centroids_KD, exact=exact)
        labels_B = assignment.labels_B
        if batch.dropped_B is not None:
            labels_B = labels_B.masked_fill(batch.dropped_B, k)
        assert kernel.in_place is not None
        kernel.in_place.accumulate(
            batch.x_ND,
            labels_B,
            sums_KD=sums_KD,
            counts_K=counts_K,
            positions_B=batch.positions_B,
        )
    else:
        rows = Rows(batch.x_BD, batch.sq_norms_B, shares_B, batch.left_out_B, zeros_first=spherical)
        with named("assign"):
            labels_B, sq_distances_B = kernel.step(
                rows, centroids_KD, sums_KD=sums_KD, counts_K=counts_K
            )
        if exact:
            sq_distances_B = _exact(kernel, batch, labels_B, sq_distances_B, centroids_KD)
        assignment = Assignment(labels_B, sq_distances_B)
    sums, counts_K = Sums(sums_KD[:k], unit), counts_K[:k]
    if weights_B is None:
        return assignment, BatchSums(sums, counts_K, sums_KD.new_zeros(0))
    return assignment, BatchSums(sums, counts_K, mass_by_label(weights_B, assignment.labels_B, k))


def nearest_and_added_(
    kernel: MadeKernel,
    batch: Batch,
    centroids_KD: torch.Tensor,
    added: PassSums,
    unit: float,
    carried: Carried | None = None,
) -> Assignment:
    """`nearest` of rows that lie in a window, which are added to the sums of a pass, times `unit`.

    Sums and counts are those of `nearest_and_sums` and `add_graded_`, in one call of the kernel.
    What is `carried` from the pass before is brought up to date.
    """
    assert kernel.in_place is not None
    labels_B, sq_distances_B, batch.sq_norms_B, batch.dropped_B = kernel.in_place.assign_and_add(
        batch.x_ND,
        batch.positions_B,
        centroids_KD,
        most_sq_norm=MOST_SQ_NORM[batch.x_ND.dtype],
        added=added,
        unit=unit,
        carried=carried,
    )
    return Assignment(labels_B, sq_distances_B)


def nearest_and_fixed_sums(
    kernel: MadeKernel,
    batch: Batch,
    centroids_KD: torch.Tensor,
    *,
    spherical: bool,
    sharing: Sharing,
    usual: torch.Tensor,
    meanwhile: Callable[[Assignment], None] | None = None,
) -> StepSums:
    """Sums over the batch that do not depend on how its rows are divided.

    Every process of `sharing` brings its own rows of the batch, none if need be, and gets the sums
    over all of them. `usual` is the mean squared distance of the batch before (see
    `StepSums.add_up`). `meanwhile` gets what `nearest` gives while the sums are under way, with
    distances of the kernel: good enough to choose a centroid by, not to report.
    """
    k = len(centroids_KD)
    assignment = _nearest_by_kernel_(kernel, batch, centroids_KD, spherical=spherical)
    labels_B, sq_distances_B = assignment
    n_dropped: int | torch.Tensor = 0
    if batch.dropped_B is not None:
        sq_distances_B.masked_fill_(batch.dropped_B, 0)
        n_dropped = batch.dropped_B.sum()
    if batch.left_out_B is not None:
        labels_B = labels_B.masked_fill(batch.left_out_B, k)
    sums = StepSums(batch, Assignment(labels_B, sq_distances_B), n_dropped, k, sharing.world)

    def call() -> None:
        if meanwhile is not None:
            meanwhile(assignment)

    sums.add_up(centroids_KD, usual, sharing, call)
    return sums


def sums_by_label(
    kernel: MadeKernel, batch: Batch, labels_B: torch.Tensor, centroids_KD: torch.Tensor
) -> torch.Tensor:
    """Weighted sum of the rows of each cluster, float64, by labels that are already known."""
    return totals_by_label(kernel, batch, labels_B, centroids_KD).sums.wide()


def totals_by_label(
    kernel: MadeKernel, batch: Batch, labels_B: torch.Tensor, centroids_KD: torch.Tensor
) -> BatchSums:
    """Sums and counts of each cluster over the batch, by labels that are already known."""
    k, n_features = centroids_KD.shape
    sums_KD = centroids_KD.new_zeros((k + 1, n_features), dtype=torch.float64)
    counts_K = torch.zeros(k + 1, dtype=torch.int64, device=sums_KD.device)
    if batch.left_out_B is not None:
        labels_B = labels_B.masked_fill(batch.left_out_B, k)
    shares_B, unit = batch.shares
    kernel.accumulate(batch.x_BD, labels_B, sums_KD=sums_KD, counts_K=counts_K, shares_B=shares_B)
    weights_K = sums_KD.new_zeros(0)
    if batch.weights_B is not None:
        weights_K = mass_by_label(batch.weights_B, labels_B, k + 1)[:k]
    return BatchSums(Sums(sums_KD[:k], unit), counts_K[:k], weights_K)


def weighted_sum(batch: Batch, sq_distances_B: torch.Tensor) -> torch.Tensor:
    """Weighted sum of the squared distances of a batch, float64."""
    if batch.weights_B is not None:
        sq_distances_B = sq_distances_B.double() * batch.weights_B
    return serial_sum(sq_distances_B)


def _nearest_by_kernel_(
    kernel: MadeKernel, batch: Batch, centroids_KD: torch.Tensor, *, spherical: bool
) -> Assignment:
    """`nearest` with the distances of the kernel; fills in what `_nearest_in_window_` does."""
    if len(batch) == 0:
        empty_B = batch.x_ND.new_empty(0)
        batch.sq_norms_B = empty_B.to(centroids_KD.dtype)
        return Assignment(empty_B.long(), batch.sq_norms_B)
    if batch.lies_in_window:
        return _nearest_in_window_(kernel, batch, centroids_KD, exact=False)
    with named("assign"):
        labels_B, sq_distances_B = kernel.assign(batch.x_BD, batch.sq_norms_B, centroids_KD)
    if spherical:
        labels_B.masked_fill_(batch.sq_norms_B == 0, 0)
    return Assignment(labels_B, sq_distances_B)


def _nearest_in_window_(
    kernel: MadeKernel,
    batch: Batch,
    centroids_KD: torch.Tensor,
    *,
    exact: bool,
    carried: Carried | None = None,
) -> Assignment:
    """Assign rows where they lie; fill in their squared lengths and which of them are dropped.

    If `exact`, distances are sums of squared differences, float64.
    """
    assert kernel.in_place is not None
    with named("assign"):
        found = kernel.in_place.assign_in_place(
            batch.x_ND,
            batch.positions_B,
            centroids_KD,
            most_sq_norm=MOST_SQ_NORM[batch.x_ND.dtype],
            exact=exact,
            carried=carried,
        )
    labels_B, sq_distances_B, batch.sq_norms_B, batch.dropped_B = found
    return Assignment(labels_B, sq_distances_B)


def _exact(
    kernel: MadeKernel,
    batch: Batch,
    labels_B: torch.Tensor,
    sq_distances_B: torch.Tensor,
    centroids_KD: torch.Tensor,
) -> torch.Tensor:
    """Squared distances exact enough to add up and report, float64.

    Those of the kernel serve, without another read of the rows, if nothing cancels in them.
    """
    if kernel.distances_cancel:
        return sq_distances_to(batch.x_BD, labels_B, centroids_KD)
    return sq_distances_B.double()
