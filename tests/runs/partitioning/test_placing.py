"""Where rows go: by hand, and as a stable sort finds it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamkm.runs.partitioning import placing
from streamkm.runs.partitioning.placing import ByKey, offsets_of, stable_argsort
from streamkm.sources import RowRange


def by_key(labels: np.ndarray, k: int) -> ByKey:
    def keys(rows: RowRange) -> np.ndarray:
        return labels[rows.start : rows.stop]

    return ByKey(len(labels), keys, offsets_of(len(labels), keys, k)[:-1])


def test_places_by_hand() -> None:
    labels = np.array([2, 0, -1, 2, 0, 2])
    assert by_key(labels, 4).places(RowRange(0, 6)).tolist() == [2, 0, -1, 3, 1, 4]
    assert offsets_of(6, lambda rows: labels[rows.start : rows.stop], 4).tolist() == [0, 2, 2, 5, 5]


# Breaks when what one range counted does not reach the next.
@given(st.lists(st.integers(-1, 4), max_size=60), st.integers(1, 20), st.data())
def test_places_are_those_of_a_stable_sort(labels: list[int], size: int, data) -> None:
    labels_N = np.array(labels, np.int32)
    placing = by_key(labels_N, 5)
    parts = [placing.places(rows) for rows in RowRange(0, len(labels)).split(size)]
    found = np.concatenate([np.empty(0, np.int64), *parts])
    order = np.argsort(labels_N, kind="stable")
    order = order[labels_N[order] >= 0]
    expected = np.full(len(labels), -1)
    expected[order] = np.arange(len(order))
    assert found.tolist() == expected.tolist()
    at = data.draw(st.integers(0, len(labels)))
    seen = np.bincount(labels_N[:at][labels_N[:at] >= 0], minlength=5)
    starts = np.cumsum(np.bincount(labels_N[labels_N >= 0], minlength=5))
    starts = np.concatenate(([0], starts[:-1]))
    assert by_key(labels_N, 5).after(RowRange(0, at)).tolist() == (starts + seen).tolist()


# Breaks when keys beyond one digit, or equal ones, lose their order.
@pytest.mark.parametrize("most", [1, 1 << 16, (1 << 16) + 1, 1 << 33])
def test_stable_argsort(most: int) -> None:
    keys = np.random.default_rng(0).integers(most, size=2000)
    keys[::3] = keys[0]
    assert (stable_argsort(keys) == np.argsort(keys, kind="stable")).all()
    assert not len(stable_argsort(keys[:0]))


def test_a_range_is_scanned_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placing, "SCAN_ROWS", 7)
    asked = []

    def keys(rows: RowRange) -> np.ndarray:
        asked.append(len(rows))
        return np.zeros(len(rows), np.int64)

    assert offsets_of(20, keys, 2).tolist() == [0, 20, 20]
    assert asked == [7, 7, 6]
