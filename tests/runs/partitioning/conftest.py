"""Partitions in this process, in every way that rows can be moved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from streamkm.config import ExecutionConfig
from streamkm.distributed.world import ALONE, World
from streamkm.runs.partitioning import gathered, planning
from streamkm.runs.partitioning.grouping import Grouping
from streamkm.runs.partitioning.partition import partition
from streamkm.sources import open_source
from tests.runs.helpers import Job, StopAfter, clusters, every

N_ROWS, K = 240, 6

#: Bytes that are gathered, and of a cluster's share from which on it goes to its place at once.
WAYS = {"memory": (1 << 30, 1 << 30), "direct": (3000, 1), "buckets": (3000, 1 << 30)}


@pytest.fixture(scope="session")
def fitted(tmp_path_factory) -> Path:
    """A folder with 240 rows, x.npy and x.zarr, and a run of 6 clusters of them."""
    folder: Path = tmp_path_factory.mktemp("fitted")
    x = clusters(N_ROWS, 4)
    np.save(folder / "x.npy", x)
    zarr.create_array(folder / "x.zarr", data=x, chunks=(20, 4))
    Job(folder / "x.npy", folder / "run", {"k": K, "epochs": 1}).attempt()
    return folder


@pytest.fixture(params=WAYS)
def way(request, monkeypatch) -> str:
    """One way to move rows, for rows as few as these."""
    go(request.param, monkeypatch)
    return str(request.param)


@pytest.fixture
def only_buckets(monkeypatch) -> None:
    """Rows go by way of buckets."""
    go("buckets", monkeypatch)


def go(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    memory, direct = WAYS[way]
    monkeypatch.setattr(gathered, "DIRECT_BYTES", direct)
    if way != "memory":
        monkeypatch.setattr(planning, "MOST_GATHERED", 0)
        monkeypatch.setattr(planning, "LEAST_GATHERED", memory)
        monkeypatch.setattr(planning, "ENOUGH_GATHERED", memory)
        monkeypatch.setattr(planning, "_SHARE_BYTES", 1)


def group(
    run: Path,
    source: Path,
    out: Path,
    stop_at: int | None = None,
    *,
    resume: bool = True,
    world: World = ALONE,
    **grouping: Any,
) -> dict[str, Any]:
    """One attempt at a partition."""
    rows = open_source(source)
    try:
        return partition(
            run,
            rows,
            ExecutionConfig(device="cpu", checkpoint_every=every(2)),
            out,
            Grouping(**grouping),
            resume=resume,
            stop_request=StopAfter(stop_at),
            quiet=True,
            world=world,
        )
    finally:
        rows.close()
