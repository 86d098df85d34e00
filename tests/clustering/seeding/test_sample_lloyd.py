"""Lloyd's algorithm on a sample, with and without weights."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.cluster import KMeans

from streamkm.clustering.reservoir import step_generator
from streamkm.clustering.seeding.sample import Sample, draw_distinct
from streamkm.clustering.seeding.sample_lloyd import SampleLloyd
from streamkm.clustering.seeding.shares import ALL_HERE
from streamkm.kernels.reference import ReferenceKernel
from tests.clustering.streams import CPU

BATCH = 64


def stage_for(sample: Sample, centroids: torch.Tensor, n_passes: int, **options) -> SampleLloyd:
    kernel = ReferenceKernel(BATCH, len(centroids), centroids.dtype, CPU)
    return SampleLloyd(sample, centroids, n_passes, 0, kernel=kernel, batch_rows=BATCH, **options)


def finished(stage: SampleLloyd) -> int:
    """Takes every step; how many there were."""
    index = 0
    while stage.step_(index):
        index += 1
    return index + 1


# Breaks when a batch is left out, or its sums go to other clusters.
def test_passes_are_scikit_learns(rng) -> None:
    rows = rng.normal(size=(500, 4)) + 4 * rng.integers(3, size=(500, 1))
    for n_passes in (1, 2, 5):
        stage = stage_for(Sample(torch.as_tensor(rows)), torch.as_tensor(rows[:6]), n_passes)
        assert finished(stage) == n_passes
        peer = KMeans(6, init=rows[:6], n_init=1, max_iter=n_passes, tol=0)
        if n_passes > 1:
            peer.fit(rows)
        else:
            labels = np.linalg.norm(rows[:, None] - rows[:6], axis=2).argmin(axis=1)
            peer.cluster_centers_ = np.array([rows[labels == j].mean(axis=0) for j in range(6)])
        np.testing.assert_allclose(stage.centroids_KD, peer.cluster_centers_, rtol=1e-9)


# Breaks when weights are counted, not added up, or go into sums and not into masses.
def test_weights_act_as_repetition(rng) -> None:
    rows = torch.as_tensor(rng.normal(size=(200, 3)))
    repeats = torch.as_tensor(rng.integers(0, 5, size=200))
    weighted = Sample(rows, repeats.double())
    repeated = Sample(rows.repeat_interleave(repeats, dim=0))
    stages = [stage_for(sample, rows[:5].clone(), 4) for sample in (weighted, repeated)]
    for stage in stages:
        finished(stage)
    torch.testing.assert_close(stages[0].centroids_KD, stages[1].centroids_KD)
    kernel = ReferenceKernel(BATCH, 5, rows.dtype, CPU)
    costs = []
    for sample in (weighted, repeated):
        found = ALL_HERE.assign(sample, stages[0].centroids_KD, kernel=kernel, batch_rows=BATCH)
        costs.append(sample.total(found.sq_distances_B))
    torch.testing.assert_close(costs[0], costs[1])


# Breaks when a cluster without rows becomes 0 / 0, or stays where it is.
def test_empty_clusters_are_put_on_rows(rng) -> None:
    rows = torch.as_tensor(rng.normal(size=(300, 3)))
    centroids = torch.cat((rows[:2], torch.full((3, 3), 1e3).double()))
    for weights in (None, torch.ones(300, dtype=torch.float64)):
        stage = stage_for(Sample(rows, weights), centroids, 8)
        finished(stage)
        labels = torch.cdist(rows, stage.centroids_KD).argmin(dim=1)
        assert len(labels.unique()) == 5


def test_fewer_distinct_rows_than_clusters() -> None:
    rows = torch.tensor([[0.0], [8.0]]).repeat(10, 1)
    stage = stage_for(Sample(rows), torch.tensor([[0.0], [8.0], [8.0], [99.0]]), 5)
    finished(stage)
    assert stage.centroids_KD.isfinite().all()
    assert {0.0, 8.0} <= set(stage.centroids_KD.flatten().tolist())


def test_passes_end_when_nothing_is_gained_any_more() -> None:
    rows = torch.tensor([[0.0], [1.0], [10.0], [11.0]])
    stage = stage_for(Sample(rows), torch.tensor([[0.0], [10.0]]), 100)
    assert finished(stage) == 3  # One that moves, one that gains, one that does not.
    assert stage.centroids_KD.flatten().tolist() == [0.5, 10.5]


def test_spherical_centroids_have_unit_length(rng) -> None:
    rows = torch.nn.functional.normalize(torch.as_tensor(rng.normal(size=(200, 3))))
    stage = stage_for(Sample(rows), rows[:4].clone(), 5, spherical=True)
    finished(stage)
    torch.testing.assert_close(stage.centroids_KD.norm(dim=1), torch.ones(4, dtype=torch.float64))


# Breaks when draws are with replacement, or not by weight.
def test_draws_without_replacement() -> None:
    weights = torch.tensor([0.0, 1.0, 2.0, 3.0, 0.0])
    firsts = np.zeros(5)
    for seed in range(3000):
        drawn = draw_distinct(weights, 3, step_generator(CPU, seed)).tolist()
        assert sorted(drawn) == [1, 2, 3]
        firsts[drawn[0]] += 1
    expected = 3000 * np.array([0, 1, 2, 3, 0]) / 6
    assert (np.abs(firsts - expected) <= 5 * np.sqrt(expected)).all()
