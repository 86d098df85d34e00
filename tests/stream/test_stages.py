"""The bottleneck of a stream is its busiest stage."""

from __future__ import annotations

import time

from streamkm.stream import stages
from streamkm.stream.pipeline import stream
from streamkm.stream.plan import ReadingPlan
from streamkm.stream.stages import StageTimes
from tests.stream.helpers import FakeSource, slots_for, within


def test_slow_reading_is_named_the_bottleneck():
    source = FakeSource(200, on_read=lambda rows: time.sleep(0.003))
    assert bottleneck_of(source, work_s=0) == "reading"


def test_slow_arithmetic_is_named_the_bottleneck():
    assert bottleneck_of(FakeSource(200), work_s=0.006) == "arithmetic"


def bottleneck_of(source: FakeSource, work_s: float) -> str:
    plan = ReadingPlan(n_rows=200, block_rows=10, window_blocks=2, batch_rows=20, seed=None)
    times = StageTimes()
    slots = slots_for(plan, source, 3, 1)

    def work():
        with stream(source, plan.windows(0), slots, times) as windows:
            for _ in windows:
                time.sleep(work_s)
        return times.elapsed_s

    elapsed = within(30, work)
    for stage in ("reading", "arithmetic"):
        assert times.busy_s[stage] + times.wait_s[stage] <= elapsed * 1.01 + 0.001
    assert f"bottleneck: {times.bottleneck()}" in times.summary()
    return times.bottleneck()


def test_the_bottleneck_is_the_stage_that_worked_longest(monkeypatch):
    monkeypatch.setattr(stages, "TOO_SHORT_S", 0)
    times = StageTimes()
    assert times.bottleneck() == "arithmetic"  # nothing has happened yet
    times.add("reading", busy=1.0, wait=0.0, n_bytes=100)
    assert times.bottleneck() == "reading"
    times.add("arithmetic", busy=6.0, wait=0.5)
    assert times.bottleneck() == "arithmetic"  # reading waited less, in a run of one window
    times.add("copying", busy=7.0, wait=0.1)
    assert times.bottleneck() == "copying"
    assert times.as_dict()["reading"] == {"busy_s": 1.0, "wait_s": 0.0}
    assert "copying worked 7.00 s and waited 0.10 s" in times.summary()


def test_work_in_hand_counts():
    times = StageTimes()
    with times.working("arithmetic"):
        time.sleep(0.02)
        assert times.as_dict()["arithmetic"]["busy_s"] >= 0.02
    assert times.busy("arithmetic") == times.busy_s["arithmetic"]


def test_a_reader_thread_counts_by_its_share():
    times = StageTimes(n_readers=4)
    for _ in range(4):
        times.add("reading", busy=2.0, wait=1.0, n_bytes=10)
    times.add("arithmetic", busy=2.0)
    assert times.busy_s == {"reading": 2.0, "copying": 0.0, "arithmetic": 2.0}
    assert times.wait_s["reading"] == 1.0
    assert times.bytes_read == 40
