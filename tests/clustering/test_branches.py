"""The search by branches: its lists, its labels, and the level it makes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from streamkm.clustering.branch_plan import listed
from streamkm.clustering.branches import Branches, BranchKernel, level_above
from streamkm.kernels import KernelRequest, make_kernel
from streamkm.kernels.extension import instruction_sets
from tests.clustering.streams import CPU

KERNELS = ["reference", "cpu"] if instruction_sets() else ["reference"]
K, N_ROWS = 120, 700


@pytest.fixture(params=KERNELS)
def kernel(request) -> BranchKernel:
    made = make_kernel(request.param, KernelRequest(N_ROWS, K, torch.float64, CPU))
    return BranchKernel(made, N_ROWS)


@pytest.fixture
def x_ND(rng) -> torch.Tensor:
    return torch.from_numpy(rng.normal(size=(N_ROWS, 5)))


@pytest.fixture
def leaves_KD(rng) -> torch.Tensor:
    return torch.from_numpy(rng.normal(size=(K, 5)))


def norms(x_BD: torch.Tensor) -> torch.Tensor:
    return x_BD.square().sum(dim=1)


def lists(branches: Branches) -> list[list[int]]:
    sizes = branches.n_leaves_J.tolist()
    parts = branches.leaves_P[: sum(sizes)].split(sizes)
    return [part.tolist() for part in parts]


# Breaks when a leaf is in no list, or not in that of its own branch, or twice in one.
@pytest.mark.parametrize("n_branches", [1, 3, 20, K])
def test_every_leaf_is_listed_for_its_own_branch(kernel, leaves_KD, n_branches) -> None:
    found = kernel.find_branches(leaves_KD, n_branches, seed=1)
    assert K <= int(found.n_leaves_J.sum()) <= len(found.leaves_P) == listed(K, n_branches)
    of_branches = lists(found)
    for part in of_branches:
        assert part == sorted(set(part))
    own_K = torch.cdist(leaves_KD, found.points_JD).argmin(dim=1)
    assert kernel.branch_of(leaves_KD, found.points_JD).tolist() == own_K.tolist()
    assert all(leaf in of_branches[own] for leaf, own in enumerate(own_K.tolist()))


# Breaks when others are listed than leaves at most two steps to the next leaf beyond the border.
@pytest.mark.parametrize("gap", [0, 100])
def test_lists_by_hand(gap) -> None:
    made = make_kernel("reference", KernelRequest(20, 20, torch.float64, CPU))
    leaves_KD = torch.arange(20, dtype=torch.float64)[:, None]
    leaves_KD[10:] += gap
    found = BranchKernel(made, 20).find_branches(leaves_KD, 2, seed=0)
    border = float(found.points_JD.mean())
    low, high = (1, 0) if found.points_JD[0] > border else (0, 1)
    places = leaves_KD.flatten()
    assert lists(found)[low] == (places <= border + 2).nonzero().flatten().tolist()
    assert lists(found)[high] == (places >= border - 2).nonzero().flatten().tolist()
    assert len(found.leaves_P) == 40  # As many, whatever is listed.


# Breaks when lists outgrow the memory that is planned for them.
@pytest.mark.parametrize("n_lists", [8, 32])
def test_leaves_that_lie_least_far_beyond_are_listed_where_there_are_too_many(rng, n_lists) -> None:
    k, n_branches = 400, 40
    made = make_kernel("reference", KernelRequest(k, k, torch.float64, CPU))
    leaves_KD = torch.from_numpy(rng.normal(size=(k, 12)))
    found = BranchKernel(made, k).find_branches(leaves_KD, n_branches, seed=0, n_lists=n_lists)
    assert int(found.n_leaves_J.sum()) == listed(k, n_branches, n_lists) == n_lists * k
    from_KJ = torch.cdist(leaves_KD, found.points_JD).square()
    nearest = from_KJ.min(dim=1, keepdim=True)
    apart_KJ = torch.cdist(found.points_JD, found.points_JD)[nearest.indices[:, 0]]
    margin_KJ = (from_KJ - nearest.values) / (2 * apart_KJ)
    is_listed_KJ = torch.zeros((k, n_branches), dtype=torch.bool)
    for branch, part in enumerate(lists(found)):
        is_listed_KJ[part, branch] = True
    is_listed_KJ |= nearest.indices == torch.arange(n_branches)
    margin_KJ.scatter_(1, nearest.indices, 0)
    # But for the few leaves that are in as many lists as one may be.
    ranks_KJ = margin_KJ.argsort(dim=1).argsort(dim=1)
    worst = float(margin_KJ[is_listed_KJ].max())
    assert not ((margin_KJ < worst - 1e-9) & ~is_listed_KJ & (ranks_KJ < 24)).any()


# Breaks when rows and lists are mixed up on the way to the branches and back.
@pytest.mark.parametrize("n_branches", [1, 2, 11])
def test_the_label_is_the_nearest_of_the_listed_leaves(kernel, x_ND, leaves_KD, n_branches) -> None:
    found = kernel.find_branches(leaves_KD, n_branches, seed=0)
    labels, sq_distances, second = kernel.on(found).assign_two(x_ND, norms(x_ND), leaves_KD)
    of_branches, distances = lists(found), torch.cdist(x_ND, leaves_KD).square()
    for row, branch in enumerate(torch.cdist(x_ND, found.points_JD).argmin(dim=1).tolist()):
        near = distances[row, of_branches[branch]].sort()
        assert int(labels[row]) == of_branches[branch][int(near.indices[0])]
        assert float(sq_distances[row]) == pytest.approx(float(near.values[0]))
        assert float(second[row]) == pytest.approx(float(near.values[1]))
    if n_branches == 1:  # Its list has all.
        assert labels.tolist() == distances.argmin(dim=1).tolist()


# Breaks when what a row gets depends on the rows beside it: several processes share a batch.
def test_a_row_gets_the_same_bits_in_any_batch(kernel, x_ND, leaves_KD) -> None:
    x_BD, leaves_KD = x_ND.float(), leaves_KD.float()
    made = make_kernel(kernel.name, KernelRequest(N_ROWS, K, torch.float32, CPU))
    plain = BranchKernel(made, N_ROWS)
    search = plain.on(plain.find_branches(leaves_KD, 11, seed=0))
    whole = search.assign(x_BD, norms(x_BD), leaves_KD)
    for size in (1, 7, 300):
        parts = [search.assign(part, norms(part), leaves_KD) for part in x_BD.split(size)]
        labels, sq_distances = map(torch.cat, zip(*parts, strict=True))
        assert torch.equal(labels, whole.labels_B)
        if kernel.name == "cpu":
            assert torch.equal(sq_distances, whole.sq_distances_B)


# Breaks when lists are too short to be of use: of random points, which have no structure at all,
# most rows must find their nearest; of groups, all.
@pytest.mark.parametrize(("spread", "least"), [(0.0, 0.85), (20.0, 1.0)])
def test_most_rows_find_their_nearest(kernel, rng, spread, least) -> None:
    groups = spread * rng.normal(size=(12, 5))
    leaves_KD = torch.from_numpy(np.repeat(groups, 10, axis=0) + rng.normal(size=(K, 5)))
    x_ND = leaves_KD[torch.from_numpy(rng.integers(K, size=N_ROWS))]
    x_ND = x_ND + 0.3 * torch.from_numpy(rng.normal(size=(N_ROWS, 5)))
    search = kernel.on(kernel.find_branches(leaves_KD, 22, seed=0))
    labels_N = search.assign(x_ND, norms(x_ND), leaves_KD).labels_B
    share = (labels_N == torch.cdist(x_ND, leaves_KD).argmin(dim=1)).double().mean()
    assert float(share) >= least


# Breaks when a branch that no leaf is nearest to, or one at infinity, is looked into or divided by.
def test_equal_leaves_and_leaves_far_off(kernel, x_ND) -> None:
    leaves_KD = x_ND[:K].clone()
    leaves_KD[10:] = leaves_KD[0]
    leaves_KD[5] = 1e150
    found = kernel.find_branches(leaves_KD, 30, seed=2)
    assert found.points_JD.isfinite().all()
    labels_N = kernel.on(found).assign(x_ND, norms(x_ND), leaves_KD).labels_B
    # Of equal leaves the first.
    assert set(labels_N.tolist()) <= {0, *range(1, 10)} - {5}


# ---- the level above --------------------------------------------------------


# Breaks when a branch is the mean of its clusters whatever their sizes, or an empty one is NaN.
def test_the_level_by_hand() -> None:
    made = make_kernel("reference", KernelRequest(4, 4, torch.float64, CPU))
    leaves_KD = torch.tensor([[0.0], [1.0], [10.0], [12.0]], dtype=torch.float64)
    counts_K = torch.tensor([1, 3, 5, 0])
    level = level_above(
        BranchKernel(made, 2), torch.tensor([[0.5], [11.0], [99.0]], dtype=torch.float64),
        leaves_KD, leaves_KD * counts_K[:, None], counts_K, spherical=False,
    )  # fmt: skip
    assert level.parents_K.tolist() == [0, 0, 1, 1]
    assert level.centroids_JD.flatten().tolist() == [0.75, 10.0, 99.0]


def test_the_level_of_directions_has_unit_length(rng) -> None:
    made = make_kernel("reference", KernelRequest(30, 30, torch.float64, CPU))
    sums_KD = torch.from_numpy(rng.normal(size=(30, 3)))
    leaves_KD = torch.nn.functional.normalize(sums_KD)
    plain = BranchKernel(made, 30)
    points_JD = plain.find_branches(leaves_KD, 4, seed=0).points_JD
    level = level_above(
        plain, points_JD, leaves_KD, sums_KD, torch.ones(30, dtype=torch.int64), spherical=True
    )
    for branch in range(4):
        sum_D = sums_KD[level.parents_K == branch].sum(dim=0)
        torch.testing.assert_close(level.centroids_JD[branch], sum_D / sum_D.norm())
