"""Slots to device windows on the CPU, and the stream as a whole."""

from __future__ import annotations

import time
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch

from streamkm.errors import ReadError
from streamkm.sources.base import DTYPES
from streamkm.sources.memory import MemorySource
from streamkm.sources.weights import open_weights
from streamkm.stream.pipeline import stream
from streamkm.stream.plan import ReadingPlan, sample_windows
from streamkm.stream.prefetch import prefetch
from streamkm.stream.slots import HostSlots, StreamMemory
from streamkm.stream.stages import StageTimes
from streamkm.stream.transfer import _copy_to_cuda, as_stored_tensor
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


# A fit uses the same slots for its sample and its epochs, also after one that ended early.
def test_slots_serve_one_stream_after_the_other():
    source = FakeSource(200)
    plan = ReadingPlan(n_rows=200, block_rows=10, window_blocks=2, batch_rows=20, seed=None)
    with slots_for(plan, source) as slots:
        with stream(source, plan.windows(0), slots, StageTimes()) as windows:
            next(windows)
        for _ in range(2):
            with stream(source, plan.windows(0), slots, StageTimes()) as windows:
                seen = [row for window in windows for row in window.x_ND[:, 0].int().tolist()]
            assert seen == list(range(200))


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


def test_slots_are_allocated_once_and_let_go_at_the_end():
    plan = ReadingPlan(n_rows=200, block_rows=10, window_blocks=2, batch_rows=20, seed=None)
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


# ---- CUDA, its streams and events played by fakes ---------------------------


