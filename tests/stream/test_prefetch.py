"""Reader threads: order, bounded memory, errors, and no thread that outlives its stream."""

from __future__ import annotations

import itertools
import threading
import time
from contextlib import closing

import numpy as np
import pytest

from streamkm.errors import NonFiniteError, ReadError
from streamkm.sources.kept import Homes, KeptRows
from streamkm.sources.memory import MemorySource
from streamkm.stream.plan import ReadingPlan
from streamkm.stream.prefetch import prefetch
from streamkm.stream.stages import StageTimes
from tests.stream.helpers import FakeSource, eventually, reader_threads, slots_for, within

SHAPES = [(1, 1), (1, 3), (2, 1), (3, 4)]


def plan_of(source: FakeSource, window_blocks: int = 3, seed: int | None = 5) -> ReadingPlan:
    spec = source.spec
    return ReadingPlan(spec.n_rows, spec.block_rows, window_blocks, batch_rows=7, seed=seed)


def opened(source: FakeSource, plan: ReadingPlan, *, n_slots: int, n_readers: int, times=None):
    """`prefetch` on slots that the plan's windows just fit."""
    slots = slots_for(plan, source, n_slots, n_readers)
    return prefetch(source, plan.windows(0), slots, n_readers, times or StageTimes(n_readers))


def consume(source: FakeSource, plan: ReadingPlan, n_slots: int, n_readers: int) -> list[list[int]]:
    """First feature of each window's rows; each window is released at once."""
    contents = []
    with opened(source, plan, n_slots=n_slots, n_readers=n_readers) as windows:
        for host in windows:
            contents.append(host.rows_ND[:, 0].astype(int).tolist())
            host.release()
    return contents


def in_order_of_reading(plan: ReadingPlan) -> list[list[int]]:
    return [[i for rows in w.reads for i in range(rows.start, rows.stop)] for w in plan.windows(0)]


# ---- order ------------------------------------------------------------------


# Handing windows over as they are finished would break this; so would one slot or one
# reader being too few.
@pytest.mark.parametrize(("n_slots", "n_readers"), SHAPES)
def test_windows_come_in_the_plans_order_however_reads_finish(n_slots, n_readers):
    rng = np.random.default_rng(0)
    source = FakeSource(205, on_read=lambda rows: time.sleep(rng.uniform(0, 0.002)))
    plan = plan_of(source)
    contents = within(30, lambda: consume(source, plan, n_slots, n_readers))
    assert contents == in_order_of_reading(plan)


def test_a_window_whose_first_block_is_last_to_arrive_still_comes_first():
    gate = threading.Event()
    source = FakeSource(60)
    plan = plan_of(source, seed=None, window_blocks=2)

    def hold_the_first(rows):
        if rows.start == 0:
            assert gate.wait(20)

    source.on_read = hold_the_first

    def work():
        with opened(source, plan, n_slots=3, n_readers=3) as windows:
            assert eventually(lambda: len(source.reads) == 6)  # everything else is read
            gate.set()
            firsts = []
            for host in windows:
                firsts.append(host.rows_ND[0, 0])
                host.release()
            return firsts

    assert within(30, work) == [0, 20, 40]


def test_the_order_of_use_comes_with_the_window():
    source = FakeSource(100)
    plan = plan_of(source)
    with opened(source, plan, n_slots=2, n_readers=2) as windows:
        for host, window in zip(windows, plan.windows(0), strict=True):
            assert host.window == window
            np.testing.assert_array_equal(host.order, window.order())
            host.release()


class Together(FakeSource):
    """A source that reads several ranges at once, if it `can`."""

    can = True
    calls = 0

    def read_together(self, reads, out):
        assert len(reads) > 1
        if self.can:
            out[...] = np.concatenate([np.arange(r.start, r.stop) for r in reads])[:, None]
            self.calls += 1
        return self.can


# Breaks when blocks that come by one call are read again, or come to the place of others.
@pytest.mark.parametrize("can", [True, False])
def test_blocks_of_a_task_are_asked_for_together(can):
    source = Together(205)
    source.can = can
    plan = plan_of(source, window_blocks=8)
    assert consume(source, plan, 2, 1) == in_order_of_reading(plan)
    n_calls = [len(window.reads) for window in plan.windows(0)]
    assert (source.calls, len(source.reads)) == ((6, 1) if can else (0, sum(n_calls)))


