"""What a sweep may keep in memory."""

from __future__ import annotations

import shlex
import subprocess
import sys
import tracemalloc
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import zarr

from streamkm.config import ExecutionConfig, FitConfig
from streamkm.runs.fit import plan_fit
from streamkm.runs.planning import device_memory
from streamkm.runs.sweeping.planning import OTHER_FILES, kept_bytes, plan_sweep
from streamkm.runs.sweeping.variants import Space, Variant
from streamkm.sources import open_source
from streamkm.sources.base import RowRange
from streamkm.sources.remembered import RememberedRows
from tests.runs.helpers import clusters
from tests.stream.helpers import FakeSource

if TYPE_CHECKING:
    from pathlib import Path


class Roomy:
    """A group that leaves this much of the budget."""

    def __init__(self, free_bytes: int) -> None:
        self.free_bytes = free_bytes


# Breaks when a million tiny blocks take many times the memory that is left.
@pytest.mark.parametrize("rows", [2, 500])
def test_small_blocks_are_kept_within_the_memory(tmp_path: Path, rows: int) -> None:
    array = zarr.create_array(
        tmp_path / "x.zarr", shape=(4000, 2), chunks=(rows, 2), dtype="float32", compressors=None
    )
    array[:] = 1
    source = open_source(tmp_path / "x.zarr")
    free: Any = [Roomy(20_000)]
    kept = RememberedRows(source, kept_bytes(source, free))
    out = np.empty((rows, 2), np.float32)
    kept.read(RowRange(0, rows), out)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    held = RememberedRows(source, kept_bytes(source, free))
    for block in RowRange(0, 4000).split(rows):
        held.read(block, out)
    taken = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert 5_000 < taken < 25_000


# Breaks when a sweep of hundreds of fits holds more files open than a process may.
def test_fits_hold_no_more_files_than_they_may(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", clusters(300, 3))
    words = ("sweep", tmp_path / "x.npy", "--k", "1:100:1", "--out", tmp_path / "sweep")
    command = shlex.join(map(str, (sys.executable, "-m", "streamkm", *words, "--device", "cpu")))
    limited = f"ulimit -n {OTHER_FILES + 40} && exec {command}"
    ended = subprocess.run(limited, shell=True, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "the open files of a process do not hold all of them at once: 5 groups" in ended.stderr
    assert len(list((tmp_path / "sweep").glob("k-*/model.safetensors"))) == 100


# Breaks when fits share a read whose memory one card does not hold together.
def test_a_card_holds_the_fits_that_share_a_read(monkeypatch: pytest.MonkeyPatch) -> None:
    source: Any = FakeSource(10**6, n_features=8, block_rows=1 << 14)
    variants = [Variant(Space(0, "none", "euclidean"), k, 0, f"k-{k}") for k in (4, 5, 6, 7)]
    monkeypatch.setattr(device_memory, "memory_of", lambda device: (1 << 33, 1 << 33))
    groups = plan_sweep(source, FitConfig(k=1), variants, ExecutionConfig()).groups
    assert [len(group.variants) for group in groups] == [4]
    plan = plan_fit(source, FitConfig(k=7), ExecutionConfig()).device_memory
    assert plan is not None
    room = plan.total_bytes + 1.5 * plan.working_bytes
    monkeypatch.setattr(device_memory, "memory_of", lambda device: (int(room * 16 / 15), 1 << 33))
    groups = plan_sweep(source, FitConfig(k=1), variants, ExecutionConfig()).groups
    assert [len(group.variants) for group in groups] == [2, 2]
