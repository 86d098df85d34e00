"""What a partition takes is planned before a row is read, and told by a dry run."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from streamkm.config import ExecutionConfig
from streamkm.errors import MemoryBudgetError
from streamkm.runs.engine.labelling import Labelling, plan_labelling
from streamkm.runs.partitioning.grouping import Grouping
from streamkm.runs.partitioning.planning import PartitionPlan, plan_partition
from streamkm.runs.storage.model import load_model
from streamkm.sources import ArraySpec, open_source
from tests.runs import processes
from tests.runs.helpers import Job, cli
from tests.runs.partitioning.conftest import group

MIB = 1 << 20


def planned(
    n_rows: int, n_features: int, k: int, memory: int, *, drops: bool = False, **grouping: Any
) -> PartitionPlan:
    spec = ArraySpec(n_rows, n_features, "float32", 1 << 13, "npy, C order", scratch_bytes=4 * MIB)
    execution = ExecutionConfig(max_host_memory=memory)
    return plan_partition(spec, k, execution, Grouping(**grouping), drops=drops)


@pytest.mark.parametrize("memory", [180, 512, 4096])
@pytest.mark.parametrize("n_rows", [1000, 10**6, 40 * 10**6, 10**9])
@pytest.mark.parametrize("k", [1, 1000, 20_000])
@pytest.mark.parametrize("rows", [None, "npy", "zarr", "parquet"])
def test_the_plan_keeps_to_the_budget(rows, k, n_rows, memory) -> None:
    plan = planned(n_rows, 64, k, memory * MIB, rows=rows)
    assert plan.memory.total_bytes <= memory * MIB
    for each in (*plan.order, *([plan.rows] if plan.rows else [])):
        assert each.gather_rows * (each.width + 48) <= plan.gather_bytes
        assert each.bucket_rows <= each.gather_rows


def test_ten_gigabytes_in_half_of_one() -> None:
    plan = planned(40 * 10**6, 64, 1000, 512 * MIB, rows="npy")
    assert plan.rows is not None
    assert plan.rows.is_direct  # Each row is read and written once.
    assert "each cluster's share written to its place" in plan.passes
    many = planned(40 * 10**6, 64, 100_000, 512 * MIB, rows="npy")
    assert many.rows is not None
    assert many.rows.n_buckets > 1
    assert f"read and written twice, by way of {many.rows.n_buckets:,} buckets" in many.passes


def test_a_budget_that_is_too_small_is_refused() -> None:
    with pytest.raises(MemoryBudgetError, match="give at least"):
        planned(10**6, 64, 10, 40 * MIB)


# Breaks when labelling needs more than grouping, and the run is refused after a dry run praised it.
@pytest.mark.parametrize("n_clusters", [2, 2000])
def test_the_remedy_is_enough_for_every_step(n_clusters, tmp_path, capsys) -> None:
    x = np.random.default_rng(0).normal(size=(6000, 512)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    init = {"init": "random", "epochs": 1, "k": n_clusters}
    Job(tmp_path / "x.npy", tmp_path / "run", init).attempt()
    job = ("partition", tmp_path / "run", tmp_path / "x.npy", "--out", tmp_path / "p", "--rows=npy")
    capsys.readouterr()
    enough = ""
    for options in (("--dry-run",), ()):
        assert cli(*job, "--max-host-memory", "50MiB", *options) == 2
        enough = capsys.readouterr().err.strip().rpartition(" ")[2]
        assert cli(*job, "--max-host-memory", enough, "--dry-run") == 0
        less = f"{int(enough.removesuffix('MiB')) - 1}MiB"
        assert cli(*job, "--max-host-memory", less, "--dry-run") == 2
        assert cli(*job, "--max-host-memory", less) == 2
        assert f"give at least --max-host-memory {enough}" in capsys.readouterr().err
    assert cli(*job, "--max-host-memory", enough) == 0


# Breaks when the labelling takes other memory than its plan says.
@pytest.mark.parametrize("memory", [200 * MIB, None])
def test_labelling_is_planned_as_it_is_done(memory, fitted) -> None:
    source = open_source(fitted / "x.npy")
    execution = ExecutionConfig(device="cpu", max_host_memory=memory)
    model = load_model(fitted / "run")
    done = Labelling(model, source, execution).memory
    assert plan_labelling(source.spec, model, execution) == done
    source.close()


def test_space_by_hand() -> None:
    # Labels of 4 bytes, an order of 8, rows of 256.
    plan = planned(10**6, 64, 1000, 8192 * MIB, rows="npy")
    assert plan.most_bytes == plan.least_bytes == 10**6 * (4 + 8 + 256)
    assert planned(10**6, 64, 10, 8192 * MIB, rows="npy", drops=True).least_bytes == 0
    assert planned(10**6, 64, 10, 8192 * MIB, rows="zarr").least_bytes == 0
    assert planned(10**6, 64, 10, 8192 * MIB, only=(1,)).least_bytes == 0
    # In buckets each row lies beside its place, 8 bytes, until it is written.
    many = planned(40 * 10**6, 64, 100_000, 512 * MIB, rows="npy")
    assert many.most_bytes == 40 * 10**6 * (4 + 8 + 256 + 256 + 8)
    # By distance: distances, the places of rows, and two files of 16 bytes while it is sorted.
    by_distance = planned(10**6, 64, 10, 8192 * MIB, sort="distance")
    assert by_distance.most_bytes == 10**6 * (4 + 4 + 8 + 32)


def test_a_dry_run_writes_nothing(fitted, tmp_path, capsys) -> None:
    job = ("partition", fitted / "run", fitted / "x.npy", "--out", tmp_path / "p", "--dry-run")
    assert cli(*job, "--rows", "npy", "--sort", "distance") == 0
    said = capsys.readouterr().out
    for word in ("memory", "passes", "disk", "two sorts by distance", "6 centroids"):
        assert word in said
    assert not (tmp_path / "p").exists()
    group(fitted / "run", fitted / "x.npy", tmp_path / "p")
    assert cli(*job) == 2
    assert "add --resume" in capsys.readouterr().err
    assert cli(*job, "--resume") == 0
    assert "nothing is left to do" in capsys.readouterr().out
    assert cli(*job, "--resume", "--rows", "zarr") == 2
    assert "other settings (rows: None -> zarr)" in capsys.readouterr().err


# Breaks when a partition takes memory that the plan does not know of.
@pytest.mark.slow
@pytest.mark.parametrize("rows", ["npy", "parquet"])
def test_memory_stays_within_the_budget(rows, tmp_path) -> None:
    x = np.random.default_rng(0).normal(size=(1_200_000, 64)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)  # 300 MB
    np.save(tmp_path / "labels.npy", np.random.default_rng(1).integers(200, size=len(x)))
    np.save(tmp_path / "few.npy", x[:2000])
    Job(tmp_path / "few.npy", tmp_path / "run", {"k": 200}).attempt()
    program = """
import json, resource, sys
import torch, pyarrow.parquet
from streamkm.cli import main
from streamkm.runs.partitioning import parquet_rows, partition
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
before = peak()
assert main(sys.argv[1:]) == 0
print(json.dumps(peak() - before))
"""
    arguments = (
        "partition", tmp_path / "run", tmp_path / "x.npy", "--labels", tmp_path / "labels.npy",
        "--out", tmp_path / "p", "--rows", rows, "--max-host-memory", "200MiB",
    )  # fmt: skip
    taken = json.loads(processes.program(program, *arguments))
    assert taken <= 200 * MIB
