"""The kernels of a run: what they are given to do."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from streamkm.kernels.cpu import CpuKernel
from tests.kernels.contract import normal
from tests.runs.helpers import Job, predicted

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