# Breaks when an error of one of several reads is told as one of the first of them.
@pytest.mark.parametrize("can", [True, False])
def test_an_error_of_a_task_does_not_blame_its_first_rows(can):
    def refuse(_reads, _out):
        raise OSError(5, "Input/output error")

    source = Together(200, on_read=failing_at(130, OSError(5, "Input/output error")))
    source.can = False
    if can:
        source.read_together = refuse  # type: ignore[method-assign]
    plan = plan_of(source, window_blocks=20, seed=None)
    said = r"rows 0:10, or \d+ ranges with it, cannot" if can else r"fake: rows 130:140 cannot"
    with pytest.raises(ReadError, match=said):
        within(30, lambda: consume(source, plan, 1, 1))


# Breaks when rows that stay are copied there beside the slot, or come to another's place; and when
# a later pass reads them again.
def test_rows_that_stay_are_read_where_they_stay():
    source = FakeSource(200)
    plan = plan_of(source, window_blocks=5, seed=None)
    kept = KeptRows(source, Homes(200, 50, 3))  # units 1, 2 and 3 of 4
    slots = slots_for(plan, source, 2, 2)
    windows = itertools.chain(plan.windows(0), plan.windows(1))
    with prefetch(kept, windows, slots, 2, StageTimes(2)) as ahead:
        for number, host in enumerate(ahead):
            assert host.rows_ND[:, 0].tolist() == list(
                range(*(50 * (number % 4 + i) for i in (0, 1)))
            )
            assert host.is_shared == (number % 4 > 0)
            host.release()
    assert len(source.reads) == 20 + 5


# ---- memory -----------------------------------------------------------------


# Reading ahead without a free slot would overwrite rows that are in use, or grow without end.
@pytest.mark.parametrize("n_slots", [1, 2, 4])
def test_never_more_windows_are_read_than_there_are_slots(n_slots):
    source = FakeSource(400)
    plan = plan_of(source, window_blocks=2, seed=None)

    def work():
        with opened(source, plan, n_slots=n_slots, n_readers=3) as windows:
            held = []
            for taken in range(1, plan.n_windows + 1):
                held.append(next(windows))
                if len(held) == n_slots:
                    time.sleep(0.02)
                    assert len(source.reads) <= 2 * (taken - len(held) + n_slots)
                    first = held.pop(0)
                    # Unchanged all the while.
                    assert first.rows_ND[0, 0] == first.window.reads[0].start
                    first.release()

    within(30, work)
    assert len(source.reads) == 40


def test_readers_go_ahead_while_a_window_is_in_use():
    source = FakeSource(400)
    plan = plan_of(source, window_blocks=2, seed=None)

    def work():
        with opened(source, plan, n_slots=3, n_readers=2) as windows:
            next(windows)
            assert eventually(lambda: len(source.reads) == 6)

    within(30, work)


# ---- errors -----------------------------------------------------------------


# Breaks when threads are started, and waited for, to hand over rows that lie in memory; or are not
# where rows must be copied, because they are taken in another order.
@pytest.mark.parametrize(("seed", "n_threads"), [(None, 0), (5, 2)])
def test_rows_that_are_used_where_they_lie_need_no_reader(seed, n_threads):
    source = MemorySource(np.arange(4000.0).reshape(-1, 2))
    plan = ReadingPlan(2000, 100, 3, batch_rows=70, seed=seed)
    slots = slots_for(plan, source, 2, 2)
    with prefetch(source, plan.windows(0), slots, 2, StageTimes(2)) as windows:
        assert len(reader_threads()) == n_threads
        found = []
        for host in windows:
            found += host.rows_ND[:, 0].tolist()
            host.release()
    wanted = [2.0 * row for rows in in_order_of_reading(plan) for row in rows]
    assert found == wanted


def failing_at(start: int, error: Exception):
    def fail(rows):
        if rows.start == start:
            raise error

    return fail


@pytest.mark.parametrize(("n_slots", "n_readers"), SHAPES)
def test_an_error_of_a_reader_reaches_the_consumer_with_file_and_rows(n_slots, n_readers):
    source = FakeSource(200, on_read=failing_at(120, OSError(5, "Input/output error")))
    with pytest.raises(ReadError, match=r"fake: rows 120:130 cannot be read: OSError.*Input"):
        within(30, lambda: consume(source, plan_of(source), n_slots, n_readers))
    assert not reader_threads()


