"""Whole fits on a GPU, by what their metrics.jsonl says, beside their slowest stage alone."""

from __future__ import annotations

import importlib.util
import json
import shutil
import time
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import numpy as np
import torch

from streamkm.cadence import Cadence
from streamkm.clustering.batch import Batch
from streamkm.clustering.minibatch import MiniBatch
from streamkm.clustering.state import initial_state
from streamkm.config import ExecutionConfig, FitConfig
from streamkm.kernels.triton.kernel import TritonKernel
from streamkm.runs.fit import fit
from streamkm.runs.planning import fit_plan
from streamkm.runs.planning.memory import plan_memory
from streamkm.runs.predict import predict
from streamkm.runs.reporting.signals import StopRequest
from streamkm.sources import open_source
from streamkm.stream.plan import plan_reading
from streamkm.stream.prefetch import prefetch
from streamkm.stream.slots import HostSlots
from streamkm.stream.stages import StageTimes

if TYPE_CHECKING:
    from pathlib import Path

    from bench.gpu_run import Run

__all__ = ["checkpoints", "measure_fits", "measure_predict"]

#: Bytes of an array: far more than what caches of the card hold, far less than its memory.
ARRAY_BYTES = 4 * 2**30
CHUNK_ROWS = 16384
#: Figures of the last record of metrics.jsonl that are kept.
KEPT = ("rows_per_s", "bottleneck", "busy_share", "probe_rows_per_s", "share_of_probe", "seconds")


def measure_fits(run: Run) -> None:
    """Eight epochs of every kind of fit, and what reading and arithmetic do alone."""
    epochs = run.size(8, 2)
    for d in (16,) if run.is_rehearsal else (128, 1024):
        for layout, path in make_arrays(run, d).items():
            run.add({"layout": layout, "d": d, "reader_alone_bytes_per_s": read_alone(path)})
            for k in (3,) if run.is_rehearsal else (256, 20_000):
                for batch_rows in (64,) if run.is_rehearsal else (16384, 131_072):
                    for resident in (True, False):
                        about = {"layout": layout, "d": d, "k": k, "batch_rows": batch_rows,
                                 "resident": resident}  # fmt: skip
                        found = one_fit(run, path, k, batch_rows, epochs, resident=resident)
                        run.add(about | found)
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        for k in (3,) if run.is_rehearsal else (256, 20_000):
            alone = arithmetic_alone(run.device, run.size(131_072, 64), d, k)
            run.add({"d": d, "k": k, "arithmetic_alone_rows_per_s": alone})


def make_arrays(run: Run, d: int, *, only_npy: bool = False) -> dict[str, Path]:
    """The same rows as .npy and as Zarr, in the page cache because they were just written."""
    n_rows = ARRAY_BYTES // (4 * d) if not run.is_rehearsal else 200
    centres = 4 * run.normal(512, d)
    path = run.data / "gpu.npy"
    rows = np.lib.format.open_memmap(path, "w+", np.float32, (n_rows, d))
    for start in range(0, n_rows, CHUNK_ROWS):
        part = run.normal(min(CHUNK_ROWS, n_rows - start), d)
        part += centres[torch.arange(start, start + len(part), device=run.device) * 7919 % 512]
        rows[start : start + len(part)] = part.cpu().numpy()
    rows.flush()
    paths = {"npy": path}
    if importlib.util.find_spec("zarr") and not only_npy:
        import zarr

        paths["zarr"] = run.data / "gpu.zarr"
        chunks = (min(CHUNK_ROWS, n_rows), d)
        zarr.create_array(paths["zarr"], data=rows, chunks=chunks, compressors=None, overwrite=True)
    return paths


def one_fit(
    run: Run,
    path: Path,
    k: int,
    batch_rows: int,
    epochs: int,
    *,
    resident: bool = True,
    **execution: Any,
) -> dict[str, Any]:
    """What the last record of metrics.jsonl says, and how long the whole fit took.

    If not `resident`, no rows stay anywhere between passes, which no setting asks for.
    """
    out, start = run.data / "run", time.perf_counter()
    shutil.rmtree(out, ignore_errors=True)
    source = open_source(path)
    config = FitConfig(k=k, batch_rows=batch_rows, epochs=epochs, init="random", tol=0.0)
    try:
        given = ExecutionConfig(device=run.device.type, probe=True, tune=True, **execution)
        with nullcontext() if resident else patch.object(fit_plan, "plan_residency", _nothing):
            fit(source, config, given, out, resume=False, stop_request=StopRequest())
        with (out / "metrics.jsonl").open() as lines:
            last = json.loads(list(lines)[-1])
        row_bytes = source.spec.nbytes / source.spec.n_rows
    except Exception as error:  # noqa: BLE001  # what one fit raises is a result beside others
        return {"failed": f"{type(error).__name__}: {error}"[:500]}
    finally:
        source.close()
    rate = {"bytes_per_s": last.get("rows_per_s", 0.0) * row_bytes}
    return {name: last[name] for name in KEPT if name in last} | rate | {
        "whole_s": time.perf_counter() - start
    }  # fmt: skip


def _nothing(*_: object, **__: object) -> None:
    """No plan of rows that stay."""


def measure_predict(run: Run) -> dict[str, Any]:
    """Rows a second of `predict`, to labels on disk."""
    path = make_arrays(run, run.size(128, 16), only_npy=True)["npy"]
    one_fit(run, path, run.size(1024, 3), run.size(CHUNK_ROWS, 64), 1)
    source, found = open_source(path), {}
    # The first compiles.
    for trial in range(2):
        start = time.perf_counter()
        predict(
            run.data / "run", source, ExecutionConfig(device=run.device.type),
            labels=run.data / f"labels-{trial}.npy", resume=False, stop_request=StopRequest(),
            quiet=True,
        )  # fmt: skip
        found[f"rows_per_s_{trial}"] = source.spec.n_rows / (time.perf_counter() - start)
    source.close()
    return found


def checkpoints(run: Run) -> dict[str, Any]:
    """What a checkpoint holds a fit up for, as a share of the 10 s after which one is due."""
    path = make_arrays(run, run.size(128, 16), only_npy=True)["npy"]
    k, batch_rows = run.size(20_000, 3), run.size(CHUNK_ROWS, 64)
    n_batches = run.size(ARRAY_BYTES // (4 * 128 * CHUNK_ROWS), 4)
    n_saved = 8 if n_batches > 8 else 1
    # The first fit compiles.
    plain, plain, saving = (
        one_fit(run, path, k, batch_rows, 1, checkpoint_every=Cadence(batches=every))
        for every in (10**9, 10**9, n_batches // n_saved)
    )
    each_s = (saving["whole_s"] - plain["whole_s"]) / n_saved
    return {"each_s": each_s, "share_of_10_s": each_s / 10, "k": k, "saved": n_saved}


def read_alone(path: Path) -> float:
    source = open_source(path)
    plan = plan_reading(source.spec, batch_rows=min(CHUNK_ROWS, source.spec.n_rows), seed=0)
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
