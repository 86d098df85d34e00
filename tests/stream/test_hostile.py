"""Whole runs on a device that is as late as it may be: the bits of one that does all at once.

``HOSTILE_SEEDS=100`` tries as many orders of work in place of a few.
"""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from streamkm.errors import ReadError
from streamkm.sources import flat
from streamkm.sources.weights import open_weights
from streamkm.stream import plan
from streamkm.stream.plan import ReadingPlan
from streamkm.stream.prefetch import prefetch
from streamkm.stream.slots import HostSlots
from streamkm.stream.stages import StageTimes
from streamkm.stream.transfer import to_device
from tests.runs.helpers import Job, clusters, every, label, predicted, short_batches
from tests.stream.helpers import FakeSource, slots_for, within
from tests.stream.hostile import HOSTILE, HangError, HostileQueue, LostError, hostile_device

if TYPE_CHECKING:
    from pathlib import Path

    from streamkm.sources import RowRange

N_SEEDS = int(os.environ.get("HOSTILE_SEEDS", "0"))


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def sums_of_batches(
    monkeypatch: pytest.MonkeyPatch, seed: int | None, n_slots: int, order: int | None,
    source: FakeSource | None = None, **device: bool,
) -> list[list[float]]:  # fmt: skip
    """Of each batch the sums of its rows and of its weights, as the device finds them."""
    source = source or FakeSource(120, n_features=3)
    reading = ReadingPlan(n_rows=120, block_rows=5, window_blocks=3, batch_rows=6, seed=order)
    memory = slots_for(reading, source, n_slots, 2, weighted=True).memory

    weights = open_weights(np.arange(120) / 8, 120)
    found = []
    with hostile_device(monkeypatch, seed, **device), HostSlots(memory, HOSTILE) as slots:
        times, windows = StageTimes(), reading.windows(0)
        with prefetch(source, windows, slots, 2, times, weights) as ahead:
            for window in to_device(ahead, source.spec, slots, times):
                for _, rows in window.batches():
                    assert window.weights_N is not None
                    found += [window.taken(rows).sum(dim=0), window.weights_N[rows].sum()]
        return [each.tolist() for each in found]


# Breaks when a slot is filled before its rows were used, or used, or given back, before it is full.
@pytest.mark.parametrize("order", [None, 4])
def test_windows_arrive_whole_however_late(monkeypatch: pytest.MonkeyPatch, order) -> None:
    expected = sums_of_batches(monkeypatch, None, 3, order)
    assert np.isfinite(np.hstack(expected)).all()
    for seed in range(N_SEEDS or 8):
        sums = partial(sums_of_batches, monkeypatch, seed, 1 + seed % 4, order)
        assert within(60, partial(sums, threaded=seed % 4 == 3)) == expected, seed


# Breaks when the device is not hostile enough to show what a program forgets.
@pytest.mark.parametrize("forgotten", ["wait_event", "wait_stream"])
def test_what_a_queue_forgets_to_wait_for_shows(
    monkeypatch: pytest.MonkeyPatch, forgotten: str
) -> None:
    expected = sums_of_batches(monkeypatch, None, 3, None)
    monkeypatch.setattr(HostileQueue, forgotten, lambda self, other: None)
    assert any(sums_of_batches(monkeypatch, seed, 3, None) != expected for seed in range(30))


def test_a_wait_that_never_ends_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with hostile_device(monkeypatch, 0) as device:
        device.laziness, one, other = 1.0, device.new(), device.new()
        first, second = device.event(), device.event()
        first.record(other)
        one.wait_event(first)
        device.queues.remove(other)  # It does no more work.
        second.record(one)
        with pytest.raises(HangError):
            second.synchronize()
        device.queues.remove(one)


def job_in(folder: Path, dtype: str = "float32", **settings: object) -> Job:
    folder.mkdir()
    rows = clusters(300, 6)
    if dtype == "uint8":
        rows = (rows * 9 + 99).clip(0, 250)
    np.save(folder / "x.npy", rows.astype(dtype))
    np.save(folder / "w.npy", np.arange(300) % 5 / 2)
    asked = {"k": 5, "batch_rows": 60, "seed": 3, "init": "random", **settings}
    return Job(folder / "x.npy", folder / "run", asked)