def test_an_error_of_the_sources_own_is_passed_on_as_it_is():
    error = ReadError("fake: chunk c/3 is corrupt")
    source = FakeSource(200, on_read=failing_at(50, error))
    with pytest.raises(ReadError) as caught:
        within(30, lambda: consume(source, plan_of(source), 2, 2))
    assert caught.value is error


def test_an_error_of_the_plan_reaches_the_consumer():
    source = FakeSource(200)
    plan = plan_of(source)

    def windows():
        yield next(plan.windows(0))
        raise RuntimeError("no such window")

    def work():
        with prefetch(source, windows(), slots_for(plan, source), 2, StageTimes(2)) as host_windows:
            for host in host_windows:
                host.release()

    with pytest.raises(RuntimeError, match="no such window"):
        within(30, work)
    assert not reader_threads()


# ---- endings ----------------------------------------------------------------


@pytest.mark.parametrize(("n_slots", "n_readers"), SHAPES)
def test_no_thread_is_left_after_the_end(n_slots, n_readers):
    source = FakeSource(200)
    within(30, lambda: consume(source, plan_of(source), n_slots, n_readers))
    assert not reader_threads()


@pytest.mark.parametrize(("n_slots", "n_readers"), SHAPES)
def test_no_thread_is_left_after_an_early_break(n_slots, n_readers):
    source = FakeSource(2000, on_read=lambda rows: time.sleep(0.001))

    def work():
        with opened(source, plan_of(source), n_slots=n_slots, n_readers=n_readers) as windows:
            for _ in windows:
                break

    within(30, work)
    assert not reader_threads()
    assert len(source.reads) < 100  # it did not read to the end first


@pytest.mark.parametrize(("n_slots", "n_readers"), SHAPES)
def test_no_thread_is_left_after_an_error_of_the_consumer(n_slots, n_readers):
    source = FakeSource(2000, on_read=lambda rows: time.sleep(0.001))

    def work():
        with opened(source, plan_of(source), n_slots=n_slots, n_readers=n_readers) as windows:
            for host in windows:
                raise NonFiniteError(str(host.window.first_batch))

    with pytest.raises(NonFiniteError):
        within(30, work)
    assert not reader_threads()


def test_no_thread_is_left_when_a_generator_that_streams_is_closed():
    source = FakeSource(2000)
    plan = plan_of(source)

    def rows():
        with opened(source, plan, n_slots=2, n_readers=3) as windows:
            for host in windows:
                yield host.rows_ND
                host.release()

    def work():
        with closing(rows()) as generator:
            next(generator)
            assert reader_threads()

    within(30, work)
    assert not reader_threads()


def test_no_thread_is_left_if_nothing_is_ever_asked_for():
    source = FakeSource(2000)

    def work():
        with opened(source, plan_of(source), n_slots=2, n_readers=3):
            pass

    within(30, work)
    assert not reader_threads()


def test_an_epoch_without_windows_ends_at_once():
    source = FakeSource(20)

    def work():
        slots = slots_for(plan_of(source), source)
        with prefetch(source, iter(()), slots, 2, StageTimes(2)) as windows:
            return list(windows)

    assert within(30, work) == []


# ---- times ------------------------------------------------------------------


# Times that count a thread's work in full, or twice, would name the wrong bottleneck.
@pytest.mark.parametrize("n_readers", [1, 4])
def test_readers_times_add_up_to_no_more_than_the_clock(n_readers):
    delay = 0.004
    source = FakeSource(400, on_read=lambda rows: time.sleep(delay))
    times = StageTimes(n_readers)
    plan = plan_of(source)

    def work():
        with opened(source, plan, n_slots=3, n_readers=n_readers, times=times) as windows:
            for host in windows:
                host.release()
            return times.elapsed_s

    elapsed = within(30, work)
    assert times.busy_s["reading"] >= 40 * delay / n_readers
    assert times.busy_s["reading"] + times.wait_s["reading"] <= elapsed * 1.01 + 0.001
    # Readers either work or wait: nothing of their time is lost, but for starting them.
    assert times.busy_s["reading"] + times.wait_s["reading"] >= elapsed * 0.5
    assert times.bytes_read == source.spec.nbytes
