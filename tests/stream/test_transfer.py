"""From slots to windows on a device: seen as they are stored, copied while others are used."""

from __future__ import annotations

import pytest
import torch

from streamkm.stream.plan import ReadingPlan
from streamkm.stream.prefetch import prefetch
from streamkm.stream.stages import StageTimes
from streamkm.stream.transfer import _copy_there, as_stored_tensor
from tests.stream.fake_gpu import FakeGpu
from tests.stream.helpers import FakeSource, batches_of, slots_for, within


def test_bfloat16_bits_are_seen_as_bfloat16_on_the_same_memory():
    values = torch.tensor([[1.0, -2.5], [3.140625, float("inf")]], dtype=torch.bfloat16)
    bits = values.view(torch.uint16).numpy().copy()
    tensor = as_stored_tensor(bits, "bfloat16")
    assert tensor.dtype == torch.bfloat16
    assert torch.equal(tensor, values)
    bits[0, 0] = 0
    assert tensor[0, 0] == 0
    assert as_stored_tensor(bits, "uint16").dtype == torch.uint16


# ---- CUDA, its streams and events played by fakes ---------------------------


@pytest.fixture
def gpu() -> FakeGpu:
    return FakeGpu()


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
            on_device = _copy_there(
                logging_release(host_windows), source.spec, slots, times, gpu, None
            )
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
