"""What a sweep may keep in memory."""

from __future__ import annotations

import tracemalloc
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import zarr

from streamkm.runs.sweeping.planning import kept_bytes
from streamkm.sources import open_source
from streamkm.sources.base import RowRange
from streamkm.sources.kept import KeptRows

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
    kept = KeptRows(source, kept_bytes(source, free))
    out = np.empty((rows, 2), np.float32)
    kept.read(RowRange(0, rows), out)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    held = KeptRows(source, kept_bytes(source, free))
    for block in RowRange(0, 4000).split(rows):
        held.read(block, out)
    taken = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert 5_000 < taken < 25_000
