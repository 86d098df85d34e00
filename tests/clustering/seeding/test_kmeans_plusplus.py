"""Seeding: which rows are picked, how often, and how good they are."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.cluster import kmeans_plusplus as sklearn_kmeans_plusplus

from streamkm.clustering.seeding import kmeans_plusplus as module
from streamkm.clustering.seeding.kmeans_plusplus import RandomRows, kmeans_plusplus
from streamkm.clustering.seeding.sample import Sample, draw_by_weight


def random_rows(sample_SD: torch.Tensor, k: int, seed: int) -> torch.Tensor:
    stage = RandomRows(Sample(sample_SD), k, seed)
    assert not stage.step_(0)
    return stage.centroids_KD


def batched(sample_SD: torch.Tensor, k: int, seed: int, **options) -> torch.Tensor:
    return kmeans_plusplus(sample_SD, k, seed, batched=True, **options)


SEEDERS = [random_rows, kmeans_plusplus, batched]
PLUS_PLUS = [kmeans_plusplus, batched]


def tensor(rows: np.ndarray | list[list[float]]) -> torch.Tensor:
    return torch.as_tensor(rows).float()


def rows_of(sample_SD: torch.Tensor, picked_KD: torch.Tensor) -> list[int]:
    """Index in the sample of each row that was picked; fails on one that is none of them."""
    same_KS = (picked_KD[:, None] == sample_SD[None]).all(dim=2)
    assert same_KS.any(dim=1).all()
    return same_KS.int().argmax(dim=1).tolist()


# Breaks when a row is drawn twice, or a centroid is no row of the sample.
@pytest.mark.parametrize("seeder", SEEDERS)
@given(n=st.integers(1, 60), share=st.floats(0, 1), d=st.integers(1, 9), seed=st.integers(0, 2**63))
def test_centroids_are_distinct_rows(seeder, n, share, d, seed) -> None:
    k = max(1, round(share * n))
    sample_SD = tensor(np.random.default_rng(seed).normal(5, 1, (n, d)))
    picked = rows_of(sample_SD, seeder(sample_SD, k, seed))
    assert len(picked) == len(set(picked)) == k


# Breaks when another generator, or its state, gets into the draws.
@pytest.mark.parametrize("seeder", SEEDERS)
def test_the_seed_alone_decides(rng, seeder) -> None:
    sample_SD = tensor(rng.normal(size=(500, 4)))
    first = seeder(sample_SD, 8, 3)
    torch.rand(1)
    assert torch.equal(seeder(sample_SD.clone(), 8, 3), first)
    others = [seeder(sample_SD, 8, seed) for seed in (0, 1, 2, 4, 3 + 2**32, 2**70)]
    assert not any(torch.equal(other, first) for other in others)


# Breaks when draws lean on the order of rows.
def test_random_rows_are_uniform() -> None:
    sample_SD = torch.arange(10.0)[:, None]
    counts = np.zeros(10)
    for seed in range(1000):
        counts[random_rows(sample_SD, 3, seed)[:, 0].long().numpy()] += 1
    # Hypergeometric: 300 each, deviation 14.5.
    assert np.abs(counts - 300).max() < 5 * 14.5


# Breaks when the first centroid is not uniform, or the second not by squared distance
# (by distance, the chance of row 2 after row 0 would be 0.75, not 0.9).
@pytest.mark.parametrize("seeder", PLUS_PLUS)
def test_second_centroid_is_drawn_by_squared_distance(seeder, monkeypatch) -> None:
    # One trial: plain k-means++, whose distribution is known.
    monkeypatch.setattr(module, "greedy_trials", lambda _: 1)
    sample_SD = tensor([[0.0], [1.0], [3.0]])
    n_draws = 3000
    counts = np.zeros((3, 3))
    for seed in range(n_draws):
        one, two = rows_of(sample_SD, seeder(sample_SD, 2, seed))
        counts[one, two] += 1
    weights = np.square(np.subtract.outer([0, 1, 3], [0, 1, 3]))
    expected = n_draws / 3 * weights / weights.sum(axis=1, keepdims=True)
    assert (np.diag(counts) == 0).all()
    deviation = np.sqrt(expected * (1 - expected / n_draws)) + 1e-9
    assert (np.abs(counts - expected) < 5 * deviation).all()


# Breaks when proposals are accepted by anything but the ratio of the squared distances: then
# the third centroid is not drawn by the distance from the first two. Proposed all at once, so
# that acceptance decides; what is expected follows from the definition of k-means++.
def test_batches_have_the_distribution_of_one_after_the_other(monkeypatch) -> None:
    monkeypatch.setattr(module, "PROPOSED_SHARE", 8)
    points = np.array([0.0, 1.0, 3.0, 7.0])
    weights = np.array([1.0, 2.0, 1.0, 1.0])
    sq = np.square(np.subtract.outer(points, points))
    expected = np.zeros((4, 4, 4))
    for i, j in np.ndindex(4, 4):
        second = weights * sq[i]
        third = weights * np.minimum(sq[i], sq[j])
        if i != j:
            chance = weights[i] / weights.sum() * second[j] / second.sum()
            expected[i, j] = chance * third / third.sum()
    n_draws, counts = 4000, np.zeros((4, 4, 4))
    sample_SD = tensor(points[:, None])
    for seed in range(n_draws):
        picked = batched(sample_SD, 3, seed, weights_S=torch.as_tensor(weights))
        counts[tuple(rows_of(sample_SD, picked))] += 1
    assert counts.sum() == n_draws
    deviation = np.sqrt(n_draws * expected * (1 - expected)) + 1e-9
    assert (np.abs(counts - n_draws * expected) < 5 * deviation).all()


# Breaks when weights do not act on the draws, or a row of none is chosen before all others are.
@pytest.mark.parametrize("seeder", PLUS_PLUS)
def test_rows_without_weight_are_not_chosen(seeder, rng) -> None:
    sample_SD = tensor(rng.normal(size=(60, 3)))
    weights_S = torch.as_tensor(np.arange(60) % 3 == 0).double()
    for seed in range(10):
        picked = rows_of(sample_SD, seeder(sample_SD, 20, seed, weights_S=weights_S))
        assert sorted(picked) == list(range(0, 60, 3))


# Breaks when trials are made but the best of them is not taken: plain k-means++ with
# 2 of 10 far rows would miss many of the 10 well-separated places.
def test_greedy_trials_find_separated_clusters(rng) -> None:
    centres = 100 * rng.normal(size=(10, 5))
    labels = np.arange(1000) % 10
    sample_SD = tensor(centres[labels] + rng.normal(size=(1000, 5)))
    found = [
        len({row % 10 for row in rows_of(sample_SD, kmeans_plusplus(sample_SD, 10, seed))})
        for seed in range(10)
    ]
    assert np.mean(found) > 9.8


# Breaks when weights or trials are wrong in a way that only shows in the inertia.
def test_no_worse_than_scikit_learn_on_average(rng) -> None:
    centres = 4 * rng.normal(size=(30, 6))
    rows = centres[rng.integers(30, size=1500)] + rng.normal(size=(1500, 6))
    sample_SD = tensor(rows)

    def inertia(centroids: np.ndarray) -> float:
        sq_distances = torch.cdist(torch.as_tensor(rows), torch.as_tensor(centroids).double())
        return float(sq_distances.min(dim=1).values.square().sum())

    ours = [inertia(kmeans_plusplus(sample_SD, 30, seed).numpy()) for seed in range(16)]
    theirs = [inertia(sklearn_kmeans_plusplus(rows, 30, random_state=s)[0]) for s in range(16)]
    assert np.mean(ours) < 1.03 * np.mean(theirs)


# Breaks when rounding leaves a chosen row, or its copies, at a distance: it is drawn
# again while others are left.
@pytest.mark.parametrize("seeder", PLUS_PLUS)
def test_distinct_rows_come_before_duplicates(seeder, rng) -> None:
    distinct = rng.normal(100, 1, (6, 20))
    sample_SD = tensor(distinct[np.arange(600) % 6])
    for seed in range(20):
        assert sorted(rows_of(sample_SD, seeder(sample_SD, 6, seed))) == list(range(6))


# Breaks when weights that are all 0 divide by 0, or draw past the end.
@pytest.mark.parametrize("value", [0.0, 1.0, -1e6])
@pytest.mark.parametrize("seeder", PLUS_PLUS)
def test_fewer_distinct_rows_than_clusters(seeder, value: float) -> None:
    sample_SD = torch.full((9, 3), value)
    sample_SD[4] = 5
    centroids_KD = seeder(sample_SD, 6, 0)
    assert {tuple(row) for row in centroids_KD.tolist()} == {(value,) * 3, (5.0,) * 3}
    assert torch.equal(seeder(torch.zeros(4, 2), 4, 0), torch.zeros(4, 2))


# Breaks when rows whose distances all round to 0 are taken for one: the sample has
# others left, and k may be the number of its rows.
@pytest.mark.parametrize("seeder", PLUS_PLUS)
def test_rows_that_differ_by_less_than_rounding_are_all_found(seeder) -> None:
    sample_SD = 4096 + torch.arange(6)[:, None] * 2.0**-11
    assert len(sample_SD.unique()) == 6
    for seed in range(10):
        assert sorted(rows_of(sample_SD, seeder(sample_SD, 6, seed))) == list(range(6))


# Breaks when a stop request is not asked for, or comes after the last round only.
def test_a_round_may_stop_the_seeding() -> None:
    rounds: list[int] = []
    kmeans_plusplus(torch.arange(10.0)[:, None], 4, 0, on_step=rounds.append)
    assert rounds == [1, 2, 3]

    def stop(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        kmeans_plusplus(torch.arange(10.0)[:, None], 4, 0, on_step=stop)


# Breaks when the running sum of a large sample's weights overflows: row 0 is all that is drawn.
def test_draws_from_more_rows_than_fit_whole_weights() -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = draw_by_weight(torch.ones(2**23 + 1), 8, generator)
    assert len(set(drawn.tolist())) == 8