class FakeGpu:
    """What is queued on every stream, in the order in which the host queues it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.log: list[tuple[Any, ...]] = []
        self.copy, self.compute = FakeStream(self, "copy"), FakeStream(self, "compute")
        fakes = {
            "current_stream": lambda device: self.compute,
            "Stream": lambda device: self.copy,
            "Event": lambda enable_timing=False: FakeEvent(self, is_clock=enable_timing),
            "stream": lambda stream: nullcontext(),
        }
        for name, fake in fakes.items():
            monkeypatch.setattr(torch.cuda, name, fake)
        monkeypatch.setattr(
            "streamkm.stream.transfer._pinned", lambda n, dtype: torch.empty(n, dtype=dtype)
        )

    def position(self, *entry) -> int:
        return self.log.index(entry)


class FakeStream:
    def __init__(self, gpu: FakeGpu, name: str) -> None:
        self.gpu, self.name = gpu, name

    def wait_event(self, event: FakeEvent) -> None:
        self.gpu.log.append(("wait", self.name, event, event.n_records))

    def wait_stream(self, other: FakeStream) -> None:
        self.gpu.log.append(("wait stream", self.name, other.name))

    def synchronize(self) -> None:
        self.gpu.log.append(("host waits", self.name))


class FakeEvent:
    def __init__(self, gpu: FakeGpu, *, is_clock: bool) -> None:
        self.gpu, self.is_clock, self.n_records = gpu, is_clock, 0

    def record(self, stream: FakeStream) -> None:
        self.n_records += 1
        if not self.is_clock:
            self.gpu.log.append(("record", stream.name, self, self.n_records))

    def synchronize(self) -> None:
        self.gpu.log.append(("host waits", self, self.n_records))

    def query(self) -> bool:
        return True

    def elapsed_time(self, other: FakeEvent) -> float:
        return 0.0


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeGpu:
    return FakeGpu(monkeypatch)


def on_fake_gpu(gpu: FakeGpu, n_slots: int, seed: int | None = 4) -> list[list[int]]:
    """The rows of every batch; the log tells when windows were used and slots released."""
    source = FakeSource(100)
    plan = ReadingPlan(n_rows=100, block_rows=10, window_blocks=2, batch_rows=7, seed=seed)
    slots = slots_for(plan, source, n_slots, 2)
    times = StageTimes()

    def logging_release(host_windows):
        for i, host in enumerate(host_windows):

            def logged(i=i, release=host.release):
                gpu.log.append(("release", i))
                release()

            host.release = logged
            gpu.log.append(("read", i))
            yield host

    def work():
        batches = []
        windows = plan.windows(0)
        with prefetch(source, windows, slots, 2, times) as host_windows:
            on_device = _copy_to_cuda(logging_release(host_windows), source.spec, slots, times)
            for i, window in enumerate(on_device):
                gpu.log.append(("use", i))
                batches += [window.x_ND[rows][:, 0].int().tolist() for _, rows in window.batches()]
        return batches

    return within(30, work)


@pytest.mark.parametrize("seed", [4, None])
@pytest.mark.parametrize("n_slots", [1, 2, 3, 5])
def test_cuda_windows_arrive_in_order_whatever_the_slots(gpu, n_slots, seed):
    """Breaks when a slot is filled again before it was used, or a window is lost at the end."""
    plan = ReadingPlan(n_rows=100, block_rows=10, window_blocks=2, batch_rows=7, seed=seed)
    expected = [batch.tolist() for window in plan.windows(0) for batch in batches_of(window)]
    assert on_fake_gpu(gpu, n_slots, seed) == expected


@pytest.mark.parametrize("n_slots", [1, 2, 3, 5])
def test_a_copy_is_queued_before_the_window_ahead_of_it_is_used(gpu, n_slots):
    """Breaks when copies wait until the host has queued all arithmetic of the window before."""
    on_fake_gpu(gpu, n_slots)
    copies = [i for i, entry in enumerate(gpu.log) if entry[:2] == ("record", "copy")]
    assert len(copies) == 5
    for i in range(4):
        assert copies[i + 1] < gpu.position("use", i)


@pytest.mark.parametrize("n_slots", [1, 3])
def test_streams_wait_for_each_other_both_ways(gpu, n_slots):
    """Breaks when a window is used before its copy, or overwritten while it is used."""
    on_fake_gpu(gpu, n_slots)
    log = gpu.log
    assert log[0] == ("wait stream", "copy", "compute")
    records = [entry for entry in log if entry[:2] == ("record", "copy")]
    for i, (_, _, copied, generation) in enumerate(records):
        waits = gpu.position("wait", "compute", copied, generation)
        assert gpu.position("record", "copy", copied, generation) < waits
        assert waits < gpu.position("use", i)
    freed = [entry for entry in log if entry[:2] == ("record", "compute")]
    for i, (_, _, event, generation) in enumerate(freed[:-2]):
        # The slot's next copy, two windows on, waits for this use of it.
        assert gpu.position("use", i) < gpu.position("record", "compute", event, generation)
        waits = gpu.position("wait", "copy", event, generation)
        assert waits < gpu.position(*records[i + 2])


@pytest.mark.parametrize("n_slots", [1, 2, 3, 5])
def test_a_host_slot_is_released_only_after_its_copy(gpu, n_slots):
    """Breaks when readers overwrite rows that are still being copied."""
    on_fake_gpu(gpu, n_slots)
    records = [entry for entry in gpu.log if entry[:2] == ("record", "copy")]
    released = [entry[1] for entry in gpu.log if entry[0] == "release"]
    assert released == list(range(len(released)))
    assert len(released) >= 5 - n_slots
    for i in released:
        _, _, copied, generation = records[i]
        waited = [
            at
            for at, entry in enumerate(gpu.log)
            if entry[0] == "host waits" and entry[1] is copied and entry[2] >= generation
        ]
        assert min(waited) < gpu.position("release", i)
    assert gpu.log[-1] == ("host waits", "copy")


def test_a_registration_that_fails_leaves_no_error_behind(monkeypatch, caplog):
    """Breaks when the failure is blamed on the next launch, or what was pinned stays pinned."""
    calls = []

    class Runtime:
        def cudaHostRegister(self, address: int, n_bytes: int, flags: int) -> int:  # noqa: N802
            calls.append("register")
            return 0 if calls.count("register") == 1 else 2

        def cudaHostUnregister(self, address: int) -> int:  # noqa: N802
            calls.append("unregister")
            return 0

    def launch(n: int, *, device: torch.device) -> None:
        calls.append("launch")
        raise RuntimeError("CUDA error: out of memory, of the registration")

    monkeypatch.setattr(torch.cuda, "cudart", Runtime)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(torch, "ones", launch)
    slots = HostSlots(StreamMemory(3, 10, 80, 1), torch.device("cuda"))
    with slots:
        assert calls == ["register", "register", "launch"]
    assert calls[3:] == ["unregister"]
    assert "page-locking 80 bytes of host memory failed" in caplog.text
