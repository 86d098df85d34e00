"""Local search: swap costs against recomputation, and what swaps lead to."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from streamkm.clustering.seeding.local_search import LocalSearch, local_search
from streamkm.clustering.seeding.sample import Sample


def cost(x_SD: torch.Tensor, centroids_KD: torch.Tensor, weights_S=None) -> float:
    nearest_S = torch.cdist(x_SD.double(), centroids_KD.double()).min(dim=1).values.square()
    return float(nearest_S.sum() if weights_S is None else (nearest_S * weights_S).sum())


def drawn(seed: int, n: int, d: int, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    rows = torch.as_tensor(rng.normal(size=(n, d)) + 5 * rng.integers(3, size=(n, 1)))
    return rows, rows[rng.choice(n, k, replace=False)].clone()


def looked_at(sample: Sample, centroids_KD: torch.Tensor) -> LocalSearch:
    stage = LocalSearch(sample, centroids_KD, 1, 0)
    stage._look_at_(torch.arange(len(sample)))
    return stage


# Breaks when the loss of a centroid, the gain of a candidate or the weights are wrong by
# anything: every swap is made and its cost taken anew.
@settings(max_examples=40)
@given(
    seed=st.integers(0, 2**32), n=st.integers(8, 60), d=st.integers(1, 5), k=st.integers(2, 8),
    weighted=st.booleans(),
)  # fmt: skip
def test_gains_of_all_swaps_by_brute_force(seed, n, d, k, weighted) -> None:
    rows, centroids = drawn(seed, n, d, k)
    weights = torch.arange(n).double() % 4 if weighted else None
    sample = Sample(rows, weights)
    candidates = torch.arange(0, n, 3)
    gains = looked_at(sample, centroids).swap_gains(sample.sq_distances_from(candidates))
    before = cost(rows, centroids, weights)
    for i, candidate in enumerate(candidates):
        for place in range(k):
            swapped = centroids.clone()
            swapped[place] = rows[candidate]
            expected = before - cost(rows, swapped, weights)
            assert float(gains[i, place]) == pytest.approx(
                expected, rel=1e-6, abs=1e-6 * before + 1e-12
            )


# Breaks when rows that lose a centroid are not looked at again, or a new one is not noticed
# as second nearest: later swaps would be judged by distances that are not there.
@settings(max_examples=25)
@given(seed=st.integers(0, 2**32), n=st.integers(10, 80), k=st.integers(2, 7))
def test_nearest_two_stay_true_and_the_cost_never_rises(seed, n, k) -> None:
    rows, centroids = drawn(seed, n, 3, k)
    stage = LocalSearch(Sample(rows), centroids, 30, seed)
    costs = [cost(rows, centroids)]
    for index in range(30):
        assert stage.step_(index) == (index < 29)
        costs.append(cost(rows, stage.centroids_KD))
        sq_distances = torch.cdist(rows, stage.centroids_KD).square()
        two = sq_distances.sort(dim=1).values[:, :2]
        kept = stage.tensors()
        torch.testing.assert_close(kept["first_S"], two[:, 0], rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(kept["second_S"], two[:, 1], rtol=1e-9, atol=1e-9)
        for distance, label in (("first_S", "label_S"), ("second_S", "runner_up_S")):
            at_label = sq_distances.gather(1, kept[label][:, None])[:, 0]
            torch.testing.assert_close(at_label, kept[distance], rtol=1e-9, atol=1e-9)
        assert (kept["label_S"] != kept["runner_up_S"]).all()
    assert all(later <= earlier * (1 + 1e-9) for earlier, later in pairwise(costs))


# Two centroids in one cluster and none in another: what Lloyd's algorithm never repairs.
@pytest.mark.parametrize("seed", range(5))
def test_a_bad_seed_is_repaired(seed, rng) -> None:
    centres = 50 * rng.normal(size=(8, 4))
    labels = np.arange(800) % 8
    rows = torch.as_tensor(centres[labels] + rng.normal(size=(800, 4))).float()
    bad = rows[torch.arange(8) // 2 * 8 + 8 * torch.arange(8)]  # Rows of cluster 0 alone.
    found = local_search(rows, bad, 40, seed)
    owners = torch.cdist(torch.as_tensor(centres).float(), found).argmin(dim=1)
    assert len(set(owners.tolist())) == 8


# Breaks when single rows are all that is offered: of many features each is a worse centroid than a
# row in the middle of all, which keeps nearly everything for itself.
@pytest.mark.parametrize("weighted", [False, True])
def test_a_row_in_the_middle_of_all_does_not_stay(rng, weighted) -> None:
    centres = 0.7 * rng.normal(size=(100, 64))
    rows = torch.as_tensor(centres[np.arange(4000) % 100] + rng.normal(size=(4000, 64))).float()
    rows[::100] = 0
    weights = torch.ones(4000, dtype=torch.float64) if weighted else None
    centroids = local_search(rows, rows[:10], 60, 0, weights_S=weights)
    for _ in range(5):
        labels = torch.cdist(rows, centroids).argmin(dim=1)
        centroids = torch.stack([rows[labels == cluster].mean(dim=0) for cluster in range(10)])
    assert torch.cdist(rows, centroids).argmin(dim=1).bincount().max() < 1000


# Breaks when directions are offered by what is no direction.
def test_candidates_of_directions_have_length_1(rng) -> None:
    rows = torch.nn.functional.normalize(torch.as_tensor(rng.normal(size=(400, 5))))
    stage = LocalSearch(Sample(rows), rows[:6], 20, 0, spherical=True)
    for index in range(20):
        stage.step_(index)
    assert not torch.equal(stage.centroids_KD, rows[:6])
    torch.testing.assert_close(stage.centroids_KD.norm(dim=1), torch.ones(6).double())


def test_hand_value() -> None:
    rows = torch.tensor([[0.0], [1.0], [10.0], [11.0]])
    sample, centroids = Sample(rows), torch.tensor([[0.0], [1.0]])
    gains = looked_at(sample, centroids).swap_gains(sample.sq_distances_from(torch.tensor([2])))
    # Cost 0 + 0 + 81 + 100 before; with 10 for 0 it is 1 + 0 + 0 + 1, for 1 it is 0 + 1 + 0 + 1.
    assert gains.tolist() == [[179.0, 179.0]]


# Breaks when weights do not act as repetition: on draws, gains or both.
def test_rows_without_weight_are_never_candidates() -> None:
    rows = torch.tensor([[0.0], [1.0], [1000.0], [3.0], [4.0]])
    weights = torch.tensor([1.0, 1.0, 0.0, 1.0, 1.0], dtype=torch.float64)
    for seed in range(10):
        found = local_search(rows, rows[:2], 20, seed, weights_S=weights)
        assert 1000.0 not in found.flatten().tolist()
        assert cost(rows, found, weights) == 2.0


def test_the_seed_alone_decides_and_the_start_is_left_alone(rng) -> None:
    rows = torch.as_tensor(rng.normal(size=(300, 3))).float()
    start = rows[:6].clone()
    one = local_search(rows, start, 25, 4)
    torch.rand(3)
    assert torch.equal(local_search(rows.clone(), start, 25, 4), one)
    assert torch.equal(start, rows[:6])
    assert not torch.equal(one, start)


# All rows lie on centroids: there is nothing to draw by, and nothing may be divided by.
def test_nothing_left_to_gain() -> None:
    rows = torch.tensor([[1.0], [2.0]]).repeat(5, 1)
    assert local_search(rows, rows[:2], 10, 0).tolist() == [[1.0], [2.0]]


def test_a_step_may_stop_the_search(rng) -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    rows = torch.as_tensor(rng.normal(size=(50, 2)))
    with pytest.raises(KeyboardInterrupt):
        local_search(rows, rows[:3], 5, 0, on_step=stop)
