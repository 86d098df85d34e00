"""Rates and shares of time between records, by hand."""

from __future__ import annotations

from typing import Any

import pytest

from streamkm.reports.course import draw_course, draw_stages, intervals, last_attempt


def record(phase: str, elapsed: float, rows: int, **busy: float) -> dict[str, Any]:
    stages = {name: {"busy_s": seconds, "wait_s": seconds / 4} for name, seconds in busy.items()}
    return {
        "phase": phase, "elapsed_s": elapsed, "rows": rows, "rows_per_s": rows / elapsed,
        "stages": stages, "inertia_per_row": 1.0, "shift": 0.1,
    }  # fmt: skip


def test_rates_are_those_between_two_records() -> None:
    first, second = intervals(
        [record("train", 2.0, 200, reading=1.0), record("train", 4.0, 1000, reading=2.5)]
    )
    assert (first.start_s, first.end_s, first.rows_per_s) == (0, 2, 100)
    assert (second.start_s, second.end_s, second.rows_per_s) == (2, 4, 400)
    assert (first.busy, second.busy) == ({"reading": 0.5}, {"reading": 0.75})
    assert second.waited == {"reading": 0.1875}


# Closing counts its rows and seconds anew, but adds to the stages of training.
def test_closing_begins_anew_but_for_the_stages() -> None:
    found = intervals(
        [record("train", 2.0, 200, arithmetic=2.0), record("close", 1.0, 50, arithmetic=2.5)]
    )
    assert found[1].rows_per_s == 50
    assert found[1].busy == {"arithmetic": 0.5}
    assert (found[1].start_s, found[1].end_s) == (2, 3)


# A resumed attempt counts seconds anew and rows on: its own rate says how many it did.
def test_a_resumed_attempt_has_its_own_clock() -> None:
    again = record("train", 1.0, 300, arithmetic=0.5) | {"rows_per_s": 100.0}
    found = intervals([record("train", 2.0, 200, arithmetic=2.0), again])
    assert found[1].rows_per_s == 100
    assert found[1].busy == {"arithmetic": 0.5}


@pytest.mark.parametrize(
    "odd",
    [{"phase": "train"}, record("train", 1.0, 9) | {"stages": {"reading": 3}}, {"phase": "x"}],
)
def test_records_without_times_are_passed_over(odd) -> None:
    assert not intervals([odd])
    assert draw_stages([]) is None


def test_there_is_no_course_without_records() -> None:
    assert draw_course([]) is None
    assert draw_course([record("train", 1.0, 10)]) is not None


# Breaks when a difference of rounding fills the plot, with an axis such as "1e-7+7.19082".
def test_an_inertia_that_does_not_fall_is_flat() -> None:
    records = [
        {"phase": phase, "rows": 100, "inertia_per_row": inertia, "shift": 1.0}
        for phase, inertia in (("train", 7.0000001), ("close", 7.0))
    ]
    figure = draw_course(records)
    assert figure is not None
    figure.canvas.draw()
    low, high = figure.axes[0].get_ylim()
    assert high - low == pytest.approx(0.007, rel=1e-3)
    assert not figure.axes[0].yaxis.get_offset_text().get_text()


def test_the_last_attempt_is_the_one_that_ended_last() -> None:
    ends = [{"phase": "end", "n": 1}, {"phase": "end", "n": 2}]
    assert last_attempt([*ends, {"phase": "train"}]) == ends[1]
    assert last_attempt([]) == {}
