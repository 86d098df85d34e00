"""Ways to read a whole array, streamkm's and those of others, into buffers made before."""

from __future__ import annotations

import importlib.util
import os
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np
import torch
import zarr
from numcodecs import Zstd
from zarr.buffer.cpu import NDBuffer

from streamkm.machine import n_cores
from streamkm.sources import pagecache, rowfile
from streamkm.sources.base import RowRange
from streamkm.sources.zarr import direct
from streamkm.stream.pipeline import stream
from streamkm.stream.plan import ReadingPlan, plan_reading
from streamkm.stream.slots import HostSlots, StreamMemory
from streamkm.stream.stages import StageTimes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from streamkm.sources import Source

__all__ = [
    "drop_from_page_cache",
    "first_touch",
    "no_spare_memory",
    "readers_of_npy",
    "readers_of_zarr",
    "streamkm_reader",
    "through_slots",
    "zstd_alone",
]

#: Bytes of one call of `readinto`, and of the small blocks in one task of `streamkm_reader`.
LOOP_BYTES = 8 << 20
N_SLOTS = 3


def streamkm_reader(source: Source, buffer_ND: np.ndarray) -> Callable[[], None]:
    """Read every block of `source` straight into its place, by as many threads as cores.

    A task takes small blocks together, up to `LOOP_BYTES`: handing 1 MiB to a thread takes a
    third of the time that reading it does.
    """
    block_rows = source.spec.block_rows
    step = block_rows * max(LOOP_BYTES // (block_rows * source.spec.row_bytes), 1)
    ranges = [
        RowRange(start, min(start + step, len(buffer_ND)))
        for start in range(0, len(buffer_ND), step)
    ]

    def read() -> None:
        with ThreadPoolExecutor(n_cores()) as pool:
            list(pool.map(lambda r: source.read(r, buffer_ND[r.start : r.stop]), ranges))

    return read


@contextmanager
def no_spare_memory() -> Iterator[None]:
    """Within, everything is opened and read as if it did not fit into memory."""
    with ExitStack() as stack:
        for module in (pagecache, rowfile, direct):
            stack.enter_context(mock.patch.object(module, "has_spare_memory", return_value=False))
        yield


def _memory(source: Source) -> tuple[ReadingPlan, StreamMemory]:
    plan = plan_reading(source.spec, batch_rows=source.spec.block_rows, seed=0)
    slot_bytes = plan.window_rows * source.spec.row_bytes
    return plan, StreamMemory(N_SLOTS, plan.window_rows, slot_bytes, n_cores())


def first_touch(source: Source, pause_s: float) -> float:
    """Core-seconds of the first touch of a run's slots, `pause_s` after memory was last used.

    A virtual machine may give memory back to its host once it has been free for a while.
    """
    _, memory = _memory(source)
    time.sleep(pause_s)
    start = time.process_time()
    for buffer in HostSlots(memory, torch.device("cpu")).buffers:
        buffer.fill(0)
    return time.process_time() - start


def through_slots(source: Source) -> Callable[[], None]:
    """Read as a run does, in random order. Making slots is not timed, since a run does it once."""
    plan, memory = _memory(source)
    slots = HostSlots(memory, torch.device("cpu"))

    def read() -> None:
        with stream(source, plan.windows(0), slots, StageTimes()) as windows:
            for _ in windows:
                pass

    return read


def readers_of_zarr(path: Path, buffer_ND: np.ndarray) -> dict[str, Callable[[], object]]:
    """zarr-python, and zarrs and tensorstore if they are installed."""
    out = NDBuffer.from_numpy_array(buffer_ND)

    def zarr_python() -> None:
        zarr.open_array(path, mode="r").get_basic_selection(slice(None), out=out)

    readers: dict[str, Callable[[], object]] = {"zarr-python": zarr_python}
    if importlib.util.find_spec("zarrs"):

        def zarrs() -> None:
            with zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}):
                zarr_python()

        readers["zarrs"] = zarrs
    if importlib.util.find_spec("tensorstore"):
        readers["tensorstore"] = _tensorstore_reader(path, buffer_ND)
    return readers


def _tensorstore_reader(path: Path, buffer_ND: np.ndarray) -> Callable[[], object]:
    import tensorstore

    # Opened anew each time, which takes 5 ms: else it would keep chunks in its cache.
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(path)}}

    def read() -> Any:
        store = tensorstore.open(spec, open=True, read=True).result()
        return tensorstore.array(buffer_ND, copy=False, write=True).write(store).result()

    return read


def readers_of_npy(path: Path, buffer_ND: np.ndarray) -> dict[str, Callable[[], object]]:
    """A bare loop of `readinto` in one thread."""
    view = buffer_ND.reshape(-1).view(np.uint8).data

    def readinto() -> None:
        with path.open("rb", buffering=0) as stream:
            stream.seek(path.stat().st_size - len(view))
            at = 0
            while count := stream.readinto(view[at : at + LOOP_BYTES]):
                at += count

    return {"readinto": readinto}


def zstd_alone(path: Path) -> Callable[[], None]:
    """Decode every chunk of a Zarr array from memory, in a buffer that stays in the cache.

    As many threads as cores take a share of the chunks each. No reader can be faster.
    """
    array = zarr.open_array(path, mode="r")
    rows, n_threads = array.chunks[0], n_cores()
    codec = Zstd(level=3)
    held: list[bytes] = []
    for start in range(0, array.shape[0], rows):
        chunk = np.zeros(array.chunks, array.dtype)
        part = np.asarray(array[start : start + rows])
        chunk[: len(part)] = part
        held.append(codec.encode(chunk))

    def decode(first: int) -> None:
        out = np.empty(array.chunks, array.dtype)
        for stored in held[first::n_threads]:
            codec.decode(stored, out)

    def read() -> None:
        with ThreadPoolExecutor(n_threads) as pool:
            list(pool.map(decode, range(n_threads)))

    return read


def drop_from_page_cache(path: Path) -> None:
    """Make the next reading of `path`, a file or a folder, come from the disk."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)  # Pages that are not written yet cannot be dropped.
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
