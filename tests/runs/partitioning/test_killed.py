"""Processes that are killed and power that goes, at any moment: the files become the same."""

from __future__ import annotations

import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from tests.runs.faults import RecordingDisk, digest, images, restore
from tests.runs.helpers import Job, clusters
from tests.runs.partitioning.conftest import group
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


# Breaks when something has its final name, or is claimed by a cursor, before it is on disk.
@pytest.mark.parametrize("rows", ["npy", "parquet"])
@pytest.mark.usefixtures("small_windows")
def test_power_may_go_at_any_call(rows, way, fitted, quick_path, monkeypatch) -> None:
    monkeypatch.setattr("streamkm.runs.partitioning.gathered.MOST_WRITERS", 1)
    job = (fitted / "run", fitted / "x.zarr")
    (quick_path / "disk").mkdir()
    disk = RecordingDisk(quick_path / "disk")
    with disk.mounted():
        group(*job, quick_path / "disk" / "p", rows=rows)
        disk.finish()
    expected = written(quick_path / "disk" / "p")
    seen = set()
    for number, moment in enumerate(disk.moments):
        for name, image in images(moment, seed=number, n_random=1):
            key = digest(image, moment.root)
            # Of the other images every 17th moment's: each is a partition of its own.
            if key in seen or (number % 17 and name != "names lost, contents kept"):
                continue
            seen.add(key)
            after, what = quick_path / "after", f"before call {number}, {moment.call}: {name}"
            restore(image, moment.root, after)
            for path in (after / "p").glob("*.npy"):
                assert path.read_bytes() == expected[path.name], what
            group(*job, after / "p", rows=rows)
            assert written(after / "p") == expected, what
            shutil.rmtree(after)
    assert len(seen) > 30