def carried_out(
    folder: Path, monkeypatch: pytest.MonkeyPatch, job: Job, seed: int | None, **device: bool
) -> list[object]:
    """What a fit and a predict leave that were both stopped and resumed; the device is lost once.

    Without a seed nothing is late, and nothing stops them: the same operations, one by one. (A fit
    that is asked for on the CPU does others, whose last bits differ.)
    """
    outputs = folder / "l.npy", folder / "d.npy"
    if seed is None:
        with hostile_device(monkeypatch, None):
            job.attempt(kernel="reference")
            label(job.run, job.source, outputs[0], distances=outputs[1], kernel="reference")
        on_cpu = predicted(job.run, job.source, folder / "cpu.npy", kernel="reference")
        assert np.array_equal(np.load(outputs[0]), on_cpu)
    else:
        with hostile_device(monkeypatch, seed, **device):
            assert job.interrupted(5, kernel="reference", checkpoint_every=every(2))
        with (
            hostile_device(monkeypatch, seed, **device, n_done=60 + 7 * seed),
            pytest.raises(LostError),
        ):
            job.attempt(kernel="reference", checkpoint_every=every(1))
        with hostile_device(monkeypatch, seed, **device):
            job.attempt(kernel="reference")
            label(job.run, job.source, outputs[0], [2], distances=outputs[1], kernel="reference")
    return [job.results, *(path.read_bytes() for path in outputs)]


# Breaks when anything depends on when the device does its work: windows, sums, checkpoints, labels.
@pytest.mark.parametrize(
    ("seeds", "dtype", "weighted", "settings"),
    [
        ([0, 1], "float32", False, {"epochs": 1}),
        ([2], "uint8", True, {"epochs": 1, "scale": "zscore", "nan": "drop"}),
        ([3], "float32", False, {"algorithm": "lloyd", "epochs": 1, "metric": "cosine"}),
    ],
    ids=["", "scaled", "lloyd"],
)
def test_a_run_ends_with_the_same_bits_however_late(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seeds, dtype, weighted, settings
) -> None:
    monkeypatch.setattr(flat, "BLOCK_BYTES", 480)
    monkeypatch.setattr(plan, "WINDOW_BYTES", 2000)
    short_batches(monkeypatch, 60)
    found = []
    for seed in (None, *(range(N_SEEDS) or seeds)):
        folder = tmp_path / str(seed)
        job = job_in(folder, dtype, **settings)
        job = replace(job, weights=folder / "w.npy") if weighted else job
        carry_out = partial(carried_out, folder, monkeypatch, job, seed)
        threaded = {} if seed is None else {"threaded": seed % 2 == 1}
        found.append(within(120, partial(carry_out, **threaded)))
        assert found[-1] == found[0], seed


# Breaks when an error leaves a queue, a copy or a thread at work, or the host waiting.
@pytest.mark.parametrize("threaded", [False, True])
def test_a_failed_read_is_told_however_late(monkeypatch: pytest.MonkeyPatch, threaded) -> None:
    def fail(rows: RowRange) -> None:
        if rows.start >= 60:
            raise OSError("no disk")

    source = FakeSource(120, n_features=3, on_read=fail)
    for seed in range(N_SEEDS or 3):
        sums = partial(sums_of_batches, monkeypatch, seed, 1 + seed % 4, None, source)
        with pytest.raises(ReadError, match="no disk"):
            within(60, partial(sums, threaded=threaded))


# Breaks when predict waits for the device at a batch.
def test_predict_waits_for_no_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short_batches(monkeypatch, 10)
    job = job_in(tmp_path / "job", epochs=1)
    job.attempt(kernel="reference")
    outputs = tmp_path / "l.npy", tmp_path / "d.npy"
    with hostile_device(monkeypatch, 0) as device:
        label(job.run, job.source, outputs[0], distances=outputs[1], kernel="reference")
    # (The kernel of the CPU asks which rows are in doubt; the scaling is asked once for its kind.)
    assert [module for module in device.waits if module != "exact"] == ["scaling"]
    assert np.array_equal(np.load(outputs[0]), predicted(job.run, job.source, tmp_path / "c.npy"))
