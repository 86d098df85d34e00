"""Outputs that are Zarr arrays, written in whole chunks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import zarr

from streamkm.errors import ResumeError
from streamkm.sealed import seal
from streamkm.sinks import open_sink
from streamkm.sinks.zarr import ZarrSink
from tests.sinks.contract import CHUNK_ROWS, N, PartedSinkContract, cursor_of, labels, partial_of


class TestZarrSink(PartedSinkContract):
    sink = ZarrSink
    suffix = ".zarr"
    durable_of_130 = 128
    synced = ("0", "out.zarr.partial", "c")

    def load(self, path: Path) -> np.ndarray:
        return np.asarray(zarr.open_array(path, mode="r")[...])

    def leave_a_beginning(self, partial: Path) -> None:
        partial.mkdir()

    def lose_rows(self, partial: Path) -> None:
        (partial / "c" / "1").unlink()


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "x.zarr"


# Breaks when a chunk of zeros is left out and looks like one that was never written.
def test_chunks_of_zeros_are_stored(target: Path) -> None:
    with open_sink(target, n_rows=100, dtype="int32", chunk_rows=10) as sink:
        sink.write(0, np.zeros(100, np.int32))
        sink.commit()
    array = zarr.open_array(target, mode="r")
    assert array.nchunks_initialized == 10
    assert not np.asarray(array[...]).any()


# Breaks when chunks that no cursor claims, or a killed writer's remains, end up in the output.
def test_unclaimed_chunks_are_dropped(target: Path) -> None:
    with open_sink(target, n_rows=N, dtype="int32", chunk_rows=CHUNK_ROWS) as sink:
        sink.write(0, labels()[:200])
        sink.write_cursor({})
        sink.write(200, labels()[200:700])
        sink.flush()
    chunks = partial_of(target) / "c"
    (chunks / "9.0123.partial").write_text("torn")
    assert len(list(chunks.iterdir())) == 11
    with open_sink(target, n_rows=N, dtype="int32", resume=True) as sink:
        assert sorted(path.name for path in chunks.iterdir()) == ["0", "1", "2"]
        assert sink.durable_rows == 192


# Breaks when rows of a chunk that was never whole are believed.
def test_a_cursor_that_claims_part_of_a_chunk(target: Path) -> None:
    with open_sink(target, n_rows=N, dtype="int32", chunk_rows=CHUNK_ROWS) as sink:
        sink.write(0, labels()[:200])
        sink.write_cursor({})
    cursor_of(target).write_bytes(seal({"durable_rows": 100, "crc32": 0, "cursor": {}}))
    with pytest.raises(ResumeError, match="100 rows"):
        open_sink(target, n_rows=N, dtype="int32", resume=True)
