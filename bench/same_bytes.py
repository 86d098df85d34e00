"""Fits on 1, 2, 3, 4 and 8 processes, on 1, 2 and 4 threads, and resumed on others: equal bytes?

``python -m bench.same_bytes OUT.json`` starts 8 processes on this machine. Together they make the
fits of `tests.runs.engine.cases`, which differ in algorithm, seeding, scaling, metric, weights and
dropped rows, and each in float32 and float64; groups of the first of them are the smaller numbers.
What counts are the bytes of ``centroids.npy`` and ``model.safetensors`` beside those of one process
of one thread.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from itertools import cycle, product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as dist
import zarr

from bench.report import environment
from streamkm.clustering.seeding import plan as seeding_plan
from streamkm.clustering.seeding import tree_plan
from streamkm.distributed.joining import joined
from streamkm.distributed.world import ALONE, World
from streamkm.errors import Interrupted
from streamkm.runs.engine import agreement
from streamkm.stream import plan
from tests.runs import helpers
from tests.runs.engine.cases import CASES
from tests.runs.helpers import Job, StopAfter

if TYPE_CHECKING:
    from tests.runs.engine.cases import Case

N_PROCESSES = 8
SIZES = (2, 3, 4, 8)
THREADS = (2, 4)
#: Numbers of processes of a run that is resumed again and again, in turn.
CHANGING = (8, 3, 1, 4, 2)
DTYPES = ("float32", "float64")


class StopFrom(StopAfter):
    """Asks to stop from the `n`-th look on, in whichever process looks first."""

    @property
    def signal_name(self) -> str | None:  # type: ignore[override]
        self.looks += 1
        return "SIGTERM" if self.n and self.looks >= self.n else None

    @signal_name.setter
    def signal_name(self, value: str | None) -> None:
        pass


def worlds_of(world: World) -> dict[int, World]:
    """The worlds that this process belongs to, by their numbers of processes."""
    found = {1: ALONE} if world.is_first else {}
    for size in SIZES[:-1]:
        group = dist.new_group(list(range(size)))
        if world.rank < size:
            found[size] = World(world.rank, world.local_rank, world.hosts[:size], group=group)
    return found | {world.size: world}


def made(case: Case, folder: Path, dtype: str) -> Job:
    """The fit of `case`, on its array in `dtype`."""
    job = case.job(folder)
    if dtype == "float64":
        rows = np.asarray(zarr.open_array(job.source)[:])
        wide = zarr.create_array(
            folder / "wide.zarr", shape=rows.shape, chunks=(20, rows.shape[1]), dtype=dtype
        )
        wide[:] = rows.astype(dtype) / 3
        job = replace(job, source=folder / "wide.zarr")
    return job


def compared(case: Case, folder: Path, dtype: str, worlds: dict[int, World]) -> dict[str, bool]:
    """Whether each way gives the bytes of one process of one thread; empty but in process 0.

    The key of resumed attempts says on how many processes they were.
    """
    world = worlds[N_PROCESSES]
    job, described = None, None
    if world.is_first:
        folder.mkdir()
        job = made(case, folder, dtype)
        described = [str(job.source), job.settings, job.weights and str(job.weights)]
    source, settings, weights = world.gather(described)[0]
    # The others need not see the run folder.
    nowhere = folder / f"none-{world.rank}"
    job = job or Job(Path(source), nowhere, settings, weights and Path(weights))
    found: dict[str, bool] = {}
    whole = replace(job, run=folder / "whole")

    def note(name: str, each: Job) -> None:
        if world.is_first:
            found[name] = each.results == whole.results

    if world.is_first:
        whole.attempt()
        for n_threads in THREADS:
            torch.set_num_threads(n_threads)
            each = replace(job, run=folder / f"threads-{n_threads}")
            each.attempt()
            torch.set_num_threads(1)
            note(f"1 process, {n_threads} threads", each)
    for size in SIZES:
        each = replace(job, run=folder / f"of-{size}") if world.is_first else job
        if size in worlds:
            each.attempt(world=worlds[size])
        note(f"{size} processes", each)
    world.meet()
    note(f"resumed on {resumed(job, worlds)}", job)
    return found


def resumed(job: Job, worlds: dict[int, World]) -> list[int]:
    """Attempt `job` on changing numbers of processes until it is done; the numbers."""
    sizes: list[int] = []
    for size in cycle(CHANGING):
        sizes.append(size)
        ended = False
        if size in worlds:
            stop = 3 * len(sizes) if worlds[size].rank == size - 1 else None
            try:
                job.attempt(stop, world=worlds[size])
                ended = True
            except Interrupted:
                pass
        if worlds[N_PROCESSES].gather(ended)[0]:
            break
    return sizes


def one(out: Path) -> None:
    """One of the processes."""
    helpers.StopAfter = StopFrom  # type: ignore[misc]
    agreement.MOST_STEPS = 1
    plan.WINDOW_BYTES = 1000
    # As in tests: a few steps of each stage of seeding.
    seeding_plan.MAX_BREATHS, seeding_plan.FINAL_PASSES, seeding_plan.TREE_CLUSTERS = 3, 2, 40
    tree_plan.MAX_EXCHANGES = 1
    torch.set_num_threads(1)
    results: dict[str, Any] = {}
    with joined("cpu", 300) as world, tempfile.TemporaryDirectory() as temporary:
        folder = Path(world.gather(temporary)[0])
        worlds, began = worlds_of(world), time.monotonic()
        for number, (dtype, case) in enumerate(product(DTYPES, CASES)):
            found = compared(case, folder / str(number), dtype, worlds)
            if not world.is_first:
                continue
            results[f"{case.name}, {dtype}"] = found
            unlike = [name for name, same in found.items() if not same]
            print(case.name, dtype, f"DIFFERENT: {unlike}" if unlike else "same", flush=True)
            described = {"fits": len(results), "seconds": round(time.monotonic() - began)}
            text = json.dumps({**environment(), **described, "same": results}, indent=1)
            out.write_text(text + "\n")


def main() -> int:
    """Start the processes, or be one of them."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    if "RANK" in os.environ:
        one(arguments.out)
        return 0
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(N_PROCESSES), "-m", "bench.same_bytes", str(arguments.out)]
    return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    raise SystemExit(main())
