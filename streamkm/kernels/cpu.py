"""Assignment and accumulation on the CPU in cache-sized tiles, compiled from C++.

A tile of rows is scored against a panel of centroids in registers. Only the least and the second
least score of each row leave the registers, so no B x K matrix reaches memory. As many threads as
torch has share a batch (see ``native/pool.h``); the result does not depend on their number. Rows
whose two least scores are within rounding are rechecked in float64, as in ``kernels.exact``.

From 256 centroids on, processors that multiply bytes (AVX-512 VNNI, AVX-VNNI) screen in whole
numbers of eight bits first (``native/bytes.h``): four products at once, and a bound that is
certain. With AVX2 alone they do so in eight and seven bits, three products at once, or in sixteen,
two at once, where the first rows show that fewer bits leave too many centroids. Those that the
bound leaves, one or two, are compared in float64. Where labels are exact, they and the distances
are the same bits on every instruction set. From 2,048 centroids on, groups of them or a part of the
features rule most out where data have structure (``ops/groups.py``, ``ops/heads.py``).

Rejected (bench/LOG.md): bfloat16 for that. Torch's matrix product: it runs at half the speed
of AVX-512 on processors that MKL does not favour, and its scores go through memory once more.

Installing streamkm builds the extension if there is a compiler. If there is none,
`instruction_sets` returns nothing and ``--kernel auto`` takes the reference kernel.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Self

import torch

from streamkm.errors import DeviceError, Option
from streamkm.kernels.base import Assignment, InPlaceAssignment, TwoNearest, assign_then_add
from streamkm.kernels.checks import check_adding, check_rows, check_sums
from streamkm.kernels.exact import cancelling_share, recheck_second_, rounding_share
from streamkm.kernels.extension import HOW_TO_BUILD, WHY_MISSING, instruction_sets
from streamkm.kernels.ops.bunches import second_in_bunches
from streamkm.kernels.ops.carried import assign_carried_
from streamkm.kernels.ops.groups import GroupSearch
from streamkm.kernels.ops.lists import assign_lists_
from streamkm.kernels.ops.passes import TilePasses
from streamkm.kernels.ops.tiles import (
    Adding,
    Given,
    Wanted,
    accumulate_tiles_,
    add_tiles_,
    assign_tiles_,
)
from streamkm.kernels.rows import Rows

if TYPE_CHECKING:
    from streamkm.kernels.base import Carried, KernelRequest, Listed, PassSums
    from streamkm.kernels.extension import InstructionSet
    from streamkm.kernels.ops.groups import Groups
    from streamkm.kernels.ops.heads import Heads
    from streamkm.kernels.ops.tiles import Tiled

__all__ = ["CpuKernel"]

LABELS_ALONE = Wanted()
#: Rows of a batch, and centroids, must be fewer: they are numbered by int32.
MOST_ROWS = 2**31


class CpuKernel:
    """Tiles in C++, for batches of up to `batch_rows` rows and `k` centroids.

    Parameters
    ----------
    batch_rows, k : int
        Numbers of rows and centroids, at most; fewer than 2^31 each.
    dtype : torch.dtype
        Dtype of both, float32 or float64.
    device : torch.device
        The CPU.
    precision : {"exact", "fast"}
        ``exact`` rechecks rows that the screen leaves in doubt.
    instruction_set : InstructionSet or None
        By default the best that the processor has.

    Raises
    ------
    DeviceError
        If the extension was not built.
    """

    name = "cpu"
    stepper = None
    stored_dtypes: tuple[torch.dtype, ...] = ()
    distances_cancel = True

    def __init__(
        self,
        batch_rows: int,
        k: int,
        dtype: torch.dtype,
        device: torch.device,
        precision: str = "exact",
        *,
        instruction_set: InstructionSet | None = None,
    ) -> None:
        self.check(device)
        if max(batch_rows, k) >= MOST_ROWS:
            raise ValueError(
                f"this kernel numbers rows and centroids by int32: {batch_rows:,} rows and {k:,} "
                f"centroids must be fewer than {MOST_ROWS:,}; take smaller batches"
            )
        self._set = instruction_set or instruction_sets()[0]
        self._rechecks = precision == "exact"
        panel = self._set.float64_panel if dtype == torch.float64 else self._set.float32_panel
        self._c_sq = torch.empty(-(-k // panel) * panel, dtype=dtype, device=device)
        self._n_features, self._batch_rows = 0, batch_rows
        self.n_rechecked = torch.zeros((), dtype=torch.int64, device=device)
        self._search = GroupSearch(self._label, self._set.bits)

    @cached_property
    def _order(self) -> torch.Tensor:
        return self._c_sq.new_empty(self._batch_rows, dtype=torch.int32)

    @classmethod
    def check(cls, _device: torch.device) -> None:
        """Raise a DeviceError, which says why, if the extension is missing."""
        if not instruction_sets():
            raise DeviceError(
                Option("kernel", "cpu"),
                f": its extension {WHY_MISSING}; {HOW_TO_BUILD}, or use ",
                Option("kernel", "reference"),
            )

    @classmethod
    def make(cls, request: KernelRequest) -> Self:
        """See `Kernel`."""
        return cls(request.batch_rows, request.k, request.dtype, request.device, request.precision)

    @property
    def in_place(self) -> Self:
        """The kernel itself."""
        return self

    @property
    def whole_passes(self) -> Self:
        """The kernel itself."""
        return self

    @property
    def by_lists(self) -> Self:
        """The kernel itself."""
        return self

    def assign(
        self, x_BD: torch.Tensor, sq_norms_B: torch.Tensor, centroids_KD: torch.Tensor
    ) -> Assignment:
        """Nearest centroid of each row; see `Kernel`."""
        assignment, _ = self._assign(x_BD, sq_norms_B, centroids_KD)
        return assignment

    def assign_two(
        self, x_BD: torch.Tensor, sq_norms_B: torch.Tensor, centroids_KD: torch.Tensor
    ) -> TwoNearest:
        """The two nearest centroids of each row; see `Kernel`."""
        search, n_rows, k = self._search, len(sq_norms_B), len(centroids_KD)
        given = Given(x_BD, None, sq_norms_B, LABELS_ALONE)
        if search.pays_for_two(n_rows, k) and self._is_served(given, k):
            if search.groups is None and not search.wants_look(n_rows):
                search.learn(n_rows, n_rows * k, centroids_KD)
            else:
                nearest = self.assign(x_BD, sq_norms_B, centroids_KD)
                if (groups := search.groups) is not None:
                    second_B, n_compared = second_in_bunches(
                        self._assign_two, Rows(x_BD, sq_norms_B), nearest[0], centroids_KD, groups
                    )
                    search.learn_of_two(n_compared, n_rows * k)
                    return TwoNearest(*nearest, second_B)
        return self._assign_two(x_BD, sq_norms_B, centroids_KD)

    def _assign_two(
        self, x_BD: torch.Tensor, sq_norms_B: torch.Tensor, centroids_KD: torch.Tensor
    ) -> TwoNearest:
        """`assign_two` by comparing each row with all of these centroids."""
        second_B = torch.empty_like(sq_norms_B)
        wanted = Wanted(second_B=second_B)
        assignment, _ = self._assign(x_BD, sq_norms_B, centroids_KD, wanted=wanted)
        return TwoNearest(*assignment, second_B)

    def assign_listed(
        self,
        x_BD: torch.Tensor,
        sq_norms_B: torch.Tensor,
        centroids_KD: torch.Tensor,
        lists: Listed,
    ) -> Assignment:
        """Nearest of the centroids of its list for each row; see `ListKernel`."""
        self._check(x_BD, None, centroids_KD, sq_norms_B)
        self._make_room(centroids_KD.shape[1])
        labels_B, sq_distances_B, n_in_doubt = assign_lists_(
            self._set,
            x_BD.contiguous(),
            sq_norms_B.contiguous(),
            centroids_KD.contiguous(),
            lists,
            rounding_share=self._rounding_share,
            cancelling_share=self._cancelling_share,
            rechecks=self._rechecks,
        )
        if self._rechecks:
            self.n_rechecked += n_in_doubt
        return Assignment(labels_B, sq_distances_B)

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
        """Nearest centroids of rows where they lie in a window; see `InPlaceKernel`.

        By what is `carried`, if it is, which needs `exact` distances.
        """
        n_rows = (x_ND if positions_B is None else positions_B).shape[0]
        sq_norms_B = x_ND.new_empty(n_rows)
        dropped_B = x_ND.new_empty(n_rows, dtype=torch.bool)
        exact_B = x_ND.new_empty(n_rows, dtype=torch.float64) if exact else None
        wanted = Wanted(dropped_B=dropped_B, most_sq_norm=most_sq_norm, exact_B=exact_B)
        (labels_B, sq_distances_B), n_dropped = self._assign(
            x_ND, sq_norms_B, centroids_KD, positions_B, wanted, carried
        )
        distances_B = sq_distances_B if exact_B is None else exact_B
        return InPlaceAssignment(
            labels_B, distances_B, sq_norms_B, dropped_B if n_dropped else None
        )

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
        """Assign rows where they lie, and add them up; see `InPlaceKernel`."""
        check_sums(added, centroids_KD)
        assigned = self.assign_in_place(
            x_ND, positions_B, centroids_KD, most_sq_norm=most_sq_norm, exact=True, carried=carried
        )
        adding = Adding(added, unit, self._order)
        x_ND = x_ND.contiguous()
        add_tiles_(self._set, x_ND, positions_B, assigned.labels_B, assigned.dropped_B, adding)
        return assigned

    def _assign(
        self,
        x_ND: torch.Tensor,
        sq_norms_B: torch.Tensor,
        centroids_KD: torch.Tensor,
        positions_B: torch.Tensor | None = None,
        wanted: Wanted = LABELS_ALONE,
        carried: Carried | None = None,
    ) -> tuple[Assignment, int]:
        """Labels and squared distances, and the number of dropped rows."""
        self._check(x_ND, positions_B, centroids_KD, sq_norms_B)
        k = centroids_KD.shape[0]
        if not 0 < k <= self._c_sq.shape[0]:
            raise ValueError(f"this kernel is made for {len(self._c_sq)} centroids, not {k}")
        self._make_room(centroids_KD.shape[1])
        centroids_KD = centroids_KD.contiguous()
        given = Given(x_ND.contiguous(), positions_B, sq_norms_B.contiguous(), wanted)
        if carried is not None:
            return self._assign_carried(given, carried, centroids_KD)
        if self._is_served(given, k):
            return self._assign_served(given, centroids_KD)
        tiled = self._assign_tiles(given, centroids_KD)
        self._count(tiled)
        if self._rechecks and wanted.second_B is not None:
            uncertain_B = tiled.uncertain_B
            uncertain_B |= wanted.second_B < self._cancelling_share * sq_norms_B
            recheck_second_(wanted.second_B, uncertain_B, x_ND, centroids_KD)
        return Assignment(tiled.labels_B, tiled.sq_distances_B), tiled.n_dropped

    def _is_served(self, given: Given, k: int) -> bool:
        """Whether rows may be compared by groups of centroids or by heads."""
        is_able = self._set.bytes_panel > 0 and given.wanted.second_B is None
        return is_able and self._search.serves(len(given.sq_norms_B), k, given.x_ND.shape[1])

    def _assign_carried(
        self, given: Given, carried: Carried, centroids_KD: torch.Tensor
    ) -> tuple[Assignment, int]:
        """`_assign` by what is `carried`; by groups of centroids where these are found to pay."""
        n_rows, k = len(given.sq_norms_B), len(centroids_KD)
        is_served = self._is_served(given, k)
        if is_served and (self._search.groups is not None or self._search.wants_look(n_rows)):
            assignment, n_dropped = self._assign_served(given, centroids_KD)
            carried.labels_B.copy_(assignment.labels_B)
            carried.lows_B.zero_()
            carried.n_compared = n_rows * k
            return assignment, n_dropped
        tiled = assign_carried_(
            self._set,
            given,
            carried,
            centroids_KD,
            self._packed,
            self._c_sq,
            self._zeros_D,
            rounding_share=self._rounding_share,
            cancelling_share=self._cancelling_share,
        )
        self._count(tiled)
        carried.n_compared = tiled.n_compared
        if is_served:
            self._search.learn(n_rows, n_rows * k, centroids_KD)
        return Assignment(tiled.labels_B, tiled.sq_distances_B), tiled.n_dropped

    def _assign_served(self, given: Given, centroids_KD: torch.Tensor) -> tuple[Assignment, int]:
        """`_assign` by groups or heads, if there are any; looks at the data if it is time."""
        search, found, left = self._search, [], given
        while len(left.sq_norms_B):
            looks = search.wants_look(len(left.sq_norms_B))
            part, left = left.cut(search.rows_at_once(len(left.sq_norms_B)))
            tiled = self._assign_tiles(part, centroids_KD, by := search.way(len(part.sq_norms_B)))
            self._count(tiled)
            search.learn(len(part.sq_norms_B), tiled.n_compared, centroids_KD, by=by)
            if looks:
                search.look(part.rows(), tiled.sq_distances_B, centroids_KD)
            found.append(tiled)
        labels_B, sq_distances_B = found[0][:2]
        if len(found) > 1:
            labels_B = torch.cat([each.labels_B for each in found])
            sq_distances_B = torch.cat([each.sq_distances_B for each in found])
        return Assignment(labels_B, sq_distances_B), sum(each.n_dropped for each in found)

    def _assign_tiles(
        self, given: Given, centroids_KD: torch.Tensor, by: Groups | Heads | None = None
    ) -> Tiled:
        return assign_tiles_(
            self._set,
            given.x_ND,
            given.positions_B,
            given.sq_norms_B,
            centroids_KD,
            self._packed,
            self._c_sq,
            self._zeros_D,
            given.wanted,
            rounding_share=self._rounding_share,
            cancelling_share=self._cancelling_share,
            rechecks=self._rechecks,
            by=by,
        )

    def _count(self, tiled: Tiled) -> None:
        if self._rechecks:
            self.n_rechecked += tiled.n_uncertain

    def _label(self, points_JD: torch.Tensor, x_ND: torch.Tensor) -> torch.Tensor:
        """The nearest of `points_JD` for each row, without counting what was rechecked."""
        found = []
        for x_BD in x_ND.split(self._batch_rows):
            given = Given(x_BD, None, x_BD.square().sum(dim=1), LABELS_ALONE)
            found.append(self._assign_tiles(given, points_JD).labels_B)
        return torch.cat(found)

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
        """Add rows to their clusters, in the order of rows; see `Kernel` and `InPlaceKernel`."""
        self._check(x_BD, positions_B, sums_KD, labels_B, points_dtype=torch.float64)
        has_positions = positions_B is not None
        check_adding(len(x_BD), labels_B, sums_KD, counts_K, shares_B, has_positions=has_positions)
        accumulate_tiles_(
            self._set,
            x_BD.contiguous(),
            positions_B,
            None if shares_B is None else shares_B.contiguous(),
            labels_B.contiguous(),
            self._order,
            sums_KD,
            counts_K,
        )

    def passes_over(
        self,
        rows: Rows,
        weights_B: torch.Tensor | None,
        unit: torch.Tensor,
        *,
        spherical: bool,
    ) -> TilePasses:
        """What makes passes, or breaths, over `rows`; see `PassKernel`."""
        self._check(rows.x_BD, None, rows.x_BD, rows.sq_norms_B, is_batch=False)
        self._make_room(rows.x_BD.shape[1])
        return TilePasses(
            self._set,
            rows,
            weights_B,
            float(unit),
            self._packed,
            self._c_sq,
            self.n_rechecked,
            rounding_share=self._rounding_share,
            cancelling_share=self._cancelling_share,
            rechecks=self._rechecks,
            spherical=spherical,
        )

    def step(
        self,
        rows: Rows,
        centroids_KD: torch.Tensor,
        *,
        sums_KD: torch.Tensor,
        counts_K: torch.Tensor,
    ) -> Assignment:
        """Assign rows and add them up; see `Kernel`."""
        return assign_then_add(self, rows, centroids_KD, sums_KD=sums_KD, counts_K=counts_K)

    def _make_room(self, n_features: int) -> None:
        """Make room for centroids of `n_features` as packed."""
        if self._n_features != n_features:
            dtype, self._n_features = self._c_sq.dtype, n_features
            self._packed = self._c_sq.new_empty((self._c_sq.shape[0], n_features))
            self._zeros_D = self._c_sq.new_zeros(n_features)
            self._rounding_share = rounding_share(dtype, n_features)
            self._cancelling_share = 2 * cancelling_share(dtype, n_features)

    def _check(
        self,
        x_BD: torch.Tensor,
        positions_B: torch.Tensor | None,
        points_KD: torch.Tensor,
        of_rows_B: torch.Tensor,
        *,
        points_dtype: torch.dtype | None = None,
        is_batch: bool = True,
    ) -> None:
        """Refuse what the extension would go wrong with; see `check_rows`."""
        dtype, most_rows = self._c_sq.dtype, self._batch_rows if is_batch else None
        check_rows(x_BD, positions_B, points_KD, of_rows_B, dtype, points_dtype, most_rows)
