"""Labels of clusters whose sizes are bounded: the nearest centroid after a price, while it is open.

Each cluster has a price in units of squared distance, and a row goes to the centroid whose squared
distance plus price is least. Prices are the dual variables of the transport problem that has the
rows on one side and the clusters on the other (Bradley, Bennett & Demiriz 2000, "Constrained
k-means clustering"): the best partition within bounds is of this form, but for rows that are
equally well off in several clusters. Such rows may be many, if many rows are equal. So each cluster
also closes at a row: from that row on it takes no more, and rows go to the best of those that are
open. And a few rows are named that go elsewhere (`clustering.settling`). Labels are thus a function
of the row and its number alone. They need no label for each row on disk, and any part of them can
be found without the rest.

Any kernel finds the centroid: a price is one more feature, in which rows are 0 and a centroid is
the square root of its price.

Rejected: a limit on the margin of the rows of each cluster, with the rows of equal margin by their
number (deferred acceptance). It gives away the rows that lose least, but takes several passes to
find, and the rows that prices leave over are few.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from streamkm.kernels import Assignment, TwoNearest, assign_then_add, sq_distances_to

if TYPE_CHECKING:
    from streamkm.clustering.batch import Batch
    from streamkm.kernels import MadeKernel, Rows

__all__ = ["NEVER", "PricedKernel", "SizeRule", "Taken", "bounded_nearest", "take_"]

#: The row at which a cluster closes that never does.
NEVER = 2**63 - 1


class SizeRule(NamedTuple):
    """What decides the labels of bounded clusters beside their centroids."""

    prices_K: torch.Tensor
    """Added to squared distances in the scaled space, float64, at least 0."""
    closes_K: torch.Tensor
    """The number of the row from which on a cluster takes no more, int64; `NEVER` if it always
    does. It is about the rows of the fit alone."""
    moved_rows_M: torch.Tensor
    """Rows of the fit that go to another cluster than by price, int64, ascending; see
    `clustering.settling`."""
    moved_to_M: torch.Tensor
    """The clusters that these rows go to, int64."""


class PricedKernel:
    """A kernel that finds the centroid of least squared distance plus price, by another kernel.

    Distances that it returns include prices. So they have to be taken again, as
    `distances_cancel` tells those who report them.
    """

    stored_dtypes: tuple[torch.dtype, ...] = ()
    in_place = None
    whole_passes = by_lists = None
    stepper = None
    distances_cancel = True

    def __init__(self, kernel: MadeKernel, prices_K: torch.Tensor) -> None:
        self._kernel, self._roots_K = kernel, prices_K.sqrt()

    @property
    def name(self) -> str:
        """Name of the kernel that does the arithmetic."""
        return self._kernel.name

    @property
    def n_rechecked(self) -> torch.Tensor:
        """See `Kernel`."""
        return self._kernel.n_rechecked

    def on(self, prices_K: torch.Tensor) -> PricedKernel:
        """The same kernel with other prices."""
        return PricedKernel(self._kernel, prices_K)

    def priced(
        self, x_BD: torch.Tensor, centroids_KD: torch.Tensor, some: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows and centroids, or `some` of these, with the feature that stands for prices."""
        roots_K1 = self._roots_K.to(centroids_KD.dtype)[:, None]
        points_KD = torch.cat((centroids_KD, roots_K1), dim=1)
        rows_BD = torch.nn.functional.pad(x_BD, (0, 1))
        return rows_BD, points_KD if some is None else points_KD.index_select(0, some)

    def assign(
        self, x_BD: torch.Tensor, sq_norms_B: torch.Tensor, centroids_KD: torch.Tensor
    ) -> Assignment:
        """The centroid of least squared distance plus price, the lowest index of equals."""
        rows_BD, points_KD = self.priced(x_BD, centroids_KD)
        return self._kernel.assign(rows_BD, sq_norms_B, points_KD)

    def assign_some(
        self,
        x_BD: torch.Tensor,
        sq_norms_B: torch.Tensor,
        centroids_KD: torch.Tensor,
        some: torch.Tensor,
    ) -> torch.Tensor:
        """The labels of `assign` if there were `some` centroids alone, given in ascending order."""
        rows_BD, points_KD = self.priced(x_BD, centroids_KD, some)
        return some[self._kernel.assign(rows_BD, sq_norms_B, points_KD).labels_B]

    def assign_two(
        self, x_BD: torch.Tensor, sq_norms_B: torch.Tensor, centroids_KD: torch.Tensor
    ) -> TwoNearest:
        """`assign`, with the second least squared distance plus price."""
        rows_BD, points_KD = self.priced(x_BD, centroids_KD)
        return self._kernel.assign_two(rows_BD, sq_norms_B, points_KD)

    def accumulate(
        self,
        x_BD: torch.Tensor,
        labels_B: torch.Tensor,
        *,
        sums_KD: torch.Tensor,
        counts_K: torch.Tensor,
        shares_B: torch.Tensor | None = None,
    ) -> None:
        """See `Kernel`."""
        self._kernel.accumulate(
            x_BD, labels_B, sums_KD=sums_KD, counts_K=counts_K, shares_B=shares_B
        )

    def step(
        self,
        rows: Rows,
        centroids_KD: torch.Tensor,
        *,
        sums_KD: torch.Tensor,
        counts_K: torch.Tensor,
    ) -> Assignment:
        """See `Kernel`."""
        return assign_then_add(self, rows, centroids_KD, sums_KD=sums_KD, counts_K=counts_K)


