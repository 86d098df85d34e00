"""The kernel of a run: what it is given to do, and what is said of it."""

from __future__ import annotations

from collections import Counter
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from streamkm import KMeans
from streamkm.clustering.carried import CarriedRows
from streamkm.config import ExecutionConfig, FitConfig
from streamkm.errors import DeviceError
from streamkm.kernels import instruction_sets, resolve_kernel
from streamkm.kernels.cpu import CpuKernel
from streamkm.runs.engine.labelling import Labelling
from streamkm.runs.engine.run_kernel import RunKernel
from streamkm.runs.fit import plan_fit
from streamkm.runs.in_memory import label_rows
from streamkm.runs.planning import fit_plan
from streamkm.runs.planning.environment import describe_kernel
from streamkm.sources import open_source
from streamkm.sources.memory import MemorySource
from tests.kernels.contract import normal
from tests.runs.helpers import Job, metrics_of, predicted

CPU = torch.device("cpu")


# Breaks when a run copies rows out of its windows all the same: what it finds does not tell.
def test_runs_leave_rows_where_they_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(tmp_path / "x.npy", normal(400, 6, dtype=torch.float32, device=CPU).numpy())
    job = Job(tmp_path / "x.npy", tmp_path / "run", {"k": 3, "epochs": 2, "batch_rows": 90})
    n_rows: Counter[str] = Counter()
    take = CpuKernel.assign_in_place

    def counting(kernel, x_ND, positions_B, *args, **options):
        found = take(kernel, x_ND, positions_B, *args, **options)
        n_rows["in order" if positions_B is None else "by position"] += len(found.labels_B)
        return found

    monkeypatch.setattr(CpuKernel, "assign_in_place", counting)
    job.attempt(kernel="cpu")
    assert n_rows == {"by position": 2 * 400, "in order": 400}  # The pass that closes a run.
    n_rows.clear()
    predicted(job.run, job.source, tmp_path / "labels.npy", kernel="cpu")
    assert n_rows == {"in order": 400}


# Breaks when a run takes its folder before it knows that its kernel runs.
def test_a_kernel_that_does_not_run_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", normal(40, 3, dtype=torch.float32, device=CPU).numpy())
    job = Job(tmp_path / "x.npy", tmp_path / "run", {"k": 3})
    job.run.mkdir()
    with pytest.raises(DeviceError, match="kernel='triton' needs a CUDA GPU"):
        job.attempt(kernel="triton")
    assert not list(job.run.iterdir())


# Breaks when a run keeps to itself what `auto` took, or how many rows were scored again.
def test_a_run_tells_its_kernel_and_the_share_of_rows_in_doubt(tmp_path, capsys) -> None:
    # More clusters than there are rows that differ: many rows are as far from two centroids.
    rows = np.random.default_rng(0).integers(0, 2, (300, 3)).astype(np.float32)
    np.save(tmp_path / "x.npy", rows)
    job = Job(tmp_path / "x.npy", tmp_path / "run", {"k": 12, "batch_rows": 50})
    with pytest.raises(DeviceError, match="kernel='triton' needs a CUDA GPU, the device is cpu"):
        job.attempt(kernel="triton")
    assert not job.run.exists()
    job.attempt()
    assert describe_kernel("auto", resolve_kernel("auto", CPU)) in capsys.readouterr().err
    shares = [record.get("rechecked_share") for record in metrics_of(job.run)]
    assert any(share is not None and 0 < share < 1 for share in shares)
    assert describe_kernel("auto", "triton") == "kernel triton (auto)"
    assert describe_kernel("triton", "triton", "fast").endswith(
        "labels as screened (precision fast)"
    )


# Breaks when a process reports before it has had a row: those before it were of other processes.
def test_no_share_of_no_rows(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", normal(40, 3, dtype=torch.float32, device=CPU).numpy())
    config, execution = FitConfig(k=2), ExecutionConfig(device="cpu")
    with closing(open_source(tmp_path / "x.npy")) as source:
        kernel = RunKernel(plan_fit(source, config, execution))
    kernel.assigned["train"] += 0
    assert kernel.shares() == {}
    kernel.assigned["train"] += 40
    assert kernel.shares() == {"rechecked_share": 0.0}


# Breaks when what passes leave for the next ones, or for the labels at the end, changes a bit, is
# not recorded, or stays with the estimator; or batches of another order go by it.
@pytest.mark.skipif(not instruction_sets(), reason="the extension was not built")
def test_what_is_carried_changes_no_bit(tmp_path, monkeypatch) -> None:
    rows = normal(3000, 16, dtype=torch.float32, device=CPU).numpy()
    found = []
    for worth in (1, 1 << 40):
        monkeypatch.setattr(fit_plan, "WORTH_PRODUCTS", worth)
        run_dir = tmp_path / str(worth)
        fitted = KMeans(24, init=rows[:24], max_iter=9, random_state=0, run_dir=run_dir).fit(rows)
        found.append((fitted.cluster_centers_, fitted.labels_, fitted.inertia_))
        assert fitted._model.carried is None
        shares = [record.get("spared_share") for record in metrics_of(run_dir)]
        assert (max(share or 0 for share in shares) > 0.1) == (worth == 1)
        labelling = Labelling(fitted._model, MemorySource(rows), ExecutionConfig(device="cpu"))
        labelling.go_by(CarriedRows(order="another"))
        assert labelling._carried is None
    for one, other in zip(*found, strict=True):
        np.testing.assert_array_equal(one, other)


# Breaks when a fit fails at its end for want of memory that only saves time, or that is never used.
@pytest.mark.skipif(not instruction_sets(), reason="the extension was not built")
@pytest.mark.parametrize("is_huge", [True, False])
def test_what_is_carried_is_freed_where_memory_does_not_hold_it(is_huge, monkeypatch) -> None:
    rows = normal(300, 4, dtype=torch.float32, device=CPU).numpy()
    model, execution = KMeans(3, random_state=0).fit(rows)._model, ExecutionConfig(device="cpu")
    labels, inertia = label_rows(model, MemorySource(rows), execution, nan="error")
    order = Labelling(model, MemorySource(rows), execution)._reading if is_huge else "another"
    carried = CarriedRows(order)
    carried.begin_pass_(model.centroids_KD)
    kept = carried.of_batch(0, 300)
    assert kept is not None
    carried.take(0, kept, 3)
    monkeypatch.setattr(CarriedRows, "n_bytes", 1 << 60)
    again = label_rows(replace(model, carried=carried), MemorySource(rows), execution, nan="error")
    np.testing.assert_array_equal(again[0], labels)
    assert again[1] == inertia
    assert not carried._kept
