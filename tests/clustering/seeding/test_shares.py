"""The stages of seeding on several processes: the bits of one."""

from __future__ import annotations

import pytest
import torch

from streamkm.clustering.seeding import shares
from streamkm.clustering.seeding.breathing import Breathing
from streamkm.clustering.seeding.kmeans_plusplus import BatchedPlusPlus
from streamkm.clustering.seeding.sample import Sample
from streamkm.clustering.seeding.sample_lloyd import SampleLloyd
from streamkm.clustering.seeding.shares import ALL_HERE, Shares
from streamkm.clustering.seeding.tree import Tree
from streamkm.clustering.seeding.tree_plan import TreePlan
from streamkm.kernels import KernelRequest, make_kernel
from tests.distributed.together import together

N, D, K, BATCH = 2_003, 5, 12, 150


def kernel_for(k):
    return make_kernel("auto", KernelRequest(BATCH, k, torch.float32, torch.device("cpu")))


def tree(sample, start, how):
    del start
    plan = TreePlan((3, K), near=(3, 6), batches=(2, 3), exchanges=2, epochs=1.0)
    return Tree(sample, K, plan, 0, make_kernel=kernel_for, batch_rows=BATCH, shares=how)


def batched(sample, start, how):
    del start
    return BatchedPlusPlus(sample, K, 0, kernel=kernel_for(K), batch_rows=BATCH, shares=how)


def breathing(sample, start, how):
    return Breathing(sample, start, 4, 0, kernel=kernel_for(K + 1), batch_rows=BATCH, shares=how)


def lloyd(sample, start, how):
    return SampleLloyd(sample, start, 4, 0, kernel=kernel_for(K), batch_rows=BATCH, shares=how)


# Breaks when a row is compared by nobody, or by another process with other centroids.
@pytest.mark.parametrize("n_processes", [2, 3])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("make", [tree, batched, breathing, lloyd])
def test_several_processes_find_what_one_finds(make, weighted, n_processes, rng, monkeypatch):
    monkeypatch.setattr(shares, "LEAST_PRODUCTS", 0)
    # Passes step by step, as on a large sample.
    monkeypatch.setattr("streamkm.clustering.seeding.sample_lloyd.MOST_PRODUCTS", 0)
    rows = torch.as_tensor(rng.normal(size=(N, D)), dtype=torch.float32)
    weights = torch.as_tensor(rng.exponential(size=N)) if weighted else None
    sample = Sample(rows, weights)
    calls = []
    fill_in = Shares.find

    def counted(self, *arguments):
        calls.append(self.world.size)
        return fill_in(self, *arguments)

    monkeypatch.setattr(Shares, "find", counted)

    def all_steps(how):
        stage, index = make(sample, rows[:K].clone(), how), 0
        while stage.step_(index):
            index += 1
        return {name: tensor.clone() for name, tensor in stage.tensors().items()}

    alone = all_steps(ALL_HERE)
    for found in together(n_processes, lambda world: all_steps(Shares(world))):
        assert found.keys() == alone.keys()
        for name, tensor in alone.items():
            assert torch.equal(found[name], tensor), name
    assert calls.count(n_processes) == n_processes * calls.count(1) > 0


# Breaks when a call that takes less than handing round is shared.
def test_little_work_is_not_shared(rng):
    sample = Sample(torch.as_tensor(rng.normal(size=(100, D)), dtype=torch.float32))
    centroids = sample.x_SD[:K].clone()

    def refused(*_tensors):
        raise AssertionError

    def work(world):
        world.fill_in_ = refused
        how = {"kernel": kernel_for(K), "batch_rows": BATCH, "exact": True}
        return Shares(world).assign(sample, centroids, **how)

    first, second = together(2, work)
    assert torch.equal(first.labels_B, second.labels_B)
    assert (first.sq_distances_B[:K] == 0).all()
