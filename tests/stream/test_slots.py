"""Slots: allocated once, for one stream after the other."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch

from streamkm.stream.pipeline import open_slots, stream
from streamkm.stream.plan import ReadingPlan
from streamkm.stream.slots import HostSlots, StreamMemory
from streamkm.stream.stages import StageTimes
from streamkm.stream.tensor_source import TensorSource
from tests.stream.helpers import FakeSource, slots_for


def test_slots_are_allocated_once_and_let_go_at_the_end():
    plan = ReadingPlan(n_rows=200, block_rows=10, window_blocks=2, batch_rows=20, seed=None)
    with slots_for(plan, FakeSource(200), 3) as slots:
        assert len(slots) == 3
        assert [buffer.nbytes for buffer in slots.buffers] == [20 * 2 * 4] * 3
    assert len(slots) == 0


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


# Breaks when rows of a file cannot be read into slots without a copy, or slots share a page.
@pytest.mark.parametrize(("first_byte", "skip"), [(0, 0), (128, 128), (4096 + 192, 192), (8, 0)])
def test_slots_begin_as_far_into_a_page_as_rows_in_their_file(first_byte, skip):
    slots = HostSlots(StreamMemory(3, 10, 4000, 1), torch.device("cpu"), first_byte=first_byte)
    at = [buffer.ctypes.data for buffer in slots.buffers]
    assert [address % 4096 for address in at] == [skip] * 3
    assert len({(address + n) // 4096 for address in at for n in (0, 3999)}) in (3, 6)


# Breaks when slots that no row is read into are page-locked: that touches every page of them.
def test_slots_of_rows_on_the_device_are_not_page_locked(monkeypatch):
    pinned: list[HostSlots] = []
    monkeypatch.setattr(HostSlots, "_pin", lambda slots: pinned.append(slots))  # a method
    memory, gpu = StreamMemory(3, 10, 80, 1), torch.device("cuda", 0)
    there = TensorSource(torch.zeros((10, 2)))
    with open_slots(there, memory, gpu):  # the tensor is on the CPU
        assert len(pinned) == 1
    monkeypatch.setattr("streamkm.stream.pipeline.tensor_on", lambda source, device: source.tensor)
    with open_slots(there, memory, gpu):
        assert len(pinned) == 1
