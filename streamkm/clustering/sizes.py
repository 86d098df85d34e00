"""Sizes that both the memory plan and the arithmetic must agree on; imports nothing."""

from __future__ import annotations

__all__ = ["MAX_RESERVOIR_ROWS", "sample_size"]

#: Rows of the sample that seeding works on: per cluster, and at least.
SAMPLE_ROWS_PER_CLUSTER = 16
MIN_SAMPLE_ROWS = 16384

#: So many rows at most wait to replace empty clusters.
MAX_RESERVOIR_ROWS = 256


def sample_size(n_rows: int, k: int) -> int:
    """Rows to draw for the seeding of `k` clusters from an array of `n_rows`."""
    return min(n_rows, max(MIN_SAMPLE_ROWS, SAMPLE_ROWS_PER_CLUSTER * k))
