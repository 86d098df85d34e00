"""Whole runs on a device that is as late as it may be: the bits of one that does all at once."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from streamkm.sources import flat
from streamkm.sources.weights import open_weights
from streamkm.stream import plan
from streamkm.stream.plan import ReadingPlan
from streamkm.stream.prefetch import prefetch
from streamkm.stream.slots import HostSlots
from streamkm.stream.stages import StageTimes
from streamkm.stream.transfer import to_device
from tests.runs.helpers import Job, clusters, every, predicted
from tests.stream.helpers import FakeSource, slots_for, within
from tests.stream.hostile import HOSTILE, HangError, HostileQueue, hostile_device

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def sums_of_batches(
    monkeypatch: pytest.MonkeyPatch, seed: int | None, n_slots: int, order: int | None
) -> list[list[float]]:
    """Of each batch the sums of its rows and of its weights, as the device finds them."""
    source = FakeSource(120, n_features=3)
    reading = ReadingPlan(n_rows=120, block_rows=5, window_blocks=3, batch_rows=6, seed=order)
    memory = slots_for(reading, source, n_slots, 2, weighted=True).memory

    weights = open_weights(np.arange(120) / 8, 120)
    found = []
    with hostile_device(monkeypatch, seed), HostSlots(memory, HOSTILE) as slots:
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
    for seed in range(12):
        found = within(60, partial(sums_of_batches, monkeypatch, seed, 1 + seed % 4, order))
        assert found == expected, seed


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


# Breaks when anything depends on when the device does its work: windows, sums, checkpoints, labels.
@pytest.mark.parametrize(
    ("dtype", "weighted", "settings"),
    [
        ("float32", False, {}),
        ("uint8", True, {"scale": "zscore", "nan": "drop"}),
        ("float32", False, {"algorithm": "lloyd", "epochs": 2, "tol": 0.0, "metric": "cosine"}),
    ],
    ids=["", "scaled", "lloyd"],
)
def test_a_run_ends_with_the_same_bits_however_late(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype, weighted, settings
) -> None:
    monkeypatch.setattr(flat, "BLOCK_BYTES", 480)
    monkeypatch.setattr(plan, "WINDOW_BYTES", 2000)
    found: list[tuple[dict[str, bytes], np.ndarray]] = []
    for seed in (None, 0):
        folder = tmp_path / str(seed)
        job = job_in(folder, dtype, **settings)
        job = replace(job, weights=folder / "w.npy") if weighted else job
        with hostile_device(monkeypatch, seed):
            if seed is not None:  # Stopped, and resumed from a checkpoint.
                assert job.interrupted(5, kernel="reference", checkpoint_every=every(2))
            job.attempt(kernel="reference")
            labels = predicted(job.run, job.source, folder / "l.npy", kernel="reference")
        on_cpu = predicted(job.run, job.source, folder / "cpu.npy", kernel="reference")
        assert np.array_equal(labels, on_cpu)
        found.append((job.results, labels))
    (expected, labels), (late, late_labels) = found
    assert late == expected
    assert np.array_equal(late_labels, labels)
