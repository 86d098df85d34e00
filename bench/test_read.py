"""Reading alone, as far as the slots: streamkm's readers against a plain loop."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
import zarr

from bench.data import LAYOUTS, Shape, make_array
from bench.measure import rate
from streamkm.sources import open_source
from streamkm.stream.pipeline import stream
from streamkm.stream.plan import make_plan
from streamkm.stream.slots import HostSlots, StreamMemory
from streamkm.stream.stages import StageTimes

if TYPE_CHECKING:
    from pathlib import Path

    from bench.conftest import Measure
    from bench.measure import Session
    from streamkm.sources import Source
    from streamkm.stream.plan import Plan

N_SLOTS = 3


@pytest.mark.parametrize("layout", LAYOUTS)
def test_read(layout: str, measure: Measure, session: Session) -> None:
    shape = Shape(32_768, 16, chunk_rows=4096) if session.quick else Shape(1_000_000, 128)
    path = make_array(session.data, shape, layout)
    source = open_source(str(path))
    plan = make_plan(source.spec, batch_rows=shape.chunk_rows, seed=0)
    slot_bytes = plan.window_rows * source.spec.row_bytes
    memory = StreamMemory(N_SLOTS, plan.window_rows, slot_bytes, os.cpu_count() or 1)
    loop = _npy_loop if layout == "npy" else _zarr_loop
    peer = "readinto" if layout == "npy" else "zarr-python"
    gigabytes = shape.nbytes / 1e9
    # A run makes its slots once, so making them is not counted; nor is the loop's buffer.
    with HostSlots(memory, torch.device("cpu")) as slots:
        measure(
            f"read {layout}, page cache warm",
            "GB/s",
            {
                "streamkm": rate(gigabytes, lambda: _read_all(source, plan, slots)),
                peer: rate(gigabytes, lambda: loop(path, shape)),
            },
        )
    source.close()


def _read_all(source: Source, plan: Plan, slots: HostSlots) -> None:
    with stream(source, plan.windows(0), slots, StageTimes()) as windows:
        for _ in windows:
            pass


def _zarr_loop(path: Path, shape: Shape) -> None:
    array = zarr.open_array(path, mode="r")
    for start in range(0, shape.n_rows, shape.chunk_rows):
        np.asarray(array[start : start + shape.chunk_rows])


def _npy_loop(path: Path, shape: Shape) -> None:
    buffer = np.empty((shape.chunk_rows, shape.n_features), np.float32)
    view = buffer.reshape(-1).view(np.uint8).data
    with path.open("rb", buffering=0) as stream:
        stream.seek(128)
        while stream.readinto(view):
            pass
