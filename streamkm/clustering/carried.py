"""What a pass of Lloyd's algorithm finds of each row, carried to the next pass.

After a pass the label of each row is known, and a distance below which it had no other centroid.
If the centroids then move little, most rows need few comparisons, or none (Hamerly, "Making k-means
even faster", SDM 2010). Hamerly compares the bound with the greatest move of any centroid. On rows
of many features, where a few centroids still go far while most stand still, that spares nothing.
Here rows are compared with those centroids alone that moved far enough to matter to them
(``kernels/native/carried.h``). One bound for each group of centroids (Yinyang, ICML 2015) was
simulated: it spared less at k=1024 and takes more memory (bench/LOG.md).

Labels and sums are the same, bit for bit. So a resumed run, which finds nothing of the pass before,
ends as one that was never stopped.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from streamkm.kernels import Carried, Drift

__all__ = ["CarriedRows"]

#: Where more than this share of comparisons was left in the batches of a pass that were tried, the
#: other batches of the pass are compared with all centroids at once.
WORTH_SHARE = 0.9
#: After this number of such passes in a row nothing is kept in the next, but of the first batch,
#: until that shows that it is worth it: to keep it takes a twentieth of a pass.
MOST_IN_VAIN = 2


class _Kept(NamedTuple):
    """The rows of one batch, as a pass has left them."""

    carried: Carried
    pass_number: int


class CarriedRows:
    """What is carried of the batches of one process, by their numbers; each pass has the same.

    `order` says which rows each batch has: who goes by what is carried must have an equal one.
    """

    def __init__(self, order: object = None) -> None:
        self.order = order
        self._kept: dict[int, _Kept] = {}
        self._pass_number = 0
        self._before_KD: torch.Tensor | None = None
        self._drift: Drift | None = None
        self._tried = self._left = self._n_in_vain = 0
        self.n_rows = 0
        """Rows that were assigned so."""
        self.n_spared = 0
        """Comparisons of rows with centroids that were not made."""
        self.n_possible = 0
        """Those of all rows with all centroids."""

    def begin_pass_(self, centroids_KD: torch.Tensor) -> None:
        """Begin a pass by these centroids, which stay as they are until the next begins."""
        before_KD = self._before_KD
        self._drift = None if before_KD is None else Drift.between(before_KD, centroids_KD)
        self._before_KD = centroids_KD.clone()
        self._pass_number += 1
        if self._tried:
            self._n_in_vain = 0 if self._is_worth_it else self._n_in_vain + 1
        self._tried = self._left = 0

    @property
    def _is_worth_it(self) -> bool:
        """Whether the batches of this pass that were tried have spared enough, if any were."""
        return self._left <= WORTH_SHARE * self._tried

    def of_batch(self, index: int, n_rows: int) -> Carried | None:
        """What is carried of batch `index`; `take` says afterwards what came of it.

        None where nothing is kept of it in this pass.
        """
        if self._n_in_vain >= MOST_IN_VAIN and not self._is_worth_it:
            assert self._before_KD is not None, "a pass has begun"
            self.n_rows += n_rows
            self.n_possible += n_rows * len(self._before_KD)
            return None
        kept = self._kept.get(index)
        if kept is None:
            carried = Carried(
                torch.zeros(n_rows, dtype=torch.int32), torch.zeros(n_rows, dtype=torch.float32)
            )
        else:
            carried = kept.carried
        is_known = kept is not None and kept.pass_number == self._pass_number - 1
        carried.drift = self._drift if is_known and self._is_worth_it else None
        return carried

    def take(self, index: int, carried: Carried, k: int) -> None:
        """Keep what is known now of batch `index`, whose rows were compared with `k` centroids."""
        self._kept[index] = _Kept(carried, self._pass_number)
        n_rows = len(carried.labels_B)
        if carried.drift is not None:
            self._tried += n_rows * k
            self._left += carried.n_compared
        self.n_rows += n_rows
        self.n_possible += n_rows * k
        self.n_spared += n_rows * k - carried.n_compared

    def forget_(self) -> None:
        """Free all that is kept; the next pass finds nothing."""
        self._kept.clear()
        self._before_KD = self._drift = None

    @property
    def n_bytes(self) -> int:
        """Bytes of all that is kept."""
        of_rows = sum(each.labels_B.nbytes + each.lows_B.nbytes for each, _ in self._kept.values())
        return of_rows + (0 if self._before_KD is None else self._before_KD.nbytes)

    @property
    def spared_share(self) -> float:
        """The share of all comparisons of rows with centroids that was not made."""
        return self.n_spared / max(self.n_possible, 1)
