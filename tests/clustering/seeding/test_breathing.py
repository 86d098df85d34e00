"""Breathing: who is removed, by hand and by brute force, and what breaths lead to."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans

from streamkm.clustering.seeding.breathing import Breathing, missed_most
from streamkm.clustering.seeding.plan import breath_size
from streamkm.clustering.seeding.sample import Sample
from streamkm.kernels.cpu import CpuKernel
from streamkm.kernels.extension import instruction_sets
from streamkm.kernels.reference import ReferenceKernel
from tests.clustering.streams import CPU

BATCH = 64
needs_extension = pytest.mark.skipif(not instruction_sets(), reason="the extension was not built")


def stage_for(
    sample: Sample,
    centroids: torch.Tensor,
    n: int,
    seed: int = 0,
    *,
    kind=ReferenceKernel,
    **options,
):
    k = len(centroids) + breath_size(len(centroids))
    kernel = kind(BATCH, k, centroids.dtype, CPU)
    return Breathing(sample, centroids, n, seed, kernel=kernel, batch_rows=BATCH, **options)


def finished(stage: Breathing) -> torch.Tensor:
    index = 0
    while n_taken := stage.step_(index):
        index += n_taken
    return stage.centroids_KD


def cost(x_SD: torch.Tensor, centroids_KD: torch.Tensor, weights_S=None) -> float:
    nearest_S = torch.cdist(x_SD.double(), centroids_KD.double()).min(dim=1).values.square()
    return float(nearest_S.sum() if weights_S is None else (nearest_S * weights_S).sum())


# ---- who is removed ---------------------------------------------------------


# Breaks when masses are those of rows that weigh 1: products of others overflow, or vanish.
@pytest.mark.parametrize("weight", [1.0, 1e-200, 1e200])
def test_who_is_missed_least_by_hand(weight: float) -> None:
    centroids = torch.tensor([[0.0], [1.0], [10.0], [12.0], [50.0]])
    mass = torch.tensor([4.0, 4, 1, 3, 9]).double() * weight
    # Mergers cost 4*4/8 * 1 = 2 for the first two, 1*3/4 * 4 = 3 for the next.
    assert missed_most(centroids, mass, 4).tolist() == [False, True, True, True, True]
    # Of the second pair the lighter one goes; nobody goes to one that is gone.
    assert missed_most(centroids, mass, 3).tolist() == [False, True, False, True, True]
    # Without mass a centroid is missed by nobody.
    mass[4] = 0
    assert missed_most(centroids, mass, 4).tolist() == [True, True, True, True, False]


# Breaks when too few have a partner that stays: here all but one would go to the same one.
@pytest.mark.parametrize("n_left", range(1, 9))
def test_as_many_are_left_as_asked_for(n_left: int) -> None:
    centroids = torch.cat((torch.zeros(1, 8), torch.eye(8)))
    mass = torch.tensor([1e-3] + [1.0] * 8).double()
    assert int(missed_most(centroids, mass, n_left).sum()) == n_left


# Breaks when the cost of a merger is anything but what the means of two clusters lose by it.
def test_the_one_that_is_removed_is_the_cheapest_by_brute_force(rng) -> None:
    rows = torch.as_tensor(rng.normal(size=(300, 3)))
    labels = torch.cdist(rows, rows[:9]).argmin(dim=1)
    means = torch.stack([rows[labels == i].mean(dim=0) for i in range(9)])
    rises = {}
    for i in range(9):
        for j in range(i):
            both = rows[(labels == i) | (labels == j)]
            alone = sum(cost(rows[labels == one], means[one][None]) for one in (i, j))
            rises[i, j] = cost(both, both.mean(dim=0)[None]) - alone
    mass = labels.bincount().double()
    (gone,) = (~missed_most(means, mass, 8)).nonzero().squeeze(1).tolist()
    pair = min(rises, key=rises.__getitem__)
    assert gone == min(pair, key=lambda i: float(mass[i]))


# Breaks when the blur is too weak to try another removal, or so strong that anyone goes.
def test_blurred_removals_by_their_shares() -> None:
    centroids, mass = torch.tensor([[0.0], [1.0], [100.0], [101.2]]), torch.ones(4).double()
    cheap = 0
    for seed in range(2000):
        generator = torch.Generator().manual_seed(seed)
        uniform = torch.rand(4, dtype=torch.float64, generator=generator)
        left = missed_most(centroids, mass, 3, blurred_by=uniform)
        cheap += int(not left[:2].all())
    # Two draws each: a merger costs 1/2 or 0.72.
    share = 0.72**4 / (0.5**4 + 0.72**4)
    assert cheap / 2000 == pytest.approx(share, abs=0.05)


# ---- what breaths lead to ---------------------------------------------------


# Breaks when a move must lower the cost at once: between two centroids that each stand between
# two groups none does. Seven groups, one of them far away, as pixels without data are.
@pytest.mark.parametrize("k", [5, 6, 7])
def test_few_centroids_among_separated_groups_are_not_stuck(k: int) -> None:
    rng = np.random.default_rng(0)
    centres = 200 * rng.uniform(0, 0.5, size=(6, 12))
    rows = (centres[rng.integers(6, size=1000)] + rng.normal(0, 2, size=(1000, 12))).round()
    rows[:12] = -128
    best = KMeans(k, n_init=30, random_state=0).fit(rows).inertia_
    sample = Sample(torch.as_tensor(rows).float())
    for seed in range(8):
        start = sample.x_SD[torch.as_tensor(rng.choice(1000, k, replace=False))]
        found = finished(stage_for(sample, start, 60, seed))
        assert cost(sample.x_SD, found) <= 1.01 * best


# Two centroids in one cluster and none in another: what passes never repair.
@pytest.mark.parametrize("seed", range(5))
def test_a_bad_seed_is_repaired(seed, rng) -> None:
    centres = 50 * rng.normal(size=(8, 4))
    labels = np.arange(800) % 8
    rows = torch.as_tensor(centres[labels] + rng.normal(size=(800, 4))).float()
    bad = rows[8 * torch.arange(8)]  # Rows of cluster 0 alone.
    found = finished(stage_for(Sample(rows), bad, 40, seed))
    owners = torch.cdist(torch.as_tensor(centres).float(), found).argmin(dim=1)
    assert len(set(owners.tolist())) == 8


# Breaks when single rows are all that is added: of many features each is a worse centroid than a
# row in the middle of all, which keeps nearly everything for itself.
@pytest.mark.parametrize("weighted", [False, True])
def test_a_row_in_the_middle_of_all_does_not_stay(rng, weighted) -> None:
    centres = 0.7 * rng.normal(size=(100, 64))
    rows = torch.as_tensor(centres[np.arange(4000) % 100] + rng.normal(size=(4000, 64))).float()
    rows[::100] = 0
    weights = torch.ones(4000, dtype=torch.float64) if weighted else None
    found = finished(stage_for(Sample(rows, weights), rows[:10], 30))
    assert torch.cdist(rows, found).argmin(dim=1).bincount().max() < 1000


# Breaks when a breath is kept that costs more, or the cost is not that of the centroids.
@pytest.mark.parametrize("offset", [0.0, 1e4])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_cost_never_rises(rng, weighted, offset) -> None:
    rows = torch.as_tensor(offset + rng.normal(size=(500, 3))).float()
    weights = torch.as_tensor(rng.integers(0, 4, size=500)).double() if weighted else None
    stage, costs = stage_for(Sample(rows, weights), rows[:7], 40), []
    while stage.step_(stage.n_done):
        costs.append(float(stage.cost))
        assert cost(rows, stage.centroids_KD, weights) <= costs[-1] * (1 + 1e-5)
    assert all(later <= earlier for earlier, later in pairwise(costs))
    assert costs[-1] < 0.99 * costs[0]


def test_spherical_centroids_have_unit_length_and_the_cost_never_rises(rng) -> None:
    rows = torch.nn.functional.normalize(torch.as_tensor(rng.normal(size=(400, 5))))
    stage, costs = stage_for(Sample(rows), rows[:6], 20, spherical=True), []
    while stage.step_(stage.n_done):
        costs.append(float(stage.cost))
    torch.testing.assert_close(stage.centroids_KD.norm(dim=1), torch.ones(6).double())
    assert costs == sorted(costs, reverse=True)
    assert cost(rows, stage.centroids_KD) <= costs[-1] * (1 + 1e-9)


def test_rows_without_weight_move_nothing() -> None:
    rows = torch.tensor([[0.0], [1.0], [1000.0], [3.0], [4.0]])
    weights = torch.tensor([1.0, 1.0, 0.0, 1.0, 1.0], dtype=torch.float64)
    for seed in range(10):
        found = finished(stage_for(Sample(rows, weights), rows[:2], 20, seed))
        assert sorted(found.flatten().tolist()) == [0.5, 3.5]


# All rows lie on centroids: there is nothing to draw by, and nothing may be divided by.
def test_nothing_left_to_gain() -> None:
    rows = torch.tensor([[1.0], [2.0]]).repeat(5, 1)
    stage = stage_for(Sample(rows), rows[:2], 10)
    assert not stage.step_(0)
    assert stage.centroids_KD.tolist() == [[1.0], [2.0]]


# Breaks when breaths go on where none can help, or end where some could.
@pytest.mark.parametrize("weighted", [False, True])
def test_breaths_end_early_where_a_merger_costs_eight_times_a_cluster(weighted) -> None:
    # A group costs 2, and to merge two of them costs 2 * 2 / 4 times their squared distance.
    for distance, n_breaths in ((4.1, 4), (3.9, 24)):
        rows = torch.tensor([[-1.0], [1.0], [distance - 1], [distance + 1]])
        weights = torch.ones(4).double() if weighted else None
        start = torch.tensor([[0.0], [distance]])
        stage = stage_for(Sample(rows, weights), start, 1000)
        assert finished(stage).tolist() == start.tolist()
        assert stage.n_done == n_breaths
    # Two groups share a centroid, and a third has two.
    far = torch.tensor([[0.0], [1.0], [50.0], [51.0], [1000.0], [1001.0]])
    stage = stage_for(Sample(far), torch.tensor([[25.5], [1000.0], [1001.0]]), 1000)
    assert finished(stage).sort(dim=0).values.flatten().tolist() == [0.5, 50.5, 1000.5]


# ---- a stage ----------------------------------------------------------------


# Breaks when anything that a step decides is not among the tensors, or the draws depend on more
# than the seed, the number of the stage and the step.
@pytest.mark.parametrize("stop", [1, 2])
@pytest.mark.parametrize("kind", [ReferenceKernel, pytest.param(CpuKernel, marks=needs_extension)])
def test_it_goes_on_with_the_same_bits_from_between_two_steps(rng, stop, kind) -> None:
    rows = torch.as_tensor(rng.normal(size=(600, 3))).float()
    sample, start = Sample(rows), rows[:20].clone()
    whole = stage_for(sample, start, 40, 5, kind=kind)
    saved: dict[str, torch.Tensor] = {}
    n_steps, index = 0, 0
    while whole.step_(whole.n_done):
        n_steps += 1
        if n_steps == stop:
            index = whole.n_done
            saved = {name: tensor.clone() for name, tensor in whole.tensors().items()}
    torch.rand(3)
    other = stage_for(sample, start, 40, 5, kind=kind)
    other.restore_(saved, index)
    assert other.n_done == index  # else its progress would begin at 0
    while n_taken := other.step_(index):
        index += n_taken
    assert whole.tensors().keys() == other.tensors().keys()
    for name, tensor in whole.tensors().items():
        assert torch.equal(tensor, other.tensors()[name]), name
    assert torch.equal(start, rows[:20])
    assert not torch.equal(
        whole.centroids_KD, stage_for(sample, start, 40, 6, kind=kind).centroids_KD
    )


# Breaks when breaths go on for ever where none is kept.
def test_breaths_end_when_none_is_kept() -> None:
    rows = torch.tensor([[0.0], [1.0], [10.0], [11.0]])
    stage = stage_for(Sample(rows), torch.tensor([[0.5], [10.5]]), 1000)
    finished(stage)
    assert stage.n_done < 100
    assert stage.centroids_KD.flatten().tolist() == [0.5, 10.5]


# ---- in one call ------------------------------------------------------------


class StepByStep:
    """A kernel that makes neither passes nor breaths in one call."""

    whole_passes = None
    by_lists = None
    stepper = None

    def __init__(self, kernel: CpuKernel) -> None:
        self._kernel = kernel

    def __getattr__(self, name: str):
        return getattr(self._kernel, name)


# Breaks when the two ways draw other rows, average other neighbours, remove others or add in
# another order; when a result depends on the threads; or when an empty cluster is left empty.
@needs_extension
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("case", ["plain", "grouped", "few distinct rows", "equal centroids"])
def test_a_breath_in_one_call_has_the_bits_of_one_in_steps(rng, dtype, weighted, case) -> None:
    rows = torch.as_tensor(rng.normal(size=(3000, 5)))
    if case == "grouped":
        rows += 20 * torch.as_tensor(rng.normal(size=(12, 5)))[torch.arange(3000) % 12]
    if case == "few distinct rows":
        rows = rows[torch.arange(3000) % 31].round()
    weights = torch.as_tensor(rng.integers(0, 4, size=3000)).double() if weighted else None
    sample, k = Sample(rows.to(dtype), weights), 30
    start = sample.x_SD[:k].clone()
    if case == "equal centroids":
        start[1:4] = start[0]
    found = {}
    for n_threads, whole in ((1, True), (2, True), (1, False)):
        kernel: Any = CpuKernel(len(rows), k + breath_size(k), dtype, CPU)
        kernel = kernel if whole else StepByStep(kernel)
        torch.set_num_threads(n_threads)
        stage = Breathing(sample, start, 60, 5, kernel=kernel, batch_rows=len(rows))
        finished(stage)
        found[n_threads, whole] = stage.tensors()
    for name, tensor in found[1, False].items():
        assert torch.equal(tensor, found[1, True][name]), name
        assert torch.equal(tensor, found[2, True][name]), name
