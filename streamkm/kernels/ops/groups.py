"""Groups of centroids, by which `CpuKernel` leaves out most comparisons.

Many centroids are clustered themselves. By the triangle inequality a row has its nearest centroid
in few of the groups, where data have structure, and the extension compares it with those alone (see
``native/groups.h``). Labels and distances have the same bits with any groups and with none: groups
decide only how much is compared. So they are found while a kernel works, nothing of them is saved,
and centroids that move keep their groups.

Whether groups pay depends on the data. `GroupSearch` looks at a few rows and at the centroids
around a few others first, groups the centroids where that promises enough, and gives the groups up
where more is compared than was promised. Where groups promise little, heads may (``ops/heads.py``).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple
from weakref import WeakMethod

import torch

from streamkm.kernels.ops.heads import Heads, find_heads

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["GroupSearch", "Groups"]

#: Centroids from which on they are grouped. Fewer are compared in the time that groups take.
MIN_CENTROIDS = 2048
#: Rows of a call by groups, at least: of fewer, most of the time goes to packing the centroids.
MIN_ROWS = 1024
#: Rows that are compared with all centroids, and then looked at.
LOOK_ROWS = 256
#: Rows that are compared by groups that were just found, before more are.
TRIED_ROWS = 2048
#: Passes over the centroids that find the groups.
PASSES = 2
#: What finding groups takes, in rows compared with all centroids, for each group.
ROWS_PER_GROUP = 8
#: Products of rows and centroids, and as much for 16 features more, that go before a look; and as
#: many for the square of the features, which finding axes takes a few hundredths of.
PRODUCTS_BEFORE, PRODUCTS_OF_AXES = 1 << 34, 300_000
#: Centroids for each row of a call by heads, at most: each call turns the centroids.
CENTROIDS_PER_ROW = 4
#: Groups that are tried, and centroids of which they are made, at most, when data are looked at.
TRIED_GROUPS, TRIED_CENTROIDS = 16, 2048
#: Share of all comparisons up to which groups are promising, and from which on they are given up. A
#: comparison by groups takes up to three times as long as another.
PROMISING, IN_VAIN = 0.125, 0.35
#: What groups of centroids are beside those around a few: how many times as wide, and how many more
#: of them rows are compared with.
WIDER, MORE = 1.25, 2.0
#: Rows of which it is asked how many centroids are as near as screening can tell, and the number up
#: to which a row is settled (``native/bytes.h``).
ASKED_ROWS, MOST_CANDIDATES = 64, 128
#: After data were looked at in vain, this many times the rows so far pass before the next look.
PATIENCE = 8
#: Pairs of rows and centroids from which on two nearest are found by groups: bunches take calls.
PAIRS_FOR_TWO = 1 << 26
#: Groups are found anew where centroids have moved so that this many times as much is compared.
GROWN = 1.5


class Groups(NamedTuple):
    """K centroids in groups, none empty."""

    order_K: torch.Tensor
    """Centroids, group after group, int32."""
    offsets: torch.Tensor
    """Where in `order_K` each group begins, and K, int64."""


class GroupSearch:
    """Decides call by call whether rows are compared by groups, and keeps the groups.

    Parameters
    ----------
    label : method
        Takes points and centroids, and returns the nearest of the points for each centroid, int64.
        It is held weakly: a kernel that has a search is freed as soon as nobody else holds it.
    bits : int
        Bits of the whole numbers that rows are screened in.
    """

    def __init__(
        self, label: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], bits: int = 8
    ) -> None:
        self._method, self._bits = WeakMethod(label), bits
        self._shape = 0, 0
        self._forget()
        self.n_compared = 0
        """Comparisons of rows with centroids, in calls that groups may have served."""
        self.n_possible = 0
        """Comparisons of all those rows with all centroids."""

    def pays_for_two(self, n_rows: int, k: int) -> bool:
        """Whether two nearest are worth a search by these groups, as far as is known."""
        return n_rows * k >= PAIRS_FOR_TWO and self._share_of_two <= IN_VAIN

    def learn_of_two(self, n_compared: int, n_possible: int) -> None:
        """Take note of a search for the two nearest of some rows."""
        self._share_of_two = n_compared / n_possible

    def _forget(self) -> None:
        self.groups: Groups | None = None
        self._heads: Heads | None = None
        self._n_rows, self._wait, self._promised, self._share_of_two = 0, 0, 1.0, 0.0

    def serves(self, n_rows: int, k: int, n_features: int) -> bool:
        """Whether a call with these numbers of rows and centroids may be one by groups."""
        if k < MIN_CENTROIDS or n_rows < MIN_ROWS:
            return False
        if (k, n_features) != self._shape:
            self._forget()
            self._shape = k, n_features
            products = max(PRODUCTS_BEFORE, PRODUCTS_OF_AXES * n_features**2)
            before = products // (k * (n_features + 16))
            self._wait = max(ROWS_PER_GROUP * n_groups_of(k), before)
        return True

    def wants_look(self, n_rows: int) -> bool:
        """Whether it is time to look at the data, in a call of `n_rows` rows."""
        is_found = self.groups is not None or self._heads is not None
        return not is_found and self._n_rows + n_rows >= self._wait

    def way(self, n_rows: int) -> Groups | Heads | None:
        """By what to compare `n_rows` rows with the centroids; None for all features of all."""
        if self.groups is not None:
            return self.groups
        return self._heads if n_rows * CENTROIDS_PER_ROW >= self._shape[0] else None

    def rows_at_once(self, n_rows: int) -> int:
        """How many of `n_rows` to assign before `learn`: a few if there is something to learn."""
        if self.wants_look(n_rows):
            return LOOK_ROWS
        return TRIED_ROWS if self.groups is not None and self._promised == 1 else n_rows

    def look(
        self, x_BD: torch.Tensor, sq_distances_B: torch.Tensor, centroids_KD: torch.Tensor
    ) -> None:
        """Find groups or heads if these rows, of which the distances are known, promise much."""
        if _share(x_BD, sq_distances_B, centroids_KD, self._bits) <= PROMISING:
            self._find(centroids_KD)
            return
        self._heads = find_heads(x_BD, sq_distances_B, centroids_KD, self._bits)
        if self._heads is None:
            self._wait = PATIENCE * (self._n_rows + self._wait)

    def learn(
        self,
        n_rows: int,
        n_compared: int,
        centroids_KD: torch.Tensor,
        *,
        by: Groups | Heads | None = None,
    ) -> None:
        """Take note of a call; give up what it went `by`, or find it anew, if that was in vain."""
        possible = n_rows * len(centroids_KD)
        self.n_compared, self.n_possible = self.n_compared + n_compared, self.n_possible + possible
        self._n_rows += n_rows
        if isinstance(by, Heads) and n_compared == possible:
            self._heads, self._wait = None, PATIENCE * self._n_rows
        if self.groups is None:
            return
        share = n_compared / possible
        self._promised = min(self._promised, share)
        if share > IN_VAIN:
            self.groups, self._wait = None, PATIENCE * self._n_rows
        elif share > GROWN * self._promised and self._n_rows >= self._wait:
            self._find(centroids_KD)

    def _find(self, centroids_KD: torch.Tensor) -> None:
        """Cluster the centroids by passes of Lloyd's algorithm over them."""
        label = self._method()
        assert label is not None, "the kernel that searches is there"
        n_groups = n_groups_of(k := len(centroids_KD))
        points_JD = centroids_KD[torch.linspace(0, k - 1, n_groups, dtype=torch.float64).long()]
        for _ in range(PASSES):
            labels_K = label(points_JD, centroids_KD)
            counts_J = torch.bincount(labels_K, minlength=n_groups)
            sums_JD = torch.zeros(points_JD.shape, dtype=torch.float64)
            sums_JD.index_add_(0, labels_K, centroids_KD.double())
            means_JD = (sums_JD / counts_J.clamp_min(1)[:, None]).to(points_JD.dtype)
            points_JD = torch.where(counts_J[:, None] > 0, means_JD, points_JD)
        labels_K = label(points_JD, centroids_KD)
        counts_J = torch.bincount(labels_K, minlength=n_groups)
        ends_J = counts_J[counts_J > 0].cumsum(0)
        offsets = torch.cat([ends_J.new_zeros(1), ends_J])
        self.groups = Groups(labels_K.argsort(stable=True).int(), offsets)
        # The next grouping is worth a share of what was compared since.
        self._promised, self._wait = 1.0, self._n_rows + PATIENCE * ROWS_PER_GROUP * n_groups


