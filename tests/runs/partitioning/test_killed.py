"""Processes that are killed and power that goes, at any moment: the files become the same."""

from __future__ import annotations

import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from tests.distributed.launched import by_hand, script
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


SHARED = """
from pathlib import Path
import pytest
from streamkm.stream import plan
from tests.runs.partitioning.conftest import go, group
from tests.runs.shared_labels import StopsAt

def main():
    kill = lambda: os.kill(os.getpid(), signal.SIGKILL)
    with joined("cpu", 3) as w, pytest.MonkeyPatch.context() as patch:
        go("buckets", patch)
        patch.setattr(plan, "WINDOW_BYTES", 1000)
        patch.setattr("streamkm.runs.partitioning.work.MOST_BATCHES", 1)
        stop = StopsAt({looks}, w.rank == 1, kill)
        patch.setattr("tests.runs.partitioning.conftest.StopAfter", lambda _: stop)
        run = Path({fitted!r}) / "run" if w.is_first else Path("nowhere")
        group(run, Path({fitted!r}) / "x.zarr", Path({out!r}), rows="npy", world=w)

ends(main)
"""


# Breaks when processes of their own, one of them killed, do not write what one does: labels too.
@pytest.mark.usefixtures("small_windows", "only_buckets")
def test_real_processes_share_it_after_one_was_killed(fitted, tmp_path) -> None:
    def attempt(size: int, looks: int) -> list[int]:
        body = SHARED.format(fitted=str(fitted), out=str(tmp_path / "many"), looks=looks)
        ends = by_hand(script(tmp_path, body), list(range(size)), size)
        return [end.status for end in ends]

    assert attempt(2, 14) == [1, -9]
    assert (tmp_path / "many" / "labels.npy").exists()
    assert attempt(3, 10**6) == [0, 0, 0]
    group(fitted / "run", fitted / "x.zarr", tmp_path / "alone", rows="npy")
    made, expected = (written(tmp_path / name) for name in ("many", "alone"))
    assert made == expected


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
