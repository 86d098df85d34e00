"""Agreement of two clusterings of the same rows: the adjusted Rand index, from counts of pairs."""

from __future__ import annotations

from itertools import combinations
from math import isqrt
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["MOST_CLUSTERS", "RunningAgreement", "adjusted_rand_index", "agreement_of"]

#: Clusters up to which labels are compared: the counts of every pair take 128 MiB then.
MOST_CLUSTERS = 4096
#: Rows up to which squares of their number fit int64.
EXACT_ROWS = isqrt(2**63 - 1)


class RunningAgreement:
    """Compares the labels of several clusterings into `k` clusters, as they come.

    Each brings its labels in the same order of rows. What one brings waits until all have brought
    theirs, so that the memory is that of the rows which one is ahead of another.
    """

    def __init__(self, k: int, n_clusterings: int) -> None:
        self._k = k
        self._waiting: list[dict[int, torch.Tensor]] = [{} for _ in range(n_clusterings)]
        pairs = combinations(range(n_clusterings), 2)
        self._counts = {pair: torch.zeros(k * k, dtype=torch.int64) for pair in pairs}

    def add_(self, clustering: int, start_row: int, labels_B: torch.Tensor) -> None:
        """Take the labels of rows from `start_row` on; rows of label -1 do not count."""
        self._waiting[clustering][start_row] = labels_B.to(torch.int32, copy=True)
        if all(start_row in each for each in self._waiting):
            labels = [each.pop(start_row).long() for each in self._waiting]
            for (one, other), counts in self._counts.items():
                counted_B = (labels[one] >= 0) & (labels[other] >= 0)
                pairs_B = (labels[one] * self._k + labels[other])[counted_B]
                counts += torch.bincount(pairs_B, minlength=self._k**2)

    def indices(self) -> list[float]:
        """The adjusted Rand index of each pair of clusterings, (0, 1), (0, 2) and so on."""
        shape = (self._k, self._k)
        return [adjusted_rand_index(counts.view(shape)) for counts in self._counts.values()]


def adjusted_rand_index(counts_KL: torch.Tensor) -> float:
    """The index of two clusterings by how many rows each pair of clusters shares.

    1 if they are the same but for the numbers of clusters, 0 in the mean of random ones (Hubert and
    Arabie 1985), as scikit-learn's ``adjusted_rand_score``.

    Parameters
    ----------
    counts_KL : int64 Tensor of shape (K, L)
    """
    return _index(counts_KL, counts_KL.sum(dim=1), counts_KL.sum(dim=0))


def agreement_of(one_S: torch.Tensor, other_S: torch.Tensor, k: int) -> float:
    """The adjusted Rand index of two clusterings into `k` clusters, from the labels of all rows.

    It takes memory for the pairs of clusters that share rows alone. Rows that one of them has given
    no label, -1, do not count.
    """
    counted_S = (one_S >= 0) & (other_S >= 0)
    one_S, other_S = one_S[counted_S], other_S[counted_S]
    _, pairs_P = (one_S * k + other_S).unique(return_counts=True)
    return _index(pairs_P, one_S.bincount(), other_S.bincount())


def _index(pairs_P: torch.Tensor, sizes_K: torch.Tensor, sizes_L: torch.Tensor) -> float:
    """The index from the rows of each pair of clusters, and of each cluster of both."""
    n_rows = int(sizes_K.sum())
    both, one, other = _sums_of_squares((pairs_P, sizes_K, sizes_L), n_rows)
    # Pairs of rows, counted twice: together in both, in one alone, in the other alone, in neither.
    together, only_one, only_other = both - n_rows, one - both, other - both
    apart = n_rows**2 - one - other + both
    if only_one == only_other == 0:
        return 1.0
    expected = (together + only_one) * (only_one + apart)
    expected += (together + only_other) * (only_other + apart)
    return 2 * (together * apart - only_one * only_other) / expected


def _sums_of_squares(parts: Sequence[torch.Tensor], n_rows: int) -> list[int]:
    if n_rows > EXACT_ROWS:
        return [int(part.double().square().sum()) for part in parts]
    return [int(part.square().sum()) for part in parts]
