"""Real processes, killed and stopped at random moments: the files become the same."""

from __future__ import annotations

import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from tests.runs.helpers import Job, clusters
from tests.runs.partitioning.test_partition import written
from tests.runs.processes import finish, kill, run, start


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rows", "sort", "memory"),
    [("npy", "row", "105MiB"), ("npy", "distance", "105MiB"), ("zarr", "row", "125MiB"),
     ("parquet", "row", "105MiB")],
)  # fmt: skip
def test_killed_again_and_again(rows, sort, memory, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", clusters(250_000, 16, n_clusters=40))
    Job(tmp_path / "x.npy", tmp_path / "run", {"k": 300, "closing_pass": False}).attempt()
    arguments = (
        "partition", tmp_path / "run", tmp_path / "x.npy", "--rows", rows, "--sort", sort,
        "--max-host-memory", memory, "--checkpoint-every", "3", "--resume", "--out",
    )  # fmt: skip
    began = time.monotonic()
    status, said = run(*arguments, tmp_path / "whole")
    assert status == 0, said
    spent = time.monotonic() - began
    draws = np.random.default_rng(len(rows) + len(sort))
    out, n_killed = tmp_path / "killed", 0
    for attempt in range(12):
        process = start(*arguments, out)
        time.sleep(spent * draws.uniform(0.5, 1.0))
        if attempt % 3 == 2:
            process.send_signal(signal.SIGTERM)
            status, said = finish(process)
            assert status in (0, 75, -signal.SIGTERM), said
            assert "Traceback" not in said
        elif kill(process):
            n_killed += 1
        if (out / "partition.json").exists() and not (out / "unfinished").exists():
            break
    status, said = run(*arguments, out)
    assert status == 0, said
    assert written(out) == written(tmp_path / "whole")
    shutil.rmtree(tmp_path)
