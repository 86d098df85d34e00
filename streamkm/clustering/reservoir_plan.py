"""The size of the reservoir (see `clustering.reservoir`). Imports no torch."""

from __future__ import annotations

__all__ = ["reservoir_rows"]

#: One row for every 16 clusters, but at least 256 and at most one each.
CLUSTERS_PER_RESERVOIR_ROW, MIN_RESERVOIR_ROWS = 16, 256


def reservoir_rows(k: int) -> int:
    """Size of the reservoir for `k` clusters."""
    return min(k, max(MIN_RESERVOIR_ROWS, k // CLUSTERS_PER_RESERVOIR_ROW))
