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
are listed, `LISTS_PER_LEAF` for each leaf on average.

A label is so the nearest of the listed leaves, which need not be the nearest of all.

Rejected: to look into the nearest 2 to 4 branches of each row. Of embeddings it finds the nearest
leaf of 92 % where lists find that of 89 % by as many comparisons. But a row is then in several
products of matrices, whose results must be joined; which branch is the fourth nearest may hang on
how a library rounds, so on the number of processes; and data in groups does not need it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from streamkm.clustering.branch_plan import MOST_LISTS, TILE_ELEMENTS, listed
from streamkm.kernels import (
    Assignment,
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

    Rows are sorted by branch, and those of a branch go through the kernel in one call. The label of
    a row depends on that row and the branches alone.
    """

    stored_dtypes: tuple[torch.dtype, ...] = ()
    in_place = None
    whole_passes = None
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
        return Assignment(*self._by_branch(self._kernel.assign, x_BD, sq_norms_B, centroids_KD))

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

    def _by_branch(
        self,
        assign: Callable[..., tuple[torch.Tensor, ...]],
        x_BD: torch.Tensor,
        sq_norms_B: torch.Tensor,
        centroids_KD: torch.Tensor,
    ) -> list[torch.Tensor]:
        """What `assign` finds for the rows of each branch among its leaves, by row."""
        assert self._branches is not None
        points_JD, leaves_P, n_leaves_J = self._branches
        leaves_P = leaves_P[: int(n_leaves_J.sum())]
        is_used_J = n_leaves_J > 0
        points_JD, n_leaves_J = points_JD[is_used_J], n_leaves_J[is_used_J]
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

    def find_branches(self, leaves_KD: torch.Tensor, n_branches: int, seed: int) -> Branches:
        """Cluster the leaves into branches, and list the leaves of each.

        A branch that gets no leaf stays where it is.
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
        pairs = _pairs(leaves_KD, points_JD, self.branch_of(leaves_KD, points_JD))
        to_next_K = self._to_next(leaves_KD, pairs.lists(points_JD))
        # Of leaves that are closer together than others this says little.
        reach_K = REACH * torch.maximum(to_next_K, to_next_K.median())
        is_near_P = pairs.margins_P <= reach_K[pairs.leaves_P]
        return pairs.where(is_near_P).lists(points_JD, len(is_near_P))

    def _to_next(self, leaves_KD: torch.Tensor, branches: Branches) -> torch.Tensor:
        """The distance of each leaf to the nearest other, as far as `branches` list it."""
        search, sq_norms_K = self.on(branches), leaves_KD.square().sum(dim=1)
        parts = zip(
            leaves_KD.split(self._batch_rows), sq_norms_K.split(self._batch_rows), strict=True
        )
        found = [search.assign_two(*part, leaves_KD).second_sq_distances_B for part in parts]
        return torch.cat(found).sqrt_()


class _Pairs(NamedTuple):
    """Pairs of a leaf and a branch, by branch and then by leaf."""

    leaves_P: torch.Tensor
    branches_P: torch.Tensor
    margins_P: torch.Tensor
    """How far the leaf lies beyond the border of the branch; least for its own."""

    def where(self, is_kept_P: torch.Tensor) -> _Pairs:
        return _Pairs(*(each[is_kept_P] for each in self))

    def lists(self, points_JD: torch.Tensor, n_entries: int | None = None) -> Branches:
        """The lists of branches at `points_JD`, with zeros behind them up to `n_entries`."""
        n_leaves_J = torch.bincount(self.branches_P, minlength=len(points_JD))
        if n_entries is None:
            return Branches(points_JD, self.leaves_P, n_leaves_J)
        padded_P = self.leaves_P.new_zeros(n_entries)
        padded_P[: len(self.leaves_P)] = self.leaves_P
        return Branches(points_JD, padded_P, n_leaves_J)


def _pairs(leaves_KD: torch.Tensor, points_JD: torch.Tensor, own_K: torch.Tensor) -> _Pairs:
    """The pairs with the least margins, where `own_K` are the branches of the leaves."""
    (k, _), n_branches = leaves_KD.shape, len(points_JD)
    most = min(MOST_LISTS, n_branches)
    between_JJ = sq_distances_between(points_JD, points_JD, points_JD.square().sum(dim=1)).sqrt_()
    margins, branches = [], []
    rows = max(TILE_ELEMENTS // n_branches, 1)
    for part_TD, own_T in zip(leaves_KD.split(rows), own_K.split(rows), strict=True):
        from_JT = sq_distances_between(points_JD, part_TD, part_TD.square().sum(dim=1))
        margin_TJ = (from_JT - from_JT.gather(0, own_T[None])).T / (2 * between_JJ[own_T])
        # Of two branches at one place the one without leaves is at infinity, and so is all else
        # that overflows.
        margin_TJ = margin_TJ.nan_to_num(nan=torch.inf).scatter(1, own_T[:, None], -torch.inf)
        least = margin_TJ.topk(most, dim=1, largest=False)
        margins.append(least.values)
        branches.append(least.indices)
    margins_P = torch.cat(margins).flatten()
    # Own branches come first, so that every leaf is listed.
    chosen_P = margins_P.sort(stable=True).indices[: listed(k, n_branches)]
    leaves_P, branches_P = chosen_P // most, torch.cat(branches).flatten()[chosen_P]
    order_P = (branches_P * k + leaves_P).argsort()
    return _Pairs(leaves_P[order_P], branches_P[order_P], margins_P[chosen_P][order_P])


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
