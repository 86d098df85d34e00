"""Divides what is left to do among processes: ranges of rows, or of places."""

from __future__ import annotations

from typing import TYPE_CHECKING

from streamkm.sources.base import RowRange

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["joined", "left_of", "share_of"]


def joined(ranges: Iterable[RowRange]) -> list[RowRange]:
    """The same numbers in as few ranges as can be, ascending; none is in two of `ranges`."""
    found: list[RowRange] = []
    for each in sorted(filter(len, ranges), key=lambda each: each.start):
        if found and found[-1].stop == each.start:
            found[-1] = RowRange(found[-1].start, each.stop)
        else:
            found.append(each)
    return found


def left_of(n: int, done: Iterable[RowRange]) -> list[RowRange]:
    """The numbers from 0 to `n` that are not `done`."""
    ranges = joined(done)
    starts = [0, *(each.stop for each in ranges)]
    stops = [*(each.start for each in ranges), n]
    return [RowRange(*ends) for ends in zip(starts, stops, strict=True) if ends[0] < ends[1]]


def share_of(ranges: list[RowRange], rank: int, size: int, align: int = 1) -> list[RowRange]:
    """What process `rank` of `size` does of `ranges`: about as much as each other, in one piece.

    They are cut at multiples of `align`, and where they are cut anyway.
    """
    total = sum(map(len, ranges))
    first, last = (_number_at(ranges, total * each // size, align) for each in (rank, rank + 1))
    cut = [(max(each.start, first), min(each.stop, last)) for each in ranges]
    return [RowRange(*ends) for ends in cut if ends[0] < ends[1]]


def _number_at(ranges: list[RowRange], count: int, align: int) -> int:
    """A number in `ranges` before which about `count` are, or the end of the last range."""
    for each in ranges:
        if count < len(each):
            # A multiple of `align`, unless it is of another range.
            return max(each.start, (each.start + count) // align * align)
        count -= len(each)
    return ranges[-1].stop if ranges else 0
