"""Ranges for profilers: shown where a run asks for them, and nothing otherwise."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
import torch

from streamkm import ranges
from streamkm.errors import DeviceError
from tests.runs.helpers import every
from tests.stream.hostile import hostile_device
from tests.stream.test_hostile_device import job_in

if TYPE_CHECKING:
    from pathlib import Path


# Breaks when a part of a run is not named, is named in another thread's place, or stays open.
def test_each_part_of_a_run_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    log: list[tuple[str, str]] = []
    n_open = 0

    @contextmanager
    def logged(name: str):
        nonlocal n_open
        n_open += 1
        log.append((name, threading.current_thread().name))
        yield
        n_open -= 1

    monkeypatch.setattr(torch.cuda.nvtx, "range", logged)
    job = job_in(tmp_path / "job", algorithm="lloyd", epochs=1)
    with hostile_device(monkeypatch, None):
        job.attempt(kernel="reference", nvtx=True, checkpoint_every=every(2))
        assert {name for name, _ in log} == {"streamkm", *ranges.RANGES}
        threads = dict(log)
        assert threads["read"].startswith("streamkm-reader")
        assert threads["checkpoint"] == "streamkm-checkpoint"
        assert n_open == 0
        log.clear()
        job_in(tmp_path / "other", algorithm="lloyd", epochs=1).attempt(kernel="reference")
    assert log == []


def test_ranges_cost_nothing_when_they_are_off() -> None:
    assert ranges.named("read") is ranges.named("copy")  # Nothing is made.


def test_a_torch_without_ranges_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def none(name: str):
        raise RuntimeError("NVTX functions not installed")
        yield

    monkeypatch.setattr(torch.cuda.nvtx, "range", none)
    with (
        pytest.raises(DeviceError, match="nvtx=True needs torch built for CUDA"),
        ranges.shown(wanted=True),
    ):
        pass
