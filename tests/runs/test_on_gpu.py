"""Whole runs on a CUDA device: the same labels as the CPU's, the same bits after any stop."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.runs.helpers import Job, clusters, every, metrics_of, predicted

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
DEVICE = "cuda"


def job_in(folder: Path, dtype: str, **settings: object) -> Job:
    rows = clusters(3000, 24)
    stored = rows if dtype.startswith("float") else (rows * 8 + 100).clip(0, 250)
    np.save(folder / "x.npy", stored.astype(dtype))
    return Job(folder / "x.npy", folder / "run", {"k": 7, "batch_rows": 200, "seed": 3, **settings})


# Breaks when a dtype cannot be gathered or widened on the device, or labels are not exact there.
@pytest.mark.parametrize("kernel", ["auto", "reference"])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "uint8", "int8", "uint16"])
def test_labels_are_those_of_the_cpu(tmp_path: Path, dtype: str, kernel: str) -> None:
    job = job_in(tmp_path, dtype)
    job.attempt(device=DEVICE, kernel=kernel)
    on_gpu = predicted(job.run, job.source, tmp_path / "gpu.npy", device=DEVICE, kernel=kernel)
    on_cpu = predicted(job.run, job.source, tmp_path / "cpu.npy", device="cpu")
    assert np.array_equal(on_gpu, on_cpu)


# Breaks when anything on the device depends on time: windows in slots, sums, the queue.
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"algorithm": "lloyd", "epochs": 4, "tol": 0.0},
        {"metric": "cosine"},
        {"scale": "zscore"},
    ],
    ids=str,
)
def test_a_stopped_run_ends_with_the_same_bits(tmp_path: Path, settings: dict[str, object]) -> None:
    (tmp_path / "whole").mkdir()
    whole = job_in(tmp_path / "whole", "float32", **settings)
    whole.attempt(device=DEVICE)
    stopped = Job(whole.source, tmp_path / "run", whole.settings)
    for stop_at in (2, 9, 14):
        stopped.interrupted(stop_at, device=DEVICE, checkpoint_every=every(3))
    stopped.attempt(device=DEVICE)
    assert stopped.results == whole.results


# Breaks when the probe touches the run, or does not see the copies.
def test_a_probed_run_is_the_same_run_and_knows_the_link(tmp_path: Path) -> None:
    job = job_in(tmp_path, "float32")
    job.attempt(device=DEVICE)
    probed = replace(job, run=tmp_path / "probed")
    probed.attempt(device=DEVICE, probe=True)
    assert probed.results == job.results
    (found,) = [record for record in metrics_of(probed.run) if record["phase"] == "probe"]
    assert found["rows_per_s"]["copying"] > 0
    assert found["together_rows_per_s"] is None
