"""Adds up a batch that several processes share, by one reduction where that is possible.

Sums of whole numbers need quanta that all processes know before they add (see `FixedSums`). To ask
each other how long the rows are is a reduction of its own, and processes wait in each. So on the
CPU quanta come from what all know, the state: a row is hardly ever farther from its centroid than
`REACH` times the root of the mean squared distance of the batch before. Whether they fit every row
is added up along with the sums. If not, all ask each other and add up again with quanta of these
rows, and before the next batch they ask first. Which quanta count follows from the state and the
rows of the whole batch alone, never from how these are divided.

They are not taken from the state where rows have weights, which may be of any size in a cluster,
and on a GPU: there the host would have to ask for the answer, and nobody waits for the first
reduction.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from streamkm.devices import is_host
from streamkm.distributed.world import ALONE
from streamkm.kernels import (
    Added,
    FixedSums,
    Sums,
    add_fixed_,
    bits_for,
    expected_exponents,
    exponents_by_label,
    exponents_of,
    fixed_by_label,
    gather,
    instruction_sets,
    wide_by_label,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from streamkm.clustering.batch import Batch
    from streamkm.distributed.world import World
    from streamkm.kernels import Assignment

__all__ = ["Sharing", "StepSums", "exchanged_bytes"]

#: Rows are taken to stay within this multiple of the root mean square of the distances of the batch
#: before: those of Gaussians do. It costs at most 5 of the 48 bits of a whole number.
REACH_BITS = 4
REACH = 2.0**REACH_BITS
#: Rows, but for those of zeros, may be shorter by a factor of 2 to this power than is expected, and
#: squared distances smaller in the mean. A quantum is then 2^-32 of the shortest row at most.
SLACK_BITS = 16
#: Squares of lengths beside 4 to the power of their exponent, which they do not quite reach.
LEAST_SHARE, MOST_SHARE = 4.0**-SLACK_BITS, 0.25
#: Numbers of 8 bytes in a line of the cache, at which the sums begin.
LINE = 8
#: Rows of a batch of all processes up to which counts go as 16 bits.
MOST_SHORT_COUNTS = 2**15 - 1


class Sharing:
    """How the processes of `world` add up batches.

    Attributes
    ----------
    has_held : bool
        Whether the quanta from the state fitted the last batch. The same in all processes; only
        what they exchange depends on it.
    """

    def __init__(self, world: World = ALONE) -> None:
        self.world = world
        self.has_held = True


class StepSums:
    """Sums over a batch of all processes, in one piece of memory that is added up as it is.

    Parameters
    ----------
    batch : Batch
        The rows of this process, with their squared lengths.
    assignment : Assignment
        Their labels, K for rows that no cluster counts, and squared distances.
    n_dropped : int or int64 Tensor of shape ()
        Rows of this process that were dropped.
    k : int
        Number of clusters.
    world : World
        The processes.
    """

    def __init__(
        self,
        batch: Batch,
        assignment: Assignment,
        n_dropped: int | torch.Tensor,
        k: int,
        world: World,
    ) -> None:
        self._batch, self._assignment, self._n_dropped, self._k = batch, assignment, n_dropped, k
        self._world = world
        self._shares_B, self._unit = batch.shares
        self._n_bits = bits_for(batch.n_whole)
        self._count_dtype = _count_dtype(batch.n_whole)

    def add_up(
        self,
        centroids_KD: torch.Tensor,
        usual: torch.Tensor,
        sharing: Sharing,
        meanwhile: Callable[[], None],
    ) -> None:
        """Add up the rows of all processes.

        Parameters
        ----------
        centroids_KD : Tensor of shape (K, D)
            What the rows were compared with.
        usual : float64 Tensor of shape ()
            Mean squared distance of the batch before, NaN if there was none.
        sharing : Sharing
            Of the same processes.
        meanwhile : callable
            What can be done while the first sums are under way.
        """
        expected_E, n_misfits = None, 0
        if is_host(centroids_KD.device) and self._shares_B is None and float(usual) > 0:
            expected_E, n_misfits = self._expected(centroids_KD, usual)
        asked = None
        if self._world.size > 1 and not (expected_E is not None and sharing.has_held):
            asked = self._exponents(n_misfits)
            if expected_E is not None and int(asked[2]):
                sharing.has_held, expected_E = False, None
        if expected_E is not None:
            self._add(expected_E, n_misfits=n_misfits)
            self._reduce(meanwhile)
            sharing.has_held = self._holds()
            if sharing.has_held:
                return
            meanwhile = _nothing
        exponents_E, of_shares_K, _ = asked or self._exponents(n_misfits)
        self._add(exponents_E, of_shares_K)
        self._reduce(meanwhile)

    def added(self) -> Added:
        """All of them, for `finish_step_`; only if rows have no weights."""
        counts_K = self._sums.counts_K if self._world.size == 1 else self._packed_counts()
        return Added(self._sums, counts_K, self._ahead)

    def sums(self) -> Sums:
        """Sums of the rows of each cluster."""
        return Sums(self._sums.wide()[: self._k], self._unit)

    def counts_K(self) -> torch.Tensor:
        """Their numbers, int64."""
        if self._world.size == 1:
            return self._sums.counts_K[: self._k]
        return self._packed_counts()[: self._k].long()

    def weights_K(self) -> torch.Tensor:
        """Sums of their weights, float64; of shape (0,) where rows have no weights."""
        if self._shares_B is None:
            return self._unit.new_zeros(0)
        wide_K = wide_by_label(self._mass_LK, self._of_shares_K, self._n_bits)
        return wide_K[: self._k] * self._unit

    def inertia(self) -> torch.Tensor:
        """Sum of the squared distances, each times its weight, float64."""
        return self._sums.total() * self._unit

    def n_dropped(self) -> torch.Tensor:
        """Rows that were dropped, int64."""
        return self._ahead[1]

    # ---- quanta -----------------------------------------------------------------------------

    def _exponents(self, n_misfits: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Exponents that hold for the rows of all processes, for shares, and the most misfits."""
        labels_B, sq_distances_B = self._assignment
        exponents_E = exponents_by_label(
            self._batch.sq_norms_B, sq_distances_B, self._shares_B, labels_B, self._k + 1
        )
        of_shares_K = exponents_E.new_zeros(0)
        if self._shares_B is not None:
            of_shares_K = exponents_of(self._shares_B, labels_B, self._k + 1)
        most = torch.full_like(exponents_E[:1], n_misfits)
        self._world.max_(exponents_E, of_shares_K, most)
        return exponents_E, of_shares_K, most

    def _expected(
        self, centroids_KD: torch.Tensor, usual: torch.Tensor
    ) -> tuple[torch.Tensor, int]:
        """Exponents of rows within reach of their centroids, and how many rows they do not fit."""
        _, sq_norms_K = gather(centroids_KD, slice(None), centroids_KD)
        reach = REACH * math.sqrt(float(usual))
        if instruction_sets():
            labels_B, sq_distances_B = self._assignment
            return expected_exponents(
                sq_norms_K,
                labels_B.contiguous(),
                self._batch.sq_norms_B.contiguous(),
                sq_distances_B.contiguous(),
                reach=reach,
                least_share=LEAST_SHARE,
                most_share=MOST_SHARE,
            )
        # One more, for lengths that were rounded; rows that no cluster counts may be of any length.
        exponents_K = torch.frexp(sq_norms_K.double().sqrt_().add_(reach)).exponent + 1
        expected_E = torch.cat((exponents_K, exponents_K.new_tensor([0, math.frexp(reach**2)[1]])))
        return expected_E, self._misfits(expected_E)

    def _misfits(self, expected_E: torch.Tensor) -> int:
        """Rows of this process that are longer, farther or much shorter than is expected."""
        labels_B, sq_distances_B = self._assignment
        sq_norms_B = self._batch.sq_norms_B
        if not len(sq_norms_B):
            return 0
        units_E = torch.ldexp(sq_norms_B.new_ones(len(expected_E)), -2 * expected_E)
        shares_B = units_E.index_select(0, labels_B).mul_(sq_norms_B)
        least, most = (float(each) for each in shares_B.aminmax())
        n_far = 0
        if float(sq_distances_B.max()) >= 2.0 ** int(expected_E[-1]):
            n_far = 1
        if least >= LEAST_SHARE and most <= MOST_SHARE:
            return n_far
        # NaN, of rows that no cluster counts, is neither.
        misfits_B = (shares_B > MOST_SHARE) | ((shares_B < LEAST_SHARE) & (sq_norms_B > 0))
        return n_far + int((misfits_B & (labels_B < self._k)).sum())

    def _holds(self) -> bool:
        """Whether expected exponents fit all rows, and distances were not much smaller."""
        total, n_misfits = int(self._ahead[0]), int(self._ahead[2])
        # In the mean, distances of the batch before had this number of quanta.
        n_usual = 1 << (self._n_bits - 2 * REACH_BITS)
        return n_misfits == 0 and total << SLACK_BITS >= int(self.counts_K().sum()) * n_usual

    # ---- sums -------------------------------------------------------------------------------

    def _add(
        self,
        exponents_E: torch.Tensor,
        of_shares_K: torch.Tensor | None = None,
        *,
        n_misfits: int = 0,
    ) -> None:
        """Add up the rows of this process; none if the exponents do not fit them."""
        batch, (labels_B, sq_distances_B) = self._batch, self._assignment
        n_labels, n_features = self._k + 1, batch.x_ND.shape[1]
        n_limbs = _limbs(batch.sq_norms_B.dtype)
        is_weighted = self._shares_B is not None
        n_ahead = _numbers_ahead(self._k, self._count_dtype, weighted=is_weighted)
        memory = torch.zeros(
            n_ahead + n_limbs * n_labels * n_features, dtype=torch.int64, device=labels_B.device
        )
        self._ahead = memory[:n_ahead]
        # The last sum is that of rows that no cluster counts.
        self._exchanged = memory[: memory.numel() - n_features]
        self._sums = FixedSums(
            memory[n_ahead:].view(n_limbs, n_labels, n_features),
            torch.zeros(n_labels, dtype=torch.int64, device=labels_B.device),
            self._ahead[:1],
            exponents_E,
            self._n_bits,
        )
        if self._batch.dropped_B is not None:
            self._ahead[1] = self._n_dropped
        if n_misfits:
            self._ahead[2] = n_misfits
            return
        add_fixed_(
            self._sums, batch.x_ND, batch.positions_B, labels_B, sq_distances_B, self._shares_B
        )
        if self._world.size > 1:
            self._packed_counts()[: self._k] = self._sums.counts_K[: self._k]
        if self._shares_B is not None and of_shares_K is not None:
            self._of_shares_K = of_shares_K
            self._mass_LK = self._ahead[n_ahead - 2 * n_labels :].view(2, -1)
            mass_LK = fixed_by_label(self._shares_B, labels_B, of_shares_K, self._n_bits)
            self._mass_LK.copy_(mass_LK)

    def _packed_counts(self) -> torch.Tensor:
        """Numbers of rows, several in one whole number: over all processes none carries over."""
        return self._ahead[3:].view(self._count_dtype)

    def _reduce(self, meanwhile: Callable[[], None]) -> None:
        under_way = self._world.sum_later(self._exchanged)
        meanwhile()
        under_way.wait()


