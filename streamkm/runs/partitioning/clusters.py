"""The cluster of every row, as ``labels.npy`` in the folder of a partition says."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from streamkm.runs.partitioning.placing import SCAN_ROWS
from streamkm.sources.base import RowRange
from streamkm.sources.npy import open_npy

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

__all__ = ["Clusters"]


class Clusters:
    """The labels that a partition goes by: those of its folder, of the chosen clusters."""

    def __init__(self, path: Path, k: int, only: Sequence[int] | None) -> None:
        self._source = open_npy(path, column=True)
        self.n_rows, self.k = self._source.spec.n_rows, k
        self._chosen_K: np.ndarray | None = None
        if only is not None:
            self._chosen_K = np.zeros(k, bool)
            self._chosen_K[list(only)] = True

    def stored(self, rows: RowRange) -> np.ndarray:
        """The labels of `rows` of all clusters, -1 for dropped ones."""
        labels_B1 = np.empty((len(rows), 1), self._source.spec.storage)
        self._source.read(rows, labels_B1)
        return labels_B1[:, 0]

    def labels(self, rows: RowRange) -> np.ndarray:
        """The labels of `rows`, -1 for those that are in no cluster or in none that was chosen."""
        labels_B = self.stored(rows)
        if self._chosen_K is not None:
            labels_B[~self._chosen_K[labels_B]] = -1
        return labels_B

    def has_any(self, reads: Sequence[RowRange]) -> bool:
        """Whether a row of `reads` is in a chosen cluster; True where all clusters are chosen."""
        if self._chosen_K is None:
            return True
        parts = (part for rows in reads for part in rows.split(SCAN_ROWS))
        return any(bool((self.labels(part) >= 0).any()) for part in parts)

    def n_dropped(self) -> int:
        """Rows that are in no cluster."""
        parts = RowRange(0, self.n_rows).split(SCAN_ROWS)
        return sum(int(np.count_nonzero(self.stored(rows) < 0)) for rows in parts)

    def close(self) -> None:
        """Release the file."""
        self._source.close()
