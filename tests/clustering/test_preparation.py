"""From rows of a window to a batch: copied where they must be, left where they may."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from streamkm.clustering.assignment import nearest
from streamkm.clustering.preparation import Preparation
from streamkm.clustering.scaling import RunningMoments, Scaling
from streamkm.kernels.cpu import CpuKernel
from tests.clustering.streams import CPU
from tests.kernels.contract import normal, permuted


# Breaks when rows that have to be widened, scaled or weighted are taken as they lie.
def test_only_rows_that_are_ready_are_left_where_they_lie() -> None:
    x_ND = normal(60, 4, dtype=torch.float32, device=CPU)
    kernel, rows, workspace_BD = (
        CpuKernel(60, 3, torch.float32, CPU),
        permuted(60, 40),
        x_ND.clone(),
    )
    moments = RunningMoments.of(x_ND)
    plain = Scaling.fit("none", "euclidean", moments, torch.float32)
    for scaling, window_ND, weights_N in (
        (Scaling.fit("zscore", "euclidean", moments, torch.float32), x_ND, None),
        (Scaling.fit("none", "cosine", moments, torch.float32), x_ND, None),
        (plain, x_ND.half(), None),
        (plain, x_ND, torch.ones(60, dtype=torch.float64)),
    ):
        batch = Preparation(scaling, workspace_BD, in_place=True)(window_ND, rows, weights_N)
        assert not batch.lies_in_window
        assert batch.positions_B is None
        assert torch.equal(batch.sq_norms_B > 0, torch.ones(40, dtype=torch.bool))
    batch = Preparation(plain, workspace_BD, in_place=True)(x_ND, rows)
    assert batch.lies_in_window
    assert batch.x_ND is x_ND
    assert batch.positions_B is rows
    labels_B, sq_distances_B = nearest(kernel, batch, x_ND[:3], spherical=False)
    assert sq_distances_B.dtype == torch.float64
    assert torch.equal(labels_B, torch.cdist(x_ND[rows.long()], x_ND[:3]).argmin(dim=1))


# Breaks when shift and factor are converted for every batch though nothing is scaled: on a GPU
# that is two launches each.
def test_a_scaling_that_changes_nothing_is_not_looked_into() -> None:
    scaling: Any = SimpleNamespace(is_affine=False, normalize=False)  # neither shift nor factor
    x_ND = normal(20, 4, dtype=torch.float16, device=CPU)
    prepare = Preparation(scaling, torch.empty((20, 4)))
    assert torch.equal(prepare(x_ND, permuted(20, 9)).x_BD, x_ND[permuted(20, 9).long()].float())
