"""Reading alone: into one buffer beside the peers, and as a run does it, through slots."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from bench.data import DTYPES, LAYOUTS, Shape, make_array
from bench.measure import Target, rate
from bench.readers import (
    drop_from_page_cache,
    readers_of_npy,
    readers_of_zarr,
    streamkm_reader,
)
from streamkm.sources import open_source
from streamkm.stream.pipeline import stream
from streamkm.stream.plan import make_plan
from streamkm.stream.slots import HostSlots, StreamMemory
from streamkm.stream.stages import StageTimes

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from bench.conftest import Measure
    from bench.measure import Session
    from streamkm.sources import Source

N_SLOTS = 3
#: Times the fastest peer, at least.
TARGETS = {
    "zarr-raw": 1.1,
    "zarr-lz4": 1.3,
    "zarr-zstd": 1.15,
    "zarr-sharded-zstd": 1.5,
    "npy": 0.95,
}
#: Layouts that are timed for the narrow dtypes too.
NARROW = [("zarr-lz4", "float16"), ("zarr-lz4", "uint8"), ("zarr-sharded-zstd", "uint8")]


@pytest.mark.parametrize(
    ("layout", "dtype"), [*((layout, "float32") for layout in LAYOUTS), *NARROW]
)
def test_read(layout: str, dtype: str, measure: Measure, session: Session) -> None:
    path, shape = _array(session, layout, dtype)
    source = open_source(str(path))
    buffer_ND = np.empty((shape.n_rows, shape.n_features), shape.dtype)
    peers = (readers_of_npy if layout == "npy" else readers_of_zarr)(path, buffer_ND)
    ways: dict[str, Callable[[], object]] = {
        "streamkm": streamkm_reader(source, buffer_ND),
        **peers,
        "streamkm through slots": _through_slots(source),
    }
    # Each way must have read everything before its speed means anything.
    expected = None
    for name, read in ways.items():
        if name == "streamkm through slots":
            continue
        buffer_ND.fill(0)
        read()
        total = int(buffer_ND.view(np.uint8).sum(dtype=np.uint64))
        assert total == (expected := expected or total), name
    result = measure(
        f"read {layout}, {dtype}, {shape.size}, page cache warm",
        "GB/s",
        {name: rate(shape.nbytes / 1e9, read) for name, read in ways.items()},
    )
    source.close()
    if dtype == "float32":
        least, fastest = TARGETS[layout], max(peers, key=result.median)
        result.target = Target(f">= {least} x {fastest}", result.ratio(fastest) >= least)


@pytest.mark.parametrize("layout", ["npy", "zarr-raw", "zarr-lz4"])
def test_read_cold(layout: str, measure: Measure, session: Session) -> None:
    """From the disk: the file's pages are dropped before every reading."""
    path, shape = _array(session, layout, "float32")
    source = open_source(str(path))
    buffer_ND = np.empty((shape.n_rows, shape.n_features), shape.dtype)
    peers = (readers_of_npy if layout == "npy" else readers_of_zarr)(path, buffer_ND)
    ways = {"streamkm": streamkm_reader(source, buffer_ND), **peers}

    def cold(read: Callable[[], object]) -> Callable[[], float]:
        timed = rate(shape.nbytes / 1e9, read)

        def sample() -> float:
            drop_from_page_cache(path)
            return timed()

        return sample

    measure(
        f"read {layout}, float32, {shape.size}, from the disk",
        "GB/s",
        {name: cold(read) for name, read in ways.items()},
    )
    source.close()


def _array(session: Session, layout: str, dtype: str) -> tuple[Path, Shape]:
    shape = Shape(32_768, 16, 4096, dtype) if session.quick else Shape(1_000_000, 128, dtype=dtype)
    assert dtype in DTYPES
    return make_array(session.data, shape, layout), shape


def _through_slots(source: Source) -> Callable[[], None]:
    """As a run reads, in random order; a run makes its slots once, so that is not counted."""
    plan = make_plan(source.spec, batch_rows=source.spec.block_rows, seed=0)
    slot_bytes = plan.window_rows * source.spec.row_bytes
    memory = StreamMemory(N_SLOTS, plan.window_rows, slot_bytes, os.cpu_count() or 1)
    slots = HostSlots(memory, torch.device("cpu"))

    def read() -> None:
        with stream(source, plan.windows(0), slots, StageTimes()) as windows:
            for _ in windows:
                pass

    return read
