"""Mini-batches that go on from an earlier run, by hand."""

from __future__ import annotations

import pytest
import torch

from streamkm.clustering.growing import Growing, grown_state
from streamkm.kernels.reference import ReferenceKernel
from tests.clustering.streams import CPU, batch_of, run_epoch


def growing(half_life: int | None = None) -> Growing:
    kernel = ReferenceKernel(4, 2, torch.float64, CPU)
    return Growing(kernel, n_rows=2, seed=0, half_life=half_life)


def earlier(*, weighted: bool = False):
    """Two clusters: 3 rows of mean 0, and 2 of mean 10."""
    centroids_KD = torch.tensor([[0.0], [10.0]], dtype=torch.float64)
    counts_K = torch.tensor([3, 2])
    return grown_state(
        centroids_KD.clone(), centroids_KD * counts_K[:, None], counts_K, torch.zeros(0), 0.0,
        weighted=weighted,
    )  # fmt: skip


# Breaks when the rows of the earlier run count for less than new ones, or more.
def test_every_row_counts_alike() -> None:
    state = earlier()
    run_epoch(growing(), state, [batch_of([[4.0]]), batch_of([[1.0], [14.0]])], 0)
    # (3 x 0 + 4) / 4 = 1, then (4 + 1) / 5; (20 + 14) / 3
    assert state.centroids_KD.flatten().tolist() == pytest.approx([1.0, 34 / 3], rel=1e-15)
    assert state.counts_K.tolist() == [5, 3]
    assert state.mass_K.tolist() == [5, 3]
    assert state.whole_sums_KD.flatten().tolist() == pytest.approx([5, 34], rel=1e-15)


# Breaks when age depends on the cluster's own rows, or a cluster without new rows stays young.
def test_what_came_before_counts_half_after_a_half_life() -> None:
    state = earlier(weighted=True)
    run_epoch(growing(half_life=2), state, [batch_of([[4.0], [5.0]])], 0)
    # Two rows came: 3 rows count 1.5, and 2 count 1.
    assert state.mass_K.tolist() == [3.5, 1.0]
    assert state.weights_K.tolist() == [3.5, 1.0]
    assert state.counts_K.tolist() == [5, 2]
    assert state.centroids_KD.flatten().tolist() == pytest.approx([9 / 3.5, 10.0], rel=1e-15)
    run_epoch(growing(half_life=2), state, [batch_of([[13.0], [13.0]])], 0)
    assert state.mass_K.tolist() == [1.75, 2.5]
    assert state.centroids_KD[1].item() == pytest.approx((5 + 26) / 2.5, rel=1e-15)


# Breaks when a cluster that got no new row is filled with others, as if it were empty.
def test_no_cluster_is_reseeded() -> None:
    state = earlier()
    run_epoch(growing(), state, [batch_of([[-1.0], [1.0], [2.0]])], 0)
    assert state.centroids_KD[1].item() == 10
    assert int(state.n_reseeded) == 0


def test_weights_go_on_from_weights() -> None:
    centroids_KD = torch.tensor([[0.0], [10.0]], dtype=torch.float64)
    weights_K = torch.tensor([0.5, 4.0], dtype=torch.float64)
    state = grown_state(
        centroids_KD, centroids_KD * weights_K[:, None], torch.tensor([3, 2]), weights_K, 0.0,
        weighted=True,
    )  # fmt: skip
    batch = batch_of([[3.0]])
    batch.weights_B = torch.ones(1, dtype=torch.float64)
    run_epoch(growing(), state, [batch], 0)
    assert state.centroids_KD[0].item() == pytest.approx(2.0, rel=1e-15)
    # A row without a weight counts as one of weight 1.
    run_epoch(growing(), state, [batch_of([[3.5]])], 0)
    assert state.centroids_KD[0].item() == pytest.approx(2.6, rel=1e-15)
    assert state.weights_K.tolist() == [2.5, 4.0]
