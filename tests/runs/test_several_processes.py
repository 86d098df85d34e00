"""Fits on several real processes: the same bytes, one voice, and one end for all."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import zarr

from tests.distributed.launched import environment, free_port, script
from tests.runs.helpers import RESULTS, clusters, metrics_of, steps_saved
from tests.runs.processes import finish, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

def torchrun(n_processes: int, *words: object) -> list[str]:
    """The command that runs Python with `words` on `n_processes`."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return [*command, "--nproc-per-node", str(n_processes), *map(str, words)]


def fit(*words: object) -> list[str]:
    return [sys.executable, "-m", "streamkm", "fit", *map(str, words)]


def start(command: list[str], folder: Path, **more: str) -> subprocess.Popen[str]:
    """A command in a process of its own; what it and its processes say can be read."""
    return subprocess.Popen(
        command,
        cwd=folder,
        env=environment(TMPDIR=str(folder), **more),  # torchrun leaves folders there
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


#: Stops attempts on 1, 3, 2, 1, ... processes ever later, and compares with a run that none stopped.
#: Worlds of fewer processes than are started are groups of the first of them.
RESUMED = """
from dataclasses import replace
from pathlib import Path
from streamkm.runs.engine import agreement
from streamkm.stream import plan
from tests.runs.engine.cases import CASES
from tests.runs import helpers
from tests.runs.helpers import Job

class StopFrom(helpers.StopAfter):
    @property
    def signal_name(self):
        self.looks += 1
        return "SIGTERM" if self.n and self.looks >= self.n else None

    @signal_name.setter
    def signal_name(self, value):
        pass

helpers.StopAfter = StopFrom
agreement.MOST_STEPS = 1
plan.WINDOW_BYTES = 1000
NAMES = sys.argv[2:]

def attempts(case, folder, worlds, first):
    rank = worlds[3].rank
    made = None
    if rank == 0:
        folder.mkdir()
        job = case.job(folder)
        whole = replace(job, run=folder / "whole")
        whole.attempt()
        made = [str(job.source), job.settings, job.weights and str(job.weights)]
    source, settings, weights = worlds[3].gather(made)[0]
    if rank:  # They need not see the run folder.
        run = folder / f"none-{rank}"
        job = Job(Path(source), run, settings, weights and Path(weights))
    sizes = []
    while True:
        size = (1, 3, 2)[(first + len(sizes)) % 3]
        ended = False
        if rank < size:
            # One of them is asked to stop.
            stop = 3 + 4 * len(sizes) if rank == size - 1 else None
            try:
                job.attempt(stop, world=worlds[size])
                ended = True
            except Interrupted:
                pass
        sizes.append(size)
        if worlds[3].gather(ended)[0]:
            break
    job.attempt(world=worlds[3])  # It is finished: nothing is left to do.
    worlds[3].barrier()
    if rank == 0:
        same = job.results == whole.results
        print(case.name, "on", sizes, "SAME" if same else "DIFFERENT", flush=True)
    else:
        assert not job.run.exists()

def main():
    with joined("cpu", 30) as w:
        two = dist.new_group([0, 1])
        worlds = {1: ALONE, 3: w}
        if w.rank < 2:
            worlds[2] = World(w.rank, w.local_rank, w.hosts[:2], group=two)
        for first, name in enumerate(NAMES):
            case = next(case for case in CASES if case.name == name)
            attempts(case, Path(sys.argv[1]) / str(first), worlds, first)

ends(main)
"""
NAMES = [
    "minibatch",
    "minibatch, k-means||, cosine",
    "minibatch, z-score",
    "minibatch, min-max, drop",
    "minibatch, weighted, starved clusters",
    "lloyd, weighted, cosine",
    "lloyd, z-score, drop",
    "lloyd, empty clusters",
]


# Breaks when what a checkpoint holds, or what a process goes on with, depends on how many there
# are; or when another process than the first needs the run folder.
def test_the_number_of_processes_may_change_at_every_attempt(tmp_path):

    words = [script(tmp_path, RESUMED), tmp_path, *NAMES]
    done = start(torchrun(3, *words), tmp_path)
    said, errors = done.communicate(timeout=180)
    assert done.returncode == 0, errors
    lines = [line for line in said.splitlines() if " on [" in line]
    assert [line.partition(" on [")[0] for line in lines] == NAMES
    for line in lines:
        assert line.endswith("SAME"), line
        assert {"1", "2", "3"} <= set(re.findall(r"[123]", line.rpartition("[")[2])), line