def exchanged_bytes(
    k: int, n_features: int, dtype: torch.dtype, batch_rows: int, *, weighted: bool, on_host: bool
) -> int:
    """Bytes that processes add up in a step of `batch_rows`, where quanta from the state fit."""
    ahead = _numbers_ahead(k, _count_dtype(batch_rows), weighted=weighted)
    numbers = ahead + (_limbs(dtype) * (k + 1) - 1) * n_features
    # Exponents, of weights too, and whether those from the state fit.
    n_exponents = k + 3 + (k + 1 if weighted else 0)
    return 8 * numbers + (0 if on_host and not weighted else 4 * n_exponents)


def _limbs(dtype: torch.dtype) -> int:
    """Whole numbers of a sum of rows of `dtype`."""
    return 2 if dtype == torch.float64 else 1


def _count_dtype(n_rows: int) -> torch.dtype:
    """What holds counts of rows of a batch of all processes, which has fewer than 2^31."""
    return torch.int16 if n_rows <= MOST_SHORT_COUNTS else torch.int32


def _numbers_ahead(k: int, count_dtype: torch.dtype, *, weighted: bool) -> int:
    """Numbers before the sums: distances, dropped rows, misfits, counts, and mass if `weighted`."""
    n_numbers = 3 + math.ceil(k * count_dtype.itemsize / 8) + (2 * (k + 1) if weighted else 0)
    return math.ceil(n_numbers / LINE) * LINE


def _nothing() -> None:
    """Do nothing."""
