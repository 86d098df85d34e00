"""The stream as a whole, from a plan to windows on the CPU."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch

from streamkm.errors import ReadError
from streamkm.sources.base import DTYPES
from streamkm.sources.memory import MemorySource
from streamkm.sources.weights import open_weights
from streamkm.stream.pipeline import stream
from streamkm.stream.plan import ReadingPlan
from streamkm.stream.sample_plan import sample_windows
from streamkm.stream.stages import StageTimes
from tests.stream.helpers import FakeSource, batches_of, reader_threads, slots_for, within


def streamed(source, plan: ReadingPlan, start: int = 0, n_slots: int = 2, n_readers: int = 2):
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
    plan = ReadingPlan(n_rows=103, block_rows=10, window_blocks=3, batch_rows=8, seed=4)
    batches = streamed(source, plan)
    expected = [batch for window in plan.windows(1) for batch in batches_of(window)]
    assert [number for number, _ in batches] == list(range(len(expected)))
    for (_, rows), wanted in zip(batches, expected, strict=True):
        np.testing.assert_array_equal(as_bits(rows), array[wanted].view(np.uint8))


# Breaks when weights come to other rows than theirs, or lie where rows of an odd number of
# bytes end.
@pytest.mark.parametrize("seed", [None, 4])
@pytest.mark.parametrize(("dtype", "n_features"), [("uint8", 3), ("float16", 5), ("float64", 2)])
def test_weights_arrive_with_their_rows(dtype, n_features, seed):
    rows = np.arange(103 * n_features).reshape(103, n_features).astype(dtype)
    source, weights = MemorySource(rows), open_weights(np.arange(103) / 7, 103)
    plan = ReadingPlan(n_rows=103, block_rows=10, window_blocks=3, batch_rows=8, seed=seed)
    slots = slots_for(plan, source, weighted=True)
    seen = 0
    with stream(source, plan.windows(1), slots, StageTimes(), weights) as windows:
        for window in windows:
            assert window.weights_N is not None
            for (_, places), expected in zip(
                window.batches(), batches_of(window.window), strict=True
            ):
                np.testing.assert_array_equal(window.weights_N[places], expected / 7)
                np.testing.assert_array_equal(window.x_ND[places], rows[expected])
                seen += len(expected)
    assert seen == 103
    with stream(source, plan.windows(1), slots_for(plan, source), StageTimes()) as windows:
        assert all(window.weights_N is None for window in windows)


def test_weights_that_cannot_be_read_any_more_are_named():
    weights = open_weights(np.ones(60), 60)
    weights.close()
    source = FakeSource(60)
    plan = ReadingPlan(n_rows=60, block_rows=10, window_blocks=3, batch_rows=8, seed=None)
    slots = slots_for(plan, source, weighted=True)
    with (
        pytest.raises(ReadError, match="sample weights"),
        stream(source, plan.windows(0), slots, StageTimes(), weights) as windows,
    ):
        list(windows)


@pytest.mark.parametrize("start", [0, 1, 4, 5, 13, 14])
def test_a_stream_from_a_later_batch_leaves_out_the_batches_before(start):
    source = FakeSource(103)
    plan = ReadingPlan(n_rows=103, block_rows=10, window_blocks=3, batch_rows=8, seed=4)
    whole, rest = streamed(source, plan), streamed(source, plan, start)
    assert [number for number, _ in rest] == [number for number, _ in whole[start:]]
    for (_, a), (_, b) in zip(rest, whole[start:], strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(("n_slots", "n_readers"), [(1, 1), (1, 4), (2, 1), (5, 3)])
def test_slots_and_readers_do_not_change_what_arrives(n_slots, n_readers):
    rng = np.random.default_rng(0)
    source = FakeSource(211, on_read=lambda rows: time.sleep(rng.uniform(0, 0.001)))
    plan = ReadingPlan(n_rows=211, block_rows=10, window_blocks=2, batch_rows=9, seed=None)
    batches = streamed(source, plan, 0, n_slots, n_readers)
    rows = torch.cat([rows for _, rows in batches])
    assert torch.equal(rows[:, 0], torch.arange(211, dtype=torch.float32))


# On the CPU rows are used where they lie: a slot that is released too early is overwritten.
def test_a_window_stays_as_it_is_until_the_next_is_asked_for():
    source = FakeSource(400)
    plan = ReadingPlan(n_rows=400, block_rows=10, window_blocks=2, batch_rows=20, seed=None)
    slots = slots_for(plan, source, 2, 3)

    def work():
        with stream(source, plan.windows(0), slots, StageTimes()) as windows:
            for window in windows:
                time.sleep(0.003)
                first = window.window.reads[0].start
                assert window.x_ND[:, 0].tolist() == list(range(first, first + 20))

    within(30, work)


# Breaks when rows in memory are copied though they follow one another, or not though they do not.
@pytest.mark.parametrize("seed", [None, 3])
def test_rows_in_memory_are_used_where_they_lie(seed):
    array = np.arange(211 * 3, dtype=np.float32).reshape(211, 3)
    source = MemorySource(array)
    plan = ReadingPlan(n_rows=211, block_rows=10, window_blocks=3, batch_rows=7, seed=seed)

    def work():
        slots, found = slots_for(plan, source, 2, 1), []
        with stream(source, plan.windows(0), slots, StageTimes()) as windows:
            for window in windows:
                is_shared = window.window.one_read is not None
                assert window.is_shared == is_shared
                assert np.shares_memory(window.x_ND.numpy(), array) == is_shared
                found += [window.taken(rows).clone() for _, rows in window.batches()]
        return torch.cat(found)[:, 0].sort().values

    assert torch.equal(within(30, work), torch.from_numpy(array[:, 0]))


def test_samples_pass_through_a_stream():
    source = FakeSource(103)
    plan = ReadingPlan(n_rows=103, block_rows=10, window_blocks=3, batch_rows=8, seed=4)
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
    plan = ReadingPlan(n_rows=1000, block_rows=10, window_blocks=2, batch_rows=20, seed=None)
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
