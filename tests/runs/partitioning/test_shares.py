"""What is left is divided among processes, without a gap or an overlap."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from streamkm.runs.partitioning.shares import joined, left_of, share_of
from streamkm.sources import RowRange


def numbers(ranges: list[RowRange]) -> list[int]:
    return [number for each in ranges for number in range(each.start, each.stop)]


# Breaks when a row is left to nobody, or to two; or when a process gets all.
@given(st.sets(st.integers(0, 59)), st.integers(1, 5), st.integers(1, 9), st.integers(60, 70))
def test_each_number_is_done_once(done, size, align, n) -> None:
    ranges = [RowRange(each, each + 1) for each in done]
    assert numbers(joined(ranges)) == sorted(done)
    left = left_of(n, ranges)
    assert numbers(left) == [each for each in range(n) if each not in done]
    shares = [share_of(left, rank, size, align) for rank in range(size)]
    assert [number for share in shares for number in numbers(share)] == numbers(left)
    fair = (n - len(done)) / size
    assert max(len(numbers(share)) for share in shares) <= fair + align
    cuts = [share[0].start for share in shares[1:] if share]
    starts = {each.start for each in left}
    assert all(cut % align == 0 or cut in starts for cut in cuts)


def test_ranges_by_hand() -> None:
    left = left_of(100, [RowRange(50, 60), RowRange(0, 10), RowRange(60, 70)])
    assert left == [RowRange(10, 50), RowRange(70, 100)]
    assert share_of(left, 0, 2, 8) == [RowRange(10, 40)]
    assert share_of(left, 1, 2, 8) == [RowRange(40, 50), RowRange(70, 100)]
    assert share_of([], 0, 2) == []
