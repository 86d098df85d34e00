"""The memory plan: never over budget, and the budget that an error names is enough."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from streamkm.clustering.scaling import RunningMoments, Scaling
from streamkm.clustering.sizing import initial_sizes
from streamkm.clustering.state import initial_state
from streamkm.config import ExecutionConfig, FitConfig
from streamkm.errors import ConfigError, MemoryBudgetError
from streamkm.machine import MemoryLimit
from streamkm.runs.engine.snapshot import Cursor, Snapshot
from streamkm.runs.fit import plan_fit
from streamkm.runs.planning import memory
from streamkm.runs.planning.checks import check_fit
from streamkm.runs.planning.memory import (
    carried_bytes,
    checkpoint_bytes,
    fit_bytes,
    greatest_k,
    plan_memory,
    predict_bytes,
)
from streamkm.sources.base import ArraySpec
from streamkm.stream.plan import plan_reading
from streamkm.text import parse_bytes
from tests.runs.helpers import Job, clusters
from tests.stream.helpers import FakeSource

if TYPE_CHECKING:
    from streamkm.runs.planning.fit_plan import FitPlan

specs = st.builds(
    ArraySpec,
    n_rows=st.integers(1, 10**9),
    n_features=st.integers(1, 4096),
    dtype=st.sampled_from(["uint8", "float16", "float32", "float64"]),
    block_rows=st.integers(1, 10**5),
    layout=st.just("test"),
    scratch_bytes=st.integers(0, 1 << 26),
)
FIXED = 100 << 20


def planned(spec: ArraySpec, budget: int, threads: int = 4, fixed: int = FIXED):
    plan = plan_reading(spec, batch_rows=1000, seed=0)
    execution = ExecutionConfig(max_host_memory=budget, read_threads=threads)
    return plan_memory(spec, plan, execution, fixed_bytes=fixed)


def least_of(error: MemoryBudgetError) -> int:
    found = re.search(r"at least max_host_memory='(\d+MiB)'$", str(error))
    assert found
    assert error.for_command_line.endswith(f"; give at least --max-host-memory {found[1]}")
    return parse_bytes(found[1])


@given(specs, st.integers(1, 1 << 36), st.integers(1, 64))
def test_a_plan_is_within_its_budget_and_has_a_slot_and_a_reader(spec, budget, threads):
    try:
        memory = planned(spec, budget, threads)
    except MemoryBudgetError:
        return
    stream = memory.stream
    assert memory.total_bytes <= budget
    assert stream.n_slots >= 1
    assert 1 <= stream.n_readers <= threads
    assert stream.slot_bytes == stream.slot_rows * spec.row_bytes
    needed = FIXED + stream.n_slots * stream.slot_bytes + stream.n_readers * spec.scratch_bytes
    assert memory.total_bytes == needed


@given(specs, st.integers(1, 64))
def test_the_least_budget_that_an_error_names_is_enough_and_little_more(spec, threads):
    with pytest.raises(MemoryBudgetError) as caught:
        planned(spec, 1, threads)
    least = least_of(caught.value)
    memory = planned(spec, least, threads)
    assert least - memory.total_bytes < 1 << 20 or memory.stream.n_slots > 1
    one_slot = FIXED + memory.stream.slot_bytes + spec.scratch_bytes
    assert planned(spec, one_slot, threads).total_bytes == one_slot
    with pytest.raises(MemoryBudgetError):
        planned(spec, one_slot - 1, threads)


@given(specs, st.integers(0, 1 << 32), st.integers(0, 1 << 32), st.integers(1, 32))
def test_more_memory_never_gives_fewer_slots_or_readers(spec, beyond, more, threads):
    window_rows = plan_reading(spec, batch_rows=1000, seed=0).window_rows
    budget = FIXED + window_rows * spec.row_bytes + spec.scratch_bytes + beyond
    small = planned(spec, budget, threads).stream
    large = planned(spec, budget + more, threads).stream
    assert large.n_slots >= small.n_slots
    assert large.n_readers >= small.n_readers


# Breaks when the lists of very many clusters are left out of the plan, or a fit that memory does
# not hold is not refused with what would do.
def test_a_tree_of_a_million_clusters_is_planned_or_refused():
    spec = ArraySpec(10**9, 64, "float32", 4096, "test")
    config = FitConfig(k=10**6, algorithm="tree").resolved(spec.n_rows, spec.n_features)
    plan = plan_reading(spec, batch_rows=config.batch_rows, seed=0)
    needed = fit_bytes(spec, plan, config, on_host=True)
    plan = plan_reading(spec, batch_rows=16384, seed=0)
    exact, fast = (predict_bytes(spec, plan, 10**6, n, on_host=True) for n in (0, 2000))
    # Eight lists a cluster, in whole numbers of 8 bytes.
    assert fast - exact > 8 * 8 * 10**6
    with pytest.raises(MemoryBudgetError) as caught:
        planned(spec, 8 << 30, fixed=needed)
    assert least_of(caught.value) > needed


# Breaks when weights are read into slots that were planned without them.
@given(specs, st.integers(1, 16))
def test_weights_are_part_of_the_plan(spec, threads):
    plan = plan_reading(spec, batch_rows=1000, seed=0)
    execution = ExecutionConfig(max_host_memory=1 << 40, read_threads=threads)
    bare, weighted = (
        plan_memory(spec, plan, execution, fixed_bytes=FIXED, weighted=weighted)
        for weighted in (False, True)
    )
    assert weighted.stream.weighted
    extra = weighted.stream.slot_bytes - bare.stream.slot_bytes
    assert 8 * plan.window_rows <= extra < 8 * plan.window_rows + 8
    assert weighted.reader_bytes == bare.reader_bytes + 8 * plan.block_rows
    config = FitConfig(k=3).resolved(spec.n_rows, spec.n_features)
    needed = {
        weighted: fit_bytes(spec, plan, config, on_host=True, weighted=weighted)
        for weighted in (False, True)
    }
    assert needed[True] >= needed[False]


def test_memory_is_used_where_it_helps():
    spec = ArraySpec(10**7, 100, "float32", 20000, "test", scratch_bytes=8 << 20)
    shapes = [planned(spec, m << 20).stream for m in (200, 250, 300, 5000)]
    assert (shapes[0].n_slots, shapes[0].n_readers) == (1, 1)
    assert shapes[1].n_slots == 2
    assert (shapes[-1].n_slots, shapes[-1].n_readers) >= (3, 4)


def test_what_a_run_takes_grows_with_what_it_does():
    def needed(k: int, n_features: int, dtype: str = "float32") -> int:
        spec = ArraySpec(10**6, n_features, dtype, 4096, "test")
        plan = plan_reading(spec, batch_rows=4096, seed=0)
        config = FitConfig(k=k).resolved(10**6, n_features)
        return fit_bytes(spec, plan, config, on_host=True)

    assert needed(10, 8) < needed(1000, 8) < needed(1000, 128) < needed(1000, 128, "float64")
    # Centroids and their float64 sums at the very least.
    assert needed(50_000, 768) > 50_000 * 768 * 12
    spec = ArraySpec(10**6, 8, "float32", 4096, "test")
    plan = plan_reading(spec, batch_rows=4096, seed=0)
    assert predict_bytes(spec, plan, 10, on_host=False) < predict_bytes(
        spec, plan, 10, on_host=True
    )


def test_k_is_at_most_the_rows():
    spec = ArraySpec(7, 2, "float32", 7, "test")
    check_fit(spec, FitConfig(k=7), "x.npy")
    with pytest.raises(ConfigError, match=r"x\.npy has 7, k is 8"):
        check_fit(spec, FitConfig(k=8), "x.npy")


# A plan that made windows fit the budget would change the order of rows, and the result.
@pytest.mark.usefixtures("small_windows")
def test_a_budget_does_not_change_the_result(tmp_path):
    np.save(tmp_path / "x.npy", clusters(5000, 40))
    job = Job(tmp_path / "x.npy", tmp_path / "a", {"k": 5, "batch_rows": 300})
    with pytest.raises(MemoryBudgetError) as caught:
        job.attempt(max_host_memory=1 << 20)
    assert not job.run.exists()
    job.attempt(max_host_memory=least_of(caught.value), read_threads=5)
    roomy = Job(job.source, tmp_path / "b", job.settings)
    roomy.attempt(max_host_memory=1 << 40, read_threads=2)
    assert job.results == roomy.results


def limited(monkeypatch, n_bytes: int, origin: str = "cgroup limit /x/memory.max") -> None:
    limit = partial(MemoryLimit, origin=origin)
    monkeypatch.setattr(memory, "memory_limit", lambda n=1: limit(n_bytes // n))


def plan_by_default(
    budget: int | None = None, *, read_threads: int | None = 1, n_processes: int = 1
) -> memory.MemoryPlan:
    spec = ArraySpec(10**6, 100, "float32", 1000, "test")
    reading = plan_reading(spec, batch_rows=1000, seed=0)
    execution = ExecutionConfig(max_host_memory=budget, read_threads=read_threads)
    return plan_memory(spec, reading, execution, fixed_bytes=FIXED, n_processes=n_processes)


# Breaks when the budget follows the machine: the system ends a job that takes more than its own.
def test_the_budget_is_half_of_what_the_job_may_use(monkeypatch):
    limited(monkeypatch, 1 << 30)
    plan = plan_by_default()
    assert plan.budget == 1 << 29
    assert "of 512.0 MiB host memory (half of the cgroup limit /x/memory.max): " in str(plan)
    # A limit that decides nothing is not named; neither is one that the user went by.
    limited(monkeypatch, 1 << 40)
    assert "of 8.0 GiB host memory: " in str(plan_by_default())
    assert "of 300.0 MiB host memory: " in str(plan_by_default(300 << 20))


def test_a_limit_that_is_too_small_is_named_with_one_that_is_enough(monkeypatch):
    limited(monkeypatch, 60 << 20)
    with pytest.raises(MemoryBudgetError) as caught:
        plan_by_default()
    message = caught.value.for_command_line
    assert message.startswith(
        "this job may use 60.0 MiB (cgroup limit /x/memory.max), and half of that is too small: "
    )
    pattern = r"ask the batch system for at least (\d+)MiB, or give --max-host-memory (\d+)MiB"
    found = re.search(pattern, message)
    assert found
    asked, given = found.groups()
    limited(monkeypatch, int(asked) << 20)
    plan_by_default()
    assert int(given) <= int(asked) // 2 + 1


# Breaks when each process of a machine takes what there is for all of them.
def test_processes_of_one_machine_share_its_memory_and_cores(monkeypatch):
    limited(monkeypatch, 16 << 30)
    monkeypatch.setattr(memory, "n_cores", lambda: 12)
    for n_processes, n_readers in ((1, 12), (3, 4), (16, 1)):
        plan = plan_by_default(read_threads=None, n_processes=n_processes)
        assert plan.budget == (16 << 30) // n_processes // 2
        assert plan.stream.n_readers == n_readers
    # What an option says is for each.
    assert plan_by_default(300 << 20, n_processes=2).budget == 300 << 20
    limited(monkeypatch, 1 << 30)
    with pytest.raises(MemoryBudgetError) as caught:
        plan_by_default(n_processes=50)
    found = re.search(r"for at least (\d+)MiB, or", caught.value.for_command_line)
    assert found
    limited(monkeypatch, int(found[1]) << 20)
    plan_by_default(n_processes=50)


# Breaks when a run begins that the system will end.
def test_a_plan_beyond_the_limit_is_refused(monkeypatch):
    limited(monkeypatch, 100 << 20)
    with pytest.raises(MemoryBudgetError, match=r"more than this job may use, 100.0 MiB \(cgroup"):
        plan_by_default(1 << 30)
    limited(monkeypatch, 100 << 20, "")  # The machine may swap.
    plan_by_default(1 << 30)


# Breaks when what passes leave for the next ones is kept beyond the budget, or is not said.
def test_bounds_of_rows_are_kept_where_they_fit():
    spec = ArraySpec(10**6, 128, "float32", 4096, "test")
    reading = plan_reading(spec, batch_rows=4096, seed=None)
    n_bytes = carried_bytes(spec, reading, 1024)
    assert n_bytes > 8 * 10**6
    memory = planned(spec, 400 << 20)
    carrying = replace(memory, budget=memory.total_bytes + n_bytes).carrying(n_bytes)
    assert carrying.total_bytes == memory.total_bytes + n_bytes
    assert "bounds of rows" in str(carrying)
    short = replace(memory, budget=memory.total_bytes + n_bytes - 1).carrying(n_bytes)
    assert short.total_bytes == memory.total_bytes
    assert "bounds of rows" not in str(short)


# Breaks when a K that is too large is refused without a word on which K is not.
@pytest.mark.parametrize(
    "settings", [{}, {"algorithm": "tree"}, {"init": "k-means||", "max_size": "2x"}], ids=str
)
def test_the_most_clusters_that_fit_are_told(settings: dict[str, Any]) -> None:
    source, execution = FakeSource(10**7, n_features=256), ExecutionConfig(max_host_memory=1 << 30)

    def plan(k: int) -> FitPlan:
        return plan_fit(source, FitConfig(k=k, **settings), execution)

    with pytest.raises(MemoryBudgetError) as caught:
        plan(10**6)
    found = re.search(r"; the most clusters that fit are --k (\d+)$", caught.value.for_command_line)
    assert found
    most = int(found[1])
    assert most > 1000
    plan(most)
    with pytest.raises(MemoryBudgetError):
        plan(most + most // 8)


def test_the_most_clusters_are_found() -> None:
    for most in range(10):
        assert greatest_k(10, lambda k, most=most: k <= most) == most  # type: ignore[misc]


# Breaks when a checkpoint of a GPU takes more of the host than was planned.
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("settings", [{}, {"algorithm": "tree"}, {"max_size": "2x"}], ids=str)
@pytest.mark.parametrize(("k", "n_features"), [(5, 3), (9000, 2)])
def test_no_checkpoint_is_larger_than_was_planned(k, n_features, settings, weighted) -> None:
    source = FakeSource(10**6, n_features=n_features)
    plan = plan_fit(source, FitConfig(k=k, **settings), ExecutionConfig())
    config, here = plan.config, torch.device("cpu")
    moments = RunningMoments.empty(n_features, here)
    state = initial_state(
        torch.zeros(k, n_features), 0.0, weighted=weighted, n_branches=config.n_branches
    )
    sizes = initial_sizes(k, torch.ones(()), here) if config.is_bounded else None
    scaling = Scaling.fit("zscore", "euclidean", moments, torch.float32)
    now = Snapshot(Cursor("train"), moments, scaling=scaling, state=state, sizes=sizes)
    n_bytes = sum(each.nbytes for each in now.tensors().values())
    planned = checkpoint_bytes(source.spec, config, weighted=weighted)
    assert n_bytes <= planned <= 1.2 * n_bytes + 4096
