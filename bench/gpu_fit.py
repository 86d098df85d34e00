"""A whole fit on a GPU, beside its parts alone: reading, the link, the arithmetic."""

from __future__ import annotations

import importlib.util
import shutil
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from streamkm.clustering.batch import Batch
from streamkm.clustering.minibatch import MiniBatch
from streamkm.clustering.state import initial_state
from streamkm.config import ExecutionConfig, FitConfig
from streamkm.kernels.triton.kernel import TritonKernel
from streamkm.runs.fit import fit
from streamkm.runs.planning.memory import plan_memory
from streamkm.runs.reporting.signals import StopRequest
from streamkm.sources import open_source
from streamkm.stream.plan import plan_reading
from streamkm.stream.prefetch import prefetch
from streamkm.stream.slots import HostSlots
from streamkm.stream.stages import StageTimes

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["measure_fits"]

K, BATCH_ROWS = 1024, 16384


def measure_fits(device: torch.device, folder: Path, *, toy: bool) -> dict[str, Any]:
    """Seconds, and bytes a second, of one epoch from .npy and from Zarr, and of its parts."""
    n_rows, d, k = (200, 16, 8) if toy else (2_000_000, 128, K)
    folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {"rows": n_rows, "d": d, "k": k}
    for layout, path in make_arrays(folder, n_rows, d).items():
        found[layout] = {"reader_alone_bytes_per_s": read_alone(path)}
        # The first fit compiles, and fills the page cache.
        for trial in range(2):
            found[layout][f"fit_{trial}"] = one_fit(path, folder / "run", device, k)
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    if not importlib.util.find_spec("zarr"):
        found["zarr"] = "left out: zarr is not installed"
    found["link_bytes_per_s"] = "needs a GPU" if toy else link_alone(device)
    found["arithmetic_rows_per_s"] = arithmetic_alone(device, 64 if toy else BATCH_ROWS, d, k)
    return found


def make_arrays(folder: Path, n_rows: int, d: int) -> dict[str, Path]:
    rng = np.random.default_rng(0)
    centres = 4 * rng.standard_normal((512, d), dtype=np.float32)
    rows = np.empty((n_rows, d), np.float32)
    for start in range(0, n_rows, BATCH_ROWS):
        part = rows[start : start + BATCH_ROWS]
        part[...] = rng.standard_normal(part.shape, dtype=np.float32)
        part += centres[rng.integers(512, size=len(part))]
    paths = {"npy": folder / "gpu.npy"}
    np.save(paths["npy"], rows)
    if importlib.util.find_spec("zarr"):
        import zarr
        from zarr.codecs import BloscCodec

        for layout, codec in {"zarr-raw": None, "zarr-lz4": BloscCodec(cname="lz4")}.items():
            paths[layout] = folder / f"gpu-{layout}.zarr"
            chunks = (min(BATCH_ROWS, n_rows), d)
            zarr.create_array(
                paths[layout], data=rows, chunks=chunks, compressors=codec, overwrite=True
            )
    return paths


def read_alone(path: Path) -> float:
    source = open_source(path)
    plan = plan_reading(source.spec, batch_rows=min(BATCH_ROWS, source.spec.n_rows), seed=0)
    memory = plan_memory(source.spec, plan, ExecutionConfig(), fixed_bytes=0)
    times, spent = StageTimes(memory.stream.n_readers), float("nan")
    with HostSlots(memory.stream, torch.device("cpu")) as slots:
        # Only the second time counts: the first fills the page cache and touches new slots.
        for _ in range(2):
            start = time.perf_counter()
            windows = plan.windows(0)
            with prefetch(source, windows, slots, memory.stream.n_readers, times) as host_windows:
                for host in host_windows:
                    host.release()
            spent = time.perf_counter() - start
    source.close()
    return source.spec.nbytes / spent


def one_fit(path: Path, run: Path, device: torch.device, k: int) -> dict[str, float]:
    shutil.rmtree(run, ignore_errors=True)
    source = open_source(path)
    n_rows, n_bytes = source.spec.n_rows, source.spec.nbytes
    config = FitConfig(k=k, batch_rows=min(BATCH_ROWS, n_rows), epochs=1)
    start = time.perf_counter()
    execution = ExecutionConfig(device=device.type)
    fit(source, config, execution, run, resume=False, stop_request=StopRequest())
    spent = time.perf_counter() - start
    source.close()
    shutil.rmtree(run)
    return {"seconds": spent, "rows_per_s": n_rows / spent, "bytes_per_s": n_bytes / spent}


def link_alone(device: torch.device) -> float:
    host = torch.empty(2**28, dtype=torch.uint8, pin_memory=True).fill_(1)
    target = torch.empty_like(host, device=device)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    target.copy_(host, non_blocking=True)
    start.record()
    for _ in range(20):
        target.copy_(host, non_blocking=True)
    end.record()
    end.synchronize()
    return float(20 * host.nbytes / (start.elapsed_time(end) / 1e3))


def arithmetic_alone(device: torch.device, n_rows: int, d: int, k: int) -> float:
    """Rows a second of mini-batch steps on rows that lie on the device, by the host's clock."""
    x_BD = torch.randn((n_rows, d), device=device, generator=torch.Generator(device).manual_seed(0))
    batch = Batch(x_BD, x_BD.square().sum(dim=1), None)
    state = initial_state(x_BD[:k].clone(), 0.0)
    kernel = TritonKernel(n_rows, k, torch.float32, device)
    algorithm = MiniBatch(kernel, 10**9, 0)
    n_steps, spent = (2 if device.type == "cpu" else 200), float("nan")
    for timed in (False, True):
        if device.type == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        for index in range(n_steps if timed else 2):
            algorithm.update_(state, batch, epoch=0, index=index)
        if device.type == "cuda":
            torch.cuda.synchronize()
        spent = time.perf_counter() - start
    return n_steps * n_rows / spent
