"""Slots to device windows on the CPU, and the stream as a whole."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch

from streamkm.errors import ReadError
from streamkm.sources.base import DTYPES
from streamkm.sources.memory import MemorySource
from streamkm.stream.pipeline import stream
from streamkm.stream.plan import Plan, sample_windows
from streamkm.stream.stages import StageTimes
from streamkm.stream.transfer import as_stored_tensor
from tests.stream.helpers import FakeSource, batches_of, reader_threads, slots_for, within


def streamed(source, plan: Plan, start: int = 0, n_slots: int = 2, n_readers: int = 2):
    """(batch number, its rows as they are stored) of epoch 1 from batch `start` on."""
    slots = slots_for(plan, source, n_slots, n_readers)

    def work():
        with stream(source, plan.windows(1, start), slots, StageTimes()) as windows:
            return [
                (number, window.x_ND[rows].clone())
                for window in windows
                for number, rows in window.batches(start)
            ]

    return within(30, work)


def as_bits(tensor: torch.Tensor) -> np.ndarray:
    raw = tensor.contiguous().view(torch.uint8) if tensor.numel() else tensor
    return raw.numpy()


@pytest.mark.parametrize("dtype", sorted(DTYPES))
def test_rows_arrive_as_they_are_stored(dtype):
    rng = np.random.default_rng(0)
    storage = DTYPES[dtype]
    bits = rng.integers(0, 256, (103, 3 * storage.itemsize), dtype=np.uint8)
    array = bits.view(storage)
    source = MemorySource(array)
    if dtype == "bfloat16":
        source._spec = type(source.spec)(103, 3, dtype, source.spec.block_rows, "bits")
    plan = Plan(n_rows=103, block_rows=10, window_blocks=3, batch_rows=8, seed=4)
    batches = streamed(source, plan)
    expected = [batch for window in plan.windows(1) for batch in batches_of(window)]
    assert [number for number, _ in batches] == list(range(len(expected)))
    for (_, rows), wanted in zip(batches, expected, strict=True):
        np.testing.assert_array_equal(as_bits(rows), array[wanted].view(np.uint8))


def test_bfloat16_bits_are_seen_as_bfloat16_on_the_same_memory():
    values = torch.tensor([[1.0, -2.5], [3.140625, float("inf")]], dtype=torch.bfloat16)
    bits = values.view(torch.uint16).numpy().copy()
    tensor = as_stored_tensor(bits, "bfloat16")
    assert tensor.dtype == torch.bfloat16
    assert torch.equal(tensor, values)
    bits[0, 0] = 0
    assert tensor[0, 0] == 0
    assert as_stored_tensor(bits, "uint16").dtype == torch.uint16


@pytest.mark.parametrize("start", [0, 1, 4, 5, 13, 14])
def test_a_stream_from_a_later_batch_leaves_out_the_batches_before(start):
    source = FakeSource(103)
    plan = Plan(n_rows=103, block_rows=10, window_blocks=3, batch_rows=8, seed=4)
    whole, rest = streamed(source, plan), streamed(source, plan, start)
    assert [number for number, _ in rest] == [number for number, _ in whole[start:]]
    for (_, a), (_, b) in zip(rest, whole[start:], strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(("n_slots", "n_readers"), [(1, 1), (1, 4), (2, 1), (5, 3)])
def test_slots_and_readers_do_not_change_what_arrives(n_slots, n_readers):
    rng = np.random.default_rng(0)
    source = FakeSource(211, on_read=lambda rows: time.sleep(rng.uniform(0, 0.001)))
    plan = Plan(n_rows=211, block_rows=10, window_blocks=2, batch_rows=9, seed=None)
    batches = streamed(source, plan, 0, n_slots, n_readers)
    rows = torch.cat([rows for _, rows in batches])
    assert torch.equal(rows[:, 0], torch.arange(211, dtype=torch.float32))


# On the CPU rows are used where they lie: a slot that is released too early is overwritten.
def test_a_window_stays_as_it_is_until_the_next_is_asked_for():
    source = FakeSource(400)
    plan = Plan(n_rows=400, block_rows=10, window_blocks=2, batch_rows=20, seed=None)
    slots = slots_for(plan, source, 2, 3)

    def work():
        with stream(source, plan.windows(0), slots, StageTimes()) as windows:
            for window in windows:
                time.sleep(0.003)
                first = window.window.reads[0].start
                assert window.x_ND[:, 0].tolist() == list(range(first, first + 20))

    within(30, work)


# A fit uses the same slots for its sample and its epochs, also after one that ended early.
def test_slots_serve_one_stream_after_the_other():
    source = FakeSource(200)
    plan = Plan(n_rows=200, block_rows=10, window_blocks=2, batch_rows=20, seed=None)
    with slots_for(plan, source) as slots:
        with stream(source, plan.windows(0), slots, StageTimes()) as windows:
            next(windows)
        for _ in range(2):
            with stream(source, plan.windows(0), slots, StageTimes()) as windows:
                seen = [row for window in windows for row in window.x_ND[:, 0].int().tolist()]
            assert seen == list(range(200))


def test_samples_pass_through_a_stream():
    source = FakeSource(103)
    plan = Plan(n_rows=103, block_rows=10, window_blocks=3, batch_rows=8, seed=4)
    windows = list(sample_windows(plan, 30, seed=1, n_pieces=5, piece_rows=10))
    drawn = []
    slots = slots_for(plan, source)
    with stream(source, iter(windows), slots, StageTimes()) as on_device:
        for window in on_device:
            drawn += [window.x_ND[rows][:, 0].int().tolist() for _, rows in window.batches()]
    assert drawn == [batch.tolist() for window in windows for batch in batches_of(window)]


@pytest.mark.parametrize("ending", ["break", "error", "read error"])
def test_a_stream_that_ends_early_leaves_no_thread(ending):
    source = FakeSource(1000)
    if ending == "read error":

        def fail(rows):
            if rows.start == 500:
                raise OSError("gone")

        source.on_read = fail
    plan = Plan(n_rows=1000, block_rows=10, window_blocks=2, batch_rows=20, seed=None)
    slots = slots_for(plan, source)

    def work():
        with stream(source, plan.windows(0), slots, StageTimes()) as windows:
            for index, _ in enumerate(windows):
                if ending == "error" and index == 3:
                    raise RuntimeError("of the consumer")
                if ending == "break" and index == 3:
                    break

    if ending == "break":
        within(30, work)
    else:
        with pytest.raises(RuntimeError if ending == "error" else ReadError):
            within(30, work)
    assert not reader_threads()


def test_slots_are_allocated_once_and_let_go_at_the_end():
    plan = Plan(n_rows=200, block_rows=10, window_blocks=2, batch_rows=20, seed=None)
    with slots_for(plan, FakeSource(200), 3) as slots:
        assert len(slots) == 3
        assert [buffer.nbytes for buffer in slots.buffers] == [20 * 2 * 4] * 3
    assert len(slots) == 0


# ---- stages -----------------------------------------------------------------


def test_slow_reading_is_named_the_bottleneck():
    source = FakeSource(200, on_read=lambda rows: time.sleep(0.003))
    assert bottleneck_of(source, work_s=0) == "reading"


def test_slow_arithmetic_is_named_the_bottleneck():
    assert bottleneck_of(FakeSource(200), work_s=0.006) == "arithmetic"


def bottleneck_of(source: FakeSource, work_s: float) -> str:
    plan = Plan(n_rows=200, block_rows=10, window_blocks=2, batch_rows=20, seed=None)
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


def test_the_bottleneck_is_the_stage_that_worked_longest():
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