def bounded_nearest(
    kernel: PricedKernel,
    batch: Batch,
    centroids_KD: torch.Tensor,
    rule: SizeRule | None,
    start_row: int,
) -> Assignment:
    """The open centroid of least squared distance plus price, and the squared distance to it.

    Parameters
    ----------
    kernel : PricedKernel
        With the prices.
    batch : Batch
        Prepared rows that follow each other, the first of number `start_row`.
    centroids_KD : Tensor of shape (K, D)
    rule : SizeRule or None
        Of these rows; None if they are not those of the fit, so that prices alone decide.
    start_row : int
    """
    labels_B = kernel.assign(batch.x_BD, batch.sq_norms_B, centroids_KD).labels_B
    if rule is not None:
        _move_(labels_B, rule.moved_rows_M, rule.moved_to_M, start_row)
        _give_on_(labels_B, kernel, batch, centroids_KD, rule.closes_K, start_row)
    return Assignment(labels_B, sq_distances_to(batch.x_BD, labels_B, centroids_KD))


def _move_(
    labels_B: torch.Tensor, rows_M: torch.Tensor, to_M: torch.Tensor, start_row: int
) -> None:
    """Give the rows that are named to the clusters that are."""
    ends = torch.tensor([start_row, start_row + len(labels_B)], device=rows_M.device)
    here = slice(*torch.searchsorted(rows_M, ends).tolist())
    labels_B[rows_M[here] - start_row] = to_M[here]


def _give_on_(
    labels_B: torch.Tensor,
    kernel: PricedKernel,
    batch: Batch,
    centroids_KD: torch.Tensor,
    closes_K: torch.Tensor,
    start_row: int,
) -> None:
    """Give rows whose cluster is closed to the best that is open.

    Rows between two closings have the same choice, so that each closing within the batch is one
    more call of the kernel, on few rows.
    """
    if int(closes_K.min()) >= start_row + len(labels_B):
        return
    numbers_B = torch.arange(start_row, start_row + len(labels_B), device=labels_B.device)
    is_closed_B = closes_K[labels_B] <= numbers_B
    while is_closed_B.any():
        number = int(numbers_B[is_closed_B][0])
        open_K = (closes_K > number).nonzero().squeeze(1)
        if not len(open_K):
            break
        rows = (is_closed_B & (numbers_B < closes_K[open_K].min())).nonzero().squeeze(1)
        labels_B[rows] = kernel.assign_some(
            batch.x_BD.index_select(0, rows), batch.sq_norms_B[rows], centroids_KD, open_K
        )
        is_closed_B[rows] = False


class Taken(NamedTuple):
    """How full clusters are, while rows are given to them in the order of their numbers."""

    room_K: torch.Tensor
    """Rows that each can still take, int64."""
    due_K: torch.Tensor
    """Rows that each must still get, int64, at most its room."""
    n_left: torch.Tensor
    """Rows that are still to be given, int64, of shape ()."""
    closes_K: torch.Tensor
    """As in `SizeRule`, of those that take no more."""
    n_given: torch.Tensor
    """Rows that went to another cluster because theirs took no more, int64, of shape ()."""
    moved_rows_M: torch.Tensor
    """As in `SizeRule`, but that places of no row are `NEVER`, the last."""
    moved_to_M: torch.Tensor
    """As in `SizeRule`."""