def n_groups_of(k: int) -> int:
    """Groups of `k` centroids: each fills a panel and more; a row is compared with all centres."""
    return max(min(round(3 * math.sqrt(k)), k // 48), 1)


def _share(
    x_BD: torch.Tensor, sq_distances_B: torch.Tensor, centroids_KD: torch.Tensor, bits: int
) -> float:
    """What comparisons by groups would be of all, about: from groups around a few centroids."""
    k, n_groups = len(centroids_KD), n_groups_of(len(centroids_KD))
    some_CD = centroids_KD[:: -(-k // TRIED_CENTROIDS)]
    middle_D = some_CD.mean(dim=0)
    some_CD, x_BD = some_CD - middle_D, x_BD - middle_D
    # As many around each as a group has of these.
    size = max(len(some_CD) // n_groups, 2)
    around_TD = some_CD[:: -(-len(some_CD) // TRIED_GROUPS)]
    members_TS = torch.cdist(around_TD, some_CD).topk(size, dim=1, largest=False).indices
    members_TSD = some_CD[members_TS]
    centres_TD = members_TSD.mean(dim=1)
    radii_T = (members_TSD - centres_TD[:, None]).square().sum(dim=2).amax(dim=1).sqrt()
    reach_BT = sq_distances_B.sqrt()[:, None] + WIDER * radii_T
    is_live_BT = torch.cdist(x_BD, centres_TD) <= reach_BT
    crowded = _crowded(x_BD[:ASKED_ROWS], sq_distances_B[:ASKED_ROWS], some_CD, k, bits)
    return MORE * float(is_live_BT.double().mean()) + 2 * n_groups / k + crowded


def _crowded(
    x_BD: torch.Tensor, sq_distances_B: torch.Tensor, some_CD: torch.Tensor, k: int, bits: int
) -> float:
    """About the share of rows that are as near to too many of `k` centroids, when screened."""
    # Sums of products must fit 32 bits (`largest_number` of ``native/bytes.h``).
    largest = 127 if bits == 8 else min(math.isqrt((1 << 31) // x_BD.shape[1]), 32767)
    # Of rounding to steps a number keeps a twelfth of a squared step, on average.
    rests_B, rests_C = (
        points.abs().amax(dim=1) / largest * math.sqrt(points.shape[1] / 12)
        for points in (x_BD, some_CD)
    )
    lengths_B, lengths_C = x_BD.norm(dim=1), some_CD.norm(dim=1)
    errors_BC = 2 * (rests_B[:, None] * lengths_C + lengths_B[:, None] * rests_C)
    near_BC = torch.cdist(x_BD, some_CD).square() <= sq_distances_B[:, None] + 2 * errors_BC
    n_near_B = near_BC.sum(dim=1) * (k / len(some_CD))
    return float((n_near_B > MOST_CANDIDATES).double().mean())
