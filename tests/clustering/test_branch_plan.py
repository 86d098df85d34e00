"""What lists of branches take."""

from __future__ import annotations

import pytest

from streamkm.clustering.branch_plan import LISTS_PER_LEAF, branch_bytes, compared, listed


# Breaks when a state without branches carries lists, or one branch lists a cluster twice.
def test_entries_of_the_lists() -> None:
    assert listed(1000, 0) == 0
    assert listed(1000, 1) == 1000
    assert listed(1000, 50) == LISTS_PER_LEAF * 1000


# Breaks when the branches themselves, or clusters in several lists, are forgotten.
def test_comparisons_of_a_row() -> None:
    assert compared(1000, 0) == 1000
    assert compared(1000, 1) == 1 + 1000
    assert compared(10_000, 200) == 200 + LISTS_PER_LEAF * 50


@pytest.mark.parametrize("k", [10_000, 1_000_000])
def test_bytes_grow_with_clusters_and_are_none_without_branches(k: int) -> None:
    assert branch_bytes(k, 64, 0, 16384, 4) == 0
    one, twice = (branch_bytes(n, 64, 2000, 16384, 4) for n in (k, 2 * k))
    assert one < twice <= 2 * one
    assert one > 8 * listed(k, 2000)