def take_(
    taken: Taken, kernel: PricedKernel, batch: Batch, centroids_KD: torch.Tensor, start_row: int
) -> torch.Tensor:
    """Give the rows of a batch to clusters that are open, and close those that take no more.

    A cluster closes when it is full. When no more rows are left than are due to clusters, all that
    have theirs close, and the others do as soon as they have.

    Returns the labels, which are those of `bounded_nearest` with the closings as they end, and
    changes `taken` in place. The batch must follow those that were given before, and rooms must
    hold all rows together.
    """
    k = len(centroids_KD)
    labels_B = kernel.assign(batch.x_BD, batch.sq_norms_B, centroids_KD).labels_B
    _move_(labels_B, taken.moved_rows_M, taken.moved_to_M, start_row)
    wanted_B = labels_B.clone()
    if bool(taken.n_left <= taken.due_K.sum()):
        _leave_what_is_due_(taken, torch.zeros_like(taken.due_K), start_row)
    while True:
        _give_on_(labels_B, kernel, batch, centroids_KD, taken.closes_K, start_row)
        counted_B = labels_B
        if batch.dropped_B is not None:
            counted_B = labels_B.masked_fill(batch.dropped_B, k)
        place, is_full = _first_closing(counted_B, taken)
        if place is None:
            break
        # One after the other: rows that go on may fill another cluster sooner.
        if is_full:
            taken.closes_K[labels_B[place]] = start_row + place + 1
        else:
            so_far_K = torch.bincount(counted_B[: place + 1], minlength=k + 1)[:k]
            _leave_what_is_due_(taken, so_far_K, start_row + place + 1)
    counts_K = torch.bincount(counted_B, minlength=k + 1)[:k]
    taken.room_K.sub_(counts_K)
    taken.due_K.sub_(counts_K).clamp_min_(0)
    taken.n_left.sub_(counts_K.sum())
    taken.n_given.add_(((labels_B != wanted_B) & (counted_B < k)).sum())
    return labels_B


def _leave_what_is_due_(taken: Taken, so_far_K: torch.Tensor, number: int) -> None:
    """From row `number` on let no cluster take more than it must get.

    Each has got `so_far_K` rows since `taken` was counted.
    """
    is_open_K = taken.closes_K == NEVER
    taken.closes_K[is_open_K & (taken.due_K <= so_far_K)] = number
    taken.room_K.copy_(torch.where(is_open_K, taken.due_K, taken.room_K))


def _first_closing(labels_B: torch.Tensor, taken: Taken) -> tuple[int | None, bool]:
    """The first row after which clusters close, or None; and whether one does because it is full.

    Labels of K are of rows that are given to none.
    """
    is_open_K, k = taken.closes_K == NEVER, len(taken.room_K)
    place_B = _places(labels_B, k)
    is_counted_B = labels_B < k
    own_B = labels_B.clamp_max(k - 1)
    is_last_B = (place_B == taken.room_K[own_B]) & is_open_K[own_B] & is_counted_B
    ends_B = is_last_B
    if bool((is_open_K & (taken.room_K > taken.due_K)).any()):
        left_B = taken.n_left - is_counted_B.cumsum(0)
        is_due_B = is_counted_B & (place_B <= taken.due_K[own_B])
        ends_B = is_last_B | (left_B <= taken.due_K.sum() - is_due_B.cumsum(0))
    found = ends_B.nonzero()
    if not len(found):
        return None, False
    return int(found[0]), bool(is_last_B[found[0]])


def _places(labels_B: torch.Tensor, k: int) -> torch.Tensor:
    """The place of each row among those of its label, from 1."""
    order_B = labels_B.argsort(stable=True)
    sorted_B = labels_B[order_B]
    n_K = torch.bincount(labels_B, minlength=k + 1)
    first_K = n_K.cumsum(0) - n_K
    numbers_B = torch.arange(1, len(labels_B) + 1, device=labels_B.device)
    place_B = torch.empty_like(labels_B)
    place_B[order_B] = numbers_B - first_K[sorted_B]
    return place_B
