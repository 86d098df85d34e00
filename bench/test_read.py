"""Reading alone: into one buffer, beside the peers, and through slots, as a run reads."""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING

import numpy as np
import pytest

from bench.data import DTYPES, LAYOUTS, Shape, make_array
from bench.measure import Target, rate
from bench.readers import (
    drop_from_page_cache,
    no_spare_memory,
    readers_of_npy,
    readers_of_zarr,
    streamkm_reader,
    through_slots,
    zstd_alone,
)
from streamkm.sources import open_source

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from bench.conftest import Measure
    from bench.measure import Session

#: Times as fast as the fastest peer, at least.
TARGETS = {
    "zarr-raw": 1.1,
    "zarr-lz4": 1.3,
    "zarr-zstd": 1.15,
    "zarr-sharded-zstd": 1.5,
    "npy": 0.95,
}
#: Times as fast as dd, at least, from the disk.
LEAST_OF_DD = 0.9
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
        "through slots": through_slots(source),
    }
    alone = "decoding alone"
    # Each way must have read everything before its speed means anything.
    expected = None
    for name, read in ways.items():
        if name == "through slots":
            continue
        buffer_ND.fill(0)
        read()
        total = int(buffer_ND.view(np.uint8).sum(dtype=np.uint64))
        assert total == (expected := expected or total), name
    if "zstd" in layout:
        ways[alone] = zstd_alone(path)
    result = measure(
        f"{layout}, {dtype}, warm",
        "GB/s",
        {name: rate(shape.nbytes / 1e9, read) for name, read in ways.items()},
    )
    source.close()
    least, fastest = TARGETS[layout], max(peers, key=result.median)
    result.target = Target(f">= {least} x {fastest}", result.ratio(fastest) >= least)
    if alone in ways:
        most = result.median(alone) / result.median(fastest)
        result.remark = f"libzstd by numcodecs, alone, from memory: {most:.2f} x {fastest}"


@pytest.mark.parametrize("layout", ["npy", "zarr-raw", "zarr-lz4"])
def test_read_cold(layout: str, measure: Measure, session: Session) -> None:
    """Cold: the file's pages are dropped before every reading.

    The array is read once as if it fitted into memory, and once as if it did not.
    """
    path, shape = _array(session, layout, "float32")
    source = open_source(str(path))
    buffer_ND = np.empty((shape.n_rows, shape.n_features), shape.dtype)
    peers = (readers_of_npy if layout == "npy" else readers_of_zarr)(path, buffer_ND)
    ways: dict[str, Callable[[], object]] = {
        "streamkm": streamkm_reader(source, buffer_ND),
        **peers,
    }
    with no_spare_memory():
        large = open_source(str(path))
    read_large = streamkm_reader(large, buffer_ND)

    def past_the_cache() -> None:
        with no_spare_memory():
            read_large()

    ways["past the page cache"] = past_the_cache
    dd = "dd, O_DIRECT"
    if layout == "npy" and shutil.which("dd"):
        command = ["dd", f"if={path}", "of=/dev/null", "bs=8M", "iflag=direct"]
        ways[dd] = lambda: subprocess.run(command, check=True, capture_output=True)

    def cold(read: Callable[[], object]) -> Callable[[], float]:
        timed = rate(shape.nbytes / 1e9, read)

        def sample() -> float:
            drop_from_page_cache(path)
            return timed()

        return sample

    result = measure(
        f"{layout}, float32, cold",
        "GB/s",
        {name: cold(read) for name, read in ways.items()},
    )
    if dd in ways:
        result.target = Target(f">= {LEAST_OF_DD} x dd", result.ratio(dd) >= LEAST_OF_DD)
    source.close()
    large.close()


def _array(session: Session, layout: str, dtype: str) -> tuple[Path, Shape]:
    shape = Shape(32_768, 16, 4096, dtype) if session.quick else Shape(1_000_000, 128, dtype=dtype)
    assert dtype in DTYPES
    return make_array(session.data, shape, layout), shape
