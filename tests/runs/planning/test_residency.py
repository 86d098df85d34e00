"""What stays in memory: within the budgets, said beforehand, and never of use to a single pass."""

from __future__ import annotations

import re
from contextlib import closing
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
import zarr

from streamkm.config import ExecutionConfig, FitConfig
from streamkm.errors import Interrupted
from streamkm.machine import available_memory
from streamkm.runs.fit import plan_fit
from streamkm.runs.planning import residency
from streamkm.runs.planning.device_memory import DeviceMemoryPlan
from streamkm.runs.planning.memory import MemoryPlan, plan_memory
from streamkm.runs.planning.residency import plan_residency
from streamkm.sources import open_source
from streamkm.sources.memory import MemorySource
from streamkm.sources.zarr.direct import DirectReader
from streamkm.stream.plan import plan_reading
from streamkm.stream.slots import StreamMemory
from streamkm.stream.tensor_source import TensorSource
from tests.runs.helpers import Job, clusters
from tests.stream.helpers import FakeSource

if TYPE_CHECKING:
    from pathlib import Path

MIB = 1 << 20
#: 1 GiB in blocks of 1 MiB, so that a unit is a window of 64 MiB.
LARGE = FakeSource(1 << 20, n_features=256, block_rows=1 << 10)


def planned(host: int | None, device: int | None = None, n_passes: int = 2):
    reading = plan_reading(LARGE.spec, batch_rows=1000, seed=0)
    execution = ExecutionConfig(max_host_memory=host and host * MIB, read_threads=1)
    memory = plan_memory(LARGE.spec, reading, execution, fixed_bytes=0)
    on_device = None if device is None else DeviceMemoryPlan(MIB, 0, (device + 2) * MIB)
    return memory, plan_residency(LARGE, reading, execution, memory, on_device, n_passes=n_passes)


@pytest.mark.parametrize(
    ("host", "device", "said"),
    [
        (2000, None, "1.0 GiB in host memory (all 1,048,576 rows)"),
        (200, None, "nothing; each pass reads 1.0 GiB"),
        (460, None, "256.0 MiB in host memory (25% of the rows), REST 768.0 MiB"),
        (460, 520, ("512.0 MiB on the device (50% of the rows), 256.0 MiB in host memory (25% of "
                   "the rows), REST 256.0 MiB")),
        (460, 5000, "1.0 GiB on the device (all 1,048,576 rows)"),
    ],
)  # fmt: skip
def test_what_is_left_of_the_budgets_keeps_rows(host, device, said):
    memory, plan = planned(host, device)
    assert str(plan) == said.replace("REST", "each pass reads the other")
    assert memory.total_bytes + plan.host.kept_rows * 1024 <= memory.budget


# Breaks when a run takes the memory that other programs are using, because nobody set a limit.
def test_without_a_limit_half_of_what_is_free_is_left(monkeypatch):
    assert available_memory() > 0
    monkeypatch.setattr(residency, "available_memory", lambda: 600 * MIB)
    assert planned(None)[1].host.kept_rows * 1024 == 256 * MIB


def test_one_pass_and_rows_in_memory_keep_nothing():
    assert planned(2000, n_passes=1)[1] is None
    x = np.ones((10, 2), np.float32)
    for source in (MemorySource(x), TensorSource(torch.ones(10, 2))):
        reading = plan_reading(source.spec, batch_rows=5, seed=0)
        memory = MemoryPlan(StreamMemory(1, 10, 80, 1), 0, 0, MIB)
        assert plan_residency(source, reading, ExecutionConfig(), memory, None, n_passes=9) is None


# Breaks when rows from memory come in another order, or are those of another block; when they are
# read again; or when an attempt that is resumed sees others. Windows are few blocks, and some of
# the rows stay, so that windows are mixed.
@pytest.mark.usefixtures("small_windows")
@pytest.mark.parametrize("algorithm", ["minibatch", "lloyd"])
def test_what_stays_does_not_change_the_result(
    algorithm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    path = tmp_path / "x.zarr"
    zarr.create_array(path, data=clusters(4000, 30), chunks=(100, 30))
    settings = {"k": 5, "algorithm": algorithm, "epochs": 4, "batch_rows": 300, "tol": 0.0}
    spec = open_source(path).spec
    found: list[dict[str, bytes]] = []
    read: list[int] = []
    original = DirectReader.read_rows

    def counting(reader, name, reads, out):
        read[-1] += len(out)
        original(reader, name, reads, out)

    monkeypatch.setattr(DirectReader, "read_rows", counting)
    for share in (0.0, 0.4, 1.0):
        read.append(0)
        free = int(share * spec.nbytes) + 1000
        monkeypatch.setattr(residency, "available_memory", lambda free=free: 2 * free)
        job = Job(path, tmp_path / f"{share}", settings)
        with pytest.raises(Interrupted, match=r"stopped by SIGTERM; .*step-"):
            job.attempt(40, read_threads=2)
        job.attempt(read_threads=1)
        found.append(job.results)
        said = re.search("stays in memory once it was read: (.*)", capsys.readouterr().err)
        assert said
        assert ("nothing" in said[1], "all" in said[1]) == (share == 0, share == 1)
    assert found[0] == found[1] == found[2]
    assert read[2] < read[1] < read[0]
    # Two attempts: each reads what stays once, and a sample.
    assert read[2] <= 4 * spec.n_rows


# Breaks when seeds are looked for with memory that is kept for passes that never come.
def test_seeding_alone_keeps_rows_for_its_own_passes(tmp_path):
    np.save(tmp_path / "x.npy", clusters(300, 3))
    with closing(open_source(tmp_path / "x.npy")) as source:
        for init, keeps in (("auto", False), ("k-means||", True)):
            config = FitConfig(k=3, init=init, epochs=5)
            plans = [plan_fit(source, config, ExecutionConfig(), trains=t) for t in (True, False)]
            assert [plan.resident is not None for plan in plans] == [True, keeps]
