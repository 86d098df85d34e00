"""Branches over many clusters: a row is compared with the clusters around one branch alone.

The K centroids, here the leaves, are themselves clustered into J branches by passes of Lloyd's
algorithm over the centroids. A row then looks for its nearest branch, and for its nearest leaf in
the list of that branch: J + L comparisons instead of K (hierarchical k-means as in Vo et al. 2024,
"Automatic data curation for self-supervised learning", built from below).

The list of a branch has its own leaves, and leaves of other branches that lie near its border,
since rows of such a leaf lie on both sides (spill trees: Liu et al. 2004). How far a leaf c of the
branch p lies beyond the border of branch b is ``(|c - b|^2 - |c - p|^2) / 2 |b - p|``. Where that
is more than twice the distance between c and the next leaf, the leaf is not listed: on data in
groups most leaves are in few lists. Otherwise the pairs of a leaf and a branch that lie least far
are listed, `LISTS_PER_LEAF` for each leaf on average; a fast search lists more.

A label is so the nearest of the listed leaves, which need not be the nearest of all.

Rejected: to look into the nearest 2 to 4 branches of each row. Of embeddings it finds the nearest
leaf of 92 % where lists find that of 89 % by as many comparisons. But a row is then in several
products of matrices, whose results must be joined; which branch is the fourth nearest may hang on
how a library rounds, so on the number of processes; and data in groups does not need it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from streamkm.clustering.branch_plan import LISTS_PER_LEAF, TILE_ELEMENTS, listed
from streamkm.kernels import (
    Assignment,
    Listed,
    TwoNearest,
    add_by_label,
    assign_then_add,
    normalized,
    sq_distances_between,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from streamkm.kernels import MadeKernel, Rows

__all__ = ["BranchKernel", "Branches", "Level", "level_above"]

#: Passes over the leaves that find the branches.
PASSES = 8
#: How far from a leaf its rows may lie, in distances to the next leaf. With 1, poor seeds, which
#: leave groups of rows without a leaf, end up to 1 % higher.
REACH = 2


class Branches(NamedTuple):
    """J branches, and the leaves that rows of each are compared with."""

    points_JD: torch.Tensor
    """Where they are; a row is of the nearest."""
    leaves_P: torch.Tensor
    """The lists of all branches, one after the other, each ascending, int64; then zeros."""
    n_leaves_J: torch.Tensor
    """Lengths of the lists, int64; a branch without any is left out of the search."""


class Level(NamedTuple):
    """The branches of a tree, as a model keeps them."""

    centroids_JD: torch.Tensor
    """Means of the rows of each branch, or their directions."""
    parents_K: torch.Tensor
    """The branch of each cluster, int64."""


class BranchKernel:
    """A kernel that finds the nearest of the listed leaves, by calls of another kernel.

    Rows are sorted by branch, and those of a branch go through the kernel in one call, or those of
    all branches, where it takes lists. The label of
    a row depends on that row and the branches alone.
    """

    stored_dtypes: tuple[torch.dtype, ...] = ()
    in_place = None
    whole_passes = None
    by_lists = None
    stepper = None

    def __init__(
        self, kernel: MadeKernel, batch_rows: int, branches: Branches | None = None
    ) -> None:
        """`kernel` is made for `batch_rows` rows and for as many centroids as there are leaves."""
        self._kernel, self._batch_rows, self._branches = kernel, batch_rows, branches

    @property
    def name(self) -> str:
        """Name of the kernel that does the arithmetic."""
        return self._kernel.name

    @property
    def n_rechecked(self) -> torch.Tensor:
        """Rows rechecked, among branches or among leaves."""
        return self._kernel.n_rechecked

    @property
    def distances_cancel(self) -> bool:
        """See `Kernel`."""
        return self._kernel.distances_cancel

    def on(self, branches: Branches) -> BranchKernel:
        """The same kernel, searching by `branches`."""
        return BranchKernel(self._kernel, self._batch_rows, branches)

    def assign(
        self, x_BD: torch.Tensor, sq_norms_B: torch.Tensor, centroids_KD: torch.Tensor
    ) -> Assignment:
        """The nearest of the leaves that are listed for the branch of each row."""
        if self._kernel.by_lists is None:
            found = self._by_branch(self._kernel.assign, x_BD, sq_norms_B, centroids_KD)
            return Assignment(*found)
        points_JD, leaves_P, n_leaves_J = self._used()
        branch_B = self._kernel.assign(x_BD, sq_norms_B, points_JD).labels_B
        lists = Listed(
            branch_B.argsort(stable=True).int(),
            _starts(torch.bincount(branch_B, minlength=len(points_JD))),
            leaves_P,
            _starts(n_leaves_J),
        )
        return self._kernel.by_lists.assign_listed(x_BD, sq_norms_B, centroids_KD, lists)

    def assign_two(
        self, x_BD: torch.Tensor, sq_norms_B: torch.Tensor, centroids_KD: torch.Tensor
    ) -> TwoNearest:
        """`assign`, with the distance to the second nearest of them."""
        return TwoNearest(*self._by_branch(self._kernel.assign_two, x_BD, sq_norms_B, centroids_KD))

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

    def _used(self) -> Branches:
        """The branches that have leaves, without zeros behind the lists."""
        assert self._branches is not None
        points_JD, leaves_P, n_leaves_J = self._branches
        is_used_J = n_leaves_J > 0
        leaves_P = leaves_P[: int(n_leaves_J.sum())]
        return Branches(points_JD[is_used_J], leaves_P, n_leaves_J[is_used_J])

    def _by_branch(
        self,
        assign: Callable[..., tuple[torch.Tensor, ...]],
        x_BD: torch.Tensor,
        sq_norms_B: torch.Tensor,
        centroids_KD: torch.Tensor,
    ) -> list[torch.Tensor]:
        """What `assign` finds for the rows of each branch among its leaves, by row."""
        points_JD, leaves_P, n_leaves_J = self._used()
        branch_B = self._kernel.assign(x_BD, sq_norms_B, points_JD).labels_B
        order_B = branch_B.argsort(stable=True)
        sorted_BD, sorted_norms_B = x_BD.index_select(0, order_B), sq_norms_B[order_B]
        counts = torch.bincount(branch_B, minlength=len(points_JD)).tolist()
        found: list[tuple[torch.Tensor, ...]] = []
        for x_RD, norms_R, leaves_L in zip(
            sorted_BD.split(counts), sorted_norms_B.split(counts),
            leaves_P.split(n_leaves_J.tolist()), strict=True,
        ):  # fmt: skip
            if len(x_RD):
                labels_R, *distances = assign(x_RD, norms_R, centroids_KD.index_select(0, leaves_L))
                found.append((leaves_L[labels_R], *distances))
        place_B = torch.empty_like(order_B)
        place_B[order_B] = torch.arange(len(order_B), device=order_B.device)
        return [torch.cat(parts)[place_B] for parts in zip(*found, strict=True)]

    # ---- the branches themselves ------------------------------------------------

    def branch_of(self, leaves_KD: torch.Tensor, points_JD: torch.Tensor) -> torch.Tensor:
        """The nearest branch of each leaf, int64."""
        sq_norms_K = leaves_KD.square().sum(dim=1)
        found = [
            self._kernel.assign(part_KD, norms_K, points_JD).labels_B
            for part_KD, norms_K in zip(
                leaves_KD.split(self._batch_rows), sq_norms_K.split(self._batch_rows), strict=True
            )
        ]
        return torch.cat(found)

    def find_branches(
        self,
        leaves_KD: torch.Tensor,
        n_branches: int,
        seed: int,
        n_lists: int = LISTS_PER_LEAF,
    ) -> Branches:
        """Cluster the leaves into branches, and list the leaves of each.

        A leaf is in `n_lists` lists on average, at most. A branch that gets no leaf stays where it
        is.
        """
        generator = torch.Generator().manual_seed(seed)
        drawn_J = torch.randperm(len(leaves_KD), generator=generator)[:n_branches]
        points_JD = leaves_KD[drawn_J.sort().values]
        for _ in range(PASSES):
            sums_JD = points_JD.new_zeros(points_JD.shape, dtype=torch.float64)
            counts_J = torch.zeros(n_branches, dtype=torch.int64)
            branch_K = self.branch_of(leaves_KD, points_JD)
            for part_KD, labels_K in zip(
                leaves_KD.split(self._batch_rows), branch_K.split(self._batch_rows), strict=True
            ):
                self._kernel.accumulate(part_KD, labels_K, sums_KD=sums_JD, counts_K=counts_J)
            means_JD = (sums_JD / counts_J[:, None].clamp_min(1)).to(points_JD.dtype)
            points_JD = torch.where(counts_J[:, None] > 0, means_JD, points_JD)
        own_K = self.branch_of(leaves_KD, points_JD)
        between_JJ = sq_distances_between(points_JD, points_JD, _sq_norms(points_JD)).sqrt_()
        to_next_K = _to_next(leaves_KD, own_K, between_JJ)
        # Of leaves that are closer together than others this says little.
        reach_K = REACH * torch.maximum(to_next_K, to_next_K.median())
        most = listed(len(leaves_KD), n_branches, n_lists)
        pairs = _near_pairs(leaves_KD, points_JD, own_K, reach_K, between_JJ, most)
        return pairs.lists(points_JD, most)


def _starts(counts_J: torch.Tensor) -> torch.Tensor:
    """Where each of parts of these lengths begins, and where the last ends."""
    return torch.cat([counts_J.new_zeros(1), counts_J.cumsum(0)])


def _sq_norms(x_BD: torch.Tensor) -> torch.Tensor:
    return x_BD.square().sum(dim=1)


def _to_next(
    leaves_KD: torch.Tensor, own_K: torch.Tensor, between_JJ: torch.Tensor
) -> torch.Tensor:
    """The distance of each leaf to the next of its branch; to the next branch if it is alone."""
    counts_J = torch.bincount(own_K, minlength=len(between_JJ))
    to_next_K = leaves_KD.new_empty(len(leaves_KD))
    for own_L in own_K.argsort(stable=True).split(counts_J.tolist()):
        x_LD = leaves_KD[own_L]
        norms_L, n = _sq_norms(x_LD), max(len(own_L), 1)
        start = 0
        for x_TD in x_LD.split(max(TILE_ELEMENTS // n, 1)) if len(own_L) else ():
            rows_T = torch.arange(len(x_TD))
            sq_distances_TL = sq_distances_between(x_TD, x_LD, norms_L)
            sq_distances_TL[rows_T, start + rows_T] = torch.inf
            to_next_K[own_L[start + rows_T]] = sq_distances_TL.amin(dim=1).sqrt_()
            start += len(x_TD)
    is_alone_K = counts_J[own_K] == 1
    alone_T = own_K[is_alone_K]
    to_branches_TJ = between_JJ[alone_T].scatter_(1, alone_T[:, None], torch.inf)
    to_next_K[is_alone_K] = to_branches_TJ.amin(dim=1)
    return to_next_K


class _Pairs(NamedTuple):
    """Pairs of a leaf and a branch, by leaf; numbers are int32."""

    leaves_P: torch.Tensor
    branches_P: torch.Tensor
    margins_P: torch.Tensor
    """How far the leaf lies beyond the border of the branch; least for its own."""

    def where(self, is_kept_P: torch.Tensor) -> _Pairs:
        return _Pairs(*(each[is_kept_P] for each in self))

    def nearest(self, n_pairs: int) -> _Pairs:
        """The `n_pairs` pairs with the least margins; of equal ones the first."""
        if len(self.margins_P) <= n_pairs:
            return self
        last = self.margins_P.kthvalue(n_pairs).values
        is_kept_P = self.margins_P < last
        equal = (self.margins_P == last).nonzero()[:, 0]
        is_kept_P[equal[: n_pairs - int(is_kept_P.sum())]] = True
        return self.where(is_kept_P)

    def lists(self, points_JD: torch.Tensor, n_entries: int) -> Branches:
        """The lists of branches at `points_JD`, with zeros behind them up to `n_entries`."""
        leaves_P = self.leaves_P.new_zeros(n_entries, dtype=torch.int64)
        leaves_P[: len(self.leaves_P)] = self.leaves_P[self.branches_P.argsort(stable=True)]
        n_leaves_J = torch.bincount(self.branches_P, minlength=len(points_JD))
        return Branches(points_JD, leaves_P, n_leaves_J)


def _near_pairs(
    leaves_KD: torch.Tensor,
    points_JD: torch.Tensor,
    own_K: torch.Tensor,
    reach_K: torch.Tensor,
    between_JJ: torch.Tensor,
    most: int,
) -> _Pairs:
    """The pairs whose margins are within the reach of the leaf: the `most` with the least margins.

    `own_K` are the branches of the leaves, of which all are among the pairs.
    """
    norms_J = _sq_norms(points_JD)
    # No branch at infinity is within reach.
    reach_K = reach_K.clamp_max(torch.finfo(reach_K.dtype).max)
    none = own_K.new_empty(0, dtype=torch.int32)
    found, limit, start = _Pairs(none, none, reach_K[:0]), torch.inf, 0
    for part_TD in leaves_KD.split(max(TILE_ELEMENTS // len(points_JD), 1)):
        own_T1 = own_K[start : start + len(part_TD), None]
        margin_TJ = sq_distances_between(part_TD, points_JD, norms_J)
        margin_TJ.sub_(margin_TJ.gather(1, own_T1)).div_(between_JJ[own_T1[:, 0]].mul_(2))
        # Of two branches at one place the one without leaves is at infinity, and so is all else
        # that overflows.
        margin_TJ.nan_to_num_(nan=torch.inf, posinf=torch.inf).scatter_(1, own_T1, -torch.inf)
        reach_T1 = reach_K[start : start + len(part_TD), None].clamp_max(limit)
        leaves, branches = (margin_TJ <= reach_T1).nonzero().unbind(1)
        near = _Pairs((leaves + start).int(), branches.int(), margin_TJ[leaves, branches])
        found = _Pairs(*map(torch.cat, zip(found, near, strict=True)))
        if len(found.margins_P) > 2 * most:
            # What lies farther than the last of these cannot be among them at the end.
            found = found.nearest(most)
            limit = float(found.margins_P.max())
        start += len(part_TD)
    return found.nearest(most)


def level_above(
    kernel: BranchKernel,
    points_JD: torch.Tensor,
    leaves_KD: torch.Tensor,
    sums_KD: torch.Tensor,
    mass_K: torch.Tensor,
    *,
    spherical: bool,
) -> Level:
    """The branches at `points_JD`, each with the mean of all its rows in place of its point.

    Rows are given by the sums and masses of their clusters. A branch without rows keeps its point.
    """
    parents_K = kernel.branch_of(leaves_KD, points_JD)
    counts_J = torch.bincount(parents_K, minlength=len(points_JD))
    sums_JD = sums_KD.new_zeros(points_JD.shape)
    mass_J1 = sums_KD.new_zeros((len(points_JD), 1))
    add_by_label(sums_KD, parents_K, counts_J, sums_JD)
    add_by_label(mass_K.double()[:, None], parents_K, counts_J, mass_J1)
    means_JD = normalized(sums_JD) if spherical else sums_JD / mass_J1
    known_J1 = (sums_JD != 0).any(dim=1, keepdim=True) if spherical else mass_J1 > 0
    wide_JD = torch.where(known_J1, means_JD, points_JD.double())
    return Level(wide_JD.to(points_JD.dtype), parents_K)
