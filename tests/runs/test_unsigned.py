"""Rows of wide unsigned integers, of which torch does little on a GPU: found out without one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode

from tests.runs.helpers import Job, predicted

#: What a GPU does with uint16, uint32 and uint64, beside taking slices.
THERE = {"copy_", "double", "index_select", "is_floating_point", "__len__", "__get__"}


class AsOnGpu(TorchFunctionMode):
    """Refuses what torch has no code for on a GPU."""

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        first = args[0] if args else None
        if isinstance(first, torch.Tensor) and first.dtype in (torch.uint16, torch.uint32):
            is_sliced = func is torch.Tensor.__getitem__ and isinstance(args[1], slice)
            if not is_sliced and func.__name__ not in THERE:
                raise NotImplementedError(f"{func.__name__} of {first.dtype}")
        return func(*args, **(kwargs or {}))


# Breaks when rows are indexed by a tensor, or computed with, before they are widened.
@pytest.mark.parametrize(
    ("dtype", "settings"),
    [("uint16", {}), ("uint16", {"metric": "cosine"}), ("uint32", {"scale": "zscore"})],
    ids=str,
)
def test_unsigned_rows_need_only_what_a_gpu_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, settings: dict[str, Any]
) -> None:
    # On a GPU rows are gathered, and moments are taken, by torch.
    for module in ("gather", "moments"):
        monkeypatch.setattr(f"streamkm.kernels.ops.{module}.instruction_sets", lambda: ())
    rows = np.random.default_rng(0).integers(0, 60_000, (300, 5)).astype(dtype)
    np.save(tmp_path / "x.npy", rows)
    job = Job(tmp_path / "x.npy", tmp_path / "run", {"k": 5, "batch_rows": 60, **settings})
    with AsOnGpu():
        with pytest.raises(NotImplementedError):
            torch.zeros(2, dtype=torch.uint16)[torch.tensor([0])]
        job.attempt(kernel="reference")
        labels = predicted(job.run, job.source, tmp_path / "labels.npy", kernel="reference")
    assert set(labels) == set(range(5))
