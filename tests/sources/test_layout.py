"""Flat row ranges cut into rectangles, against NumPy."""

from __future__ import annotations

from math import prod

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from streamkm.sources import RowRange, open_source
from streamkm.sources.layout import row_boxes, rows_for_bytes
from tests.sources.contract import numbers, read, same_bytes


@st.composite
def shapes_and_ranges(draw) -> tuple[tuple[int, ...], RowRange]:
    leading = tuple(draw(st.lists(st.integers(1, 6), min_size=1, max_size=4)))
    start, stop = sorted(draw(st.tuples(*[st.integers(0, prod(leading))] * 2)))
    return leading, RowRange(start, stop)


# Breaks when rows are left out, read twice or out of order.
@given(shapes_and_ranges())
def test_boxes_are_the_rows_in_order(drawn: tuple[tuple[int, ...], RowRange]) -> None:
    leading, rows = drawn
    index = np.arange(prod(leading)).reshape(leading)
    boxes = list(row_boxes(leading, rows))
    assert all(index[box.selection].shape == box.shape for box in boxes)
    assert all(
        index[box.selection].ravel().tolist() == list(range(box.start, box.stop)) for box in boxes
    )
    covered = [row for box in boxes for row in range(box.start, box.stop)]
    assert covered == list(range(rows.start, rows.stop))


def fewest(leading: tuple[int, ...], start: int, stop: int) -> int:
    """Fewest rectangles, found by trying every way: the longest that fits first is best."""
    index = np.arange(prod(leading)).reshape(leading)
    best = {start: 0}
    for here in range(start, stop):
        if here not in best:
            continue
        corner = np.unravel_index(here, leading)
        for shape in np.ndindex(*leading):
            window = tuple(slice(c, c + s + 1) for c, s in zip(corner, shape, strict=True))
            box = index[window]
            size = prod(s + 1 for s in shape)
            # A rectangle holds consecutive rows if its last is as far away as it is large.
            if box.size == size and box.flat[-1] == here + size - 1 < stop:
                best[here + size] = min(best.get(here + size, stop), best[here] + 1)
    return best[stop]


# Breaks when a range costs more selections than it has to.
@given(shapes_and_ranges().filter(lambda drawn: prod(drawn[0]) <= 60))
def test_boxes_are_the_fewest(drawn: tuple[tuple[int, ...], RowRange]) -> None:
    leading, rows = drawn
    count = len(list(row_boxes(leading, rows)))
    assert count == fewest(leading, rows.start, rows.stop)
    assert count <= 2 * len(leading) - 1


# Breaks when an array with more than two axes is flattened in another order than NumPy's.
@given(shapes_and_ranges(), st.integers(1, 3), st.booleans())
def test_reads_like_a_reshaped_array(drawn, n_features: int, fortran: bool) -> None:
    leading, rows = drawn
    array = numbers((*leading, n_features))
    source = open_source(np.asfortranarray(array) if fortran else array)
    expected = array.reshape(-1, n_features)[rows.start : rows.stop]
    assert same_bytes(read(source, rows.start, rows.stop), expected)


def test_rows_for_bytes() -> None:
    assert rows_for_bytes(1000, 300, 50) == 3
    assert rows_for_bytes(1000, 300, 2) == 2
    assert rows_for_bytes(1000, 3000, 50) == 1
