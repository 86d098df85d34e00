"""Who of several processes writes which rows."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamkm.runs.engine.allotment import Allotment, Lot
from streamkm.stream.plan import Place, ReadingPlan


def places(n_rows: int, batch_rows: int, n_processes: int) -> list[Place]:
    """Batches of one block each, which the processes take in turn."""
    plan = ReadingPlan(n_rows, batch_rows, 4, batch_rows, seed=None)
    return list(plan.places(n_processes=n_processes))


def spans_of(rows: int, n_rows: int):
    return lambda row: min((row // rows + 1) * rows, n_rows)


def lots(n_rows: int, batch_rows: int, n_processes: int, span: int, start: int = 0) -> list[Lot]:
    allotment = Allotment(start, n_processes, spans_of(span, n_rows))
    return [
        lot for place in places(n_rows, batch_rows, n_processes) for lot in allotment.lots(place)
    ]


# Breaks when a row is written twice or not at all, or a span by two processes.
@given(st.integers(1, 300), st.integers(1, 40), st.integers(1, 5), st.integers(1, 90), st.data())
def test_each_row_has_one_writer_and_each_span_too(n_rows, batch_rows, n, span, data):
    start = data.draw(st.integers(0, n_rows))
    found = lots(n_rows, batch_rows, n, span, start)
    rows = [(row, lot.writer) for lot in found for row in range(lot.start, lot.stop)]
    assert [row for row, _ in rows] == list(range(start, n_rows))
    writers: dict[int, set[int]] = {}
    for row, writer in rows:
        writers.setdefault(row // span, set()).add(writer)
    assert all(len(each) == 1 for each in writers.values())


# Breaks when more rows than those at borders travel.
def test_short_spans_are_written_by_who_finds_them():
    found = lots(1000, batch_rows=100, n_processes=2, span=30)
    assert found[:4] == [Lot(0, 100, 0), Lot(100, 120, 0), Lot(120, 200, 1), Lot(200, 210, 1)]


# Breaks when one process writes all, because its batches are at the beginnings of the chunks.
@pytest.mark.parametrize("span", [100, 200, 300, 400, 800])
@pytest.mark.parametrize("n_processes", [2, 3, 4])
def test_long_spans_are_divided_evenly(span, n_processes):
    found = lots(24_000, batch_rows=100, n_processes=n_processes, span=span)
    written = [
        sum(lot.stop - lot.start for lot in found if lot.writer == rank)
        for rank in range(n_processes)
    ]
    assert max(written) - min(written) <= span


# Breaks when a Parquet table, which one process writes, is given to several.
def test_what_has_no_spans_is_written_by_the_first():
    allotment = Allotment(150, 3)
    found = [allotment.lots(place) for place in places(500, 100, 3)]
    assert found == [
        [], [Lot(150, 200, 0)], [Lot(200, 300, 0)], [Lot(300, 400, 0)], [Lot(400, 500, 0)],
    ]  # fmt: skip
