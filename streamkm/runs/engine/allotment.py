"""Says which of several processes writes which rows of an output.

Rows that lie in one span of the output, such as a chunk, are written by one process. Most spans are
written by who finds their first row, so that only rows at the borders travel. Where spans are so
long that one process would write more than it finds, others take some. Giving spans out in turn
was rejected: all rows but one in N would travel. The allotment is a function of spans and places
alone, so that all processes know it without asking.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

    from streamkm.stream.plan import Place

__all__ = ["Allotment", "Lot"]


class Lot(NamedTuple):
    """Rows that follow each other, and who writes them."""

    start: int
    stop: int
    writer: int
    """Rank of the process."""


class Allotment:
    """Who writes which rows of one output, told place by place.

    Parameters
    ----------
    start_row : int
        The first row that is not written yet.
    n_processes : int
        Processes that find rows.
    span_end : function of a row, optional
        The row after its span. Without it the first process writes all.
    """

    def __init__(
        self, start_row: int, n_processes: int, span_end: Callable[[int], int] | None = None
    ) -> None:
        self._row = self._span_stop = start_row
        self._span_end = span_end
        self._writer = 0
        # Rows that each process has found, less those of the spans that it writes.
        self._owed = [0] * n_processes

    def lots(self, place: Place) -> list[Lot]:
        """The rows of `place` that are not written yet; places come in the order of rows."""
        stop = place.start_row + place.n_rows
        found: list[Lot] = []
        self._owed[place.owner] += max(stop - self._row, 0)
        while self._row < stop:
            if self._span_end is not None and self._row == self._span_stop:
                self._begin_span(self._span_end(self._row), place.owner)
            end = stop if self._span_end is None else min(stop, self._span_stop)
            if found and found[-1].writer == self._writer:
                found[-1] = found[-1]._replace(stop=end)
            else:
                found.append(Lot(self._row, end, self._writer))
            self._row = end
        return found

    def _begin_span(self, stop: int, finder: int) -> None:
        length = stop - self._row
        if self._owed[finder] >= length:
            self._writer = finder
        else:
            self._writer = self._owed.index(max(self._owed))
        self._owed[self._writer] -= length
        self._span_stop = stop
