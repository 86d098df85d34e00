"""Whole passes, and breaths: by equivalence with the operations that they stand for."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from streamkm.clustering.assignment import nearest_and_sums
from streamkm.clustering.batch import Batch
from streamkm.kernels import Breathed, BreathRules, Rows, means_of
from streamkm.kernels.cpu import CpuKernel
from streamkm.kernels.extension import instruction_sets
from streamkm.kernels.reference import ReferenceKernel

CPU = torch.device("cpu")
pytestmark = pytest.mark.skipif(not instruction_sets(), reason="the extension was not built")


# Breaks when passes in one call differ from the operations that they stand for, go on past an
# empty cluster, or depend on the threads.
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("spherical", [False, True])
def test_passes_have_the_bits_of_their_operations(rng, dtype, weighted, spherical) -> None:
    rows = torch.as_tensor(rng.normal(size=(4000, 7))).to(dtype)
    weights = torch.as_tensor(rng.integers(0, 3, size=4000)).double() if weighted else None
    batch = Batch(rows, torch.linalg.vector_norm(rows, dim=1).square_(), None, weights_B=weights)
    shares, unit = batch.shares
    kernel, centroids = CpuKernel(4000, 50, dtype, CPU), rows[:50].clone()
    passes = kernel.passes_over(
        Rows(rows, batch.sq_norms_B, shares), weights, unit, spherical=spherical
    )
    found = [passes.make(centroids, 3, exact=exact) for exact in (True, False)]

    def one_pass(before: torch.Tensor) -> tuple[torch.Tensor, ...]:
        assignment, sums = nearest_and_sums(kernel, batch, before, spherical=False, exact=True)
        mass = sums.weights_K if weighted else sums.counts_K.double()
        return *assignment, mass, *means_of(sums.sums.wide(), mass, before, spherical=spherical)

    before = one_pass(one_pass(centroids)[3])[3]
    labels, distances, mass, after, gain = one_pass(before)
    screened = kernel.assign(rows, batch.sq_norms_B, before).sq_distances_B
    for each in found:
        assert each.n_made == 3
        assert each.is_full
        assert torch.equal(each.labels_B, labels)
        assert torch.equal(each.mass_K, mass)
        assert torch.equal(each.after_KD, after)
        assert torch.equal(each.gains_K.sum(), gain)
    assert torch.equal(found[0].sq_distances_B, distances.to(dtype))
    assert torch.equal(found[1].sq_distances_B, screened)


def test_passes_stop_at_an_empty_cluster() -> None:
    rows = torch.tensor([[0.0], [1.0], [8.0]])
    kernel = CpuKernel(2, 3, torch.float32, CPU)  # Passes need no room for a batch.
    passes = kernel.passes_over(
        Rows(rows, rows[:, 0].square()), None, torch.ones(()).double(), spherical=False
    )
    centroids = torch.tensor([[0.0], [9.0], [99.0]])
    with torch.device("meta"):  # Breaks when tensors are made on torch's default device.
        found = passes.make(centroids, 5, exact=True)
    assert (found.n_made, found.is_full) == (1, False)
    assert found.mass_K.tolist() == [2, 1, 0]
    assert found.after_KD.flatten().tolist() == [0.5, 8, 99]
    assert not ReferenceKernel(2, 3, torch.float32, CPU).whole_passes


# Breaks when tensors are passed on unchecked: the extension would read beyond their ends.
def test_passes_and_breaths_refuse_tensors_of_another_shape_or_dtype() -> None:
    rows, kernel = torch.rand(20, 2), CpuKernel(20, 4, torch.float32, CPU)
    unit, rules = torch.ones(()).double(), BreathRules(2, 2, 1, 3, 1.0, 8.0, 3, 0.25, 0, 0.7, 9)
    given = Rows(rows, rows.square().sum(dim=1))
    with pytest.raises(ValueError, match="one for each row"):
        kernel.passes_over(given, torch.ones(19).double(), unit, spherical=False)
    passes = kernel.passes_over(given, None, unit, spherical=False)
    with pytest.raises(ValueError, match="not 99"):
        passes.make(torch.rand(99, 2), 2, exact=True)
    for wrong in (rows[:3, :1], rows[:3].double()):
        with pytest.raises(ValueError, match="as rows are"):
            passes.make(wrong, 2, exact=True)
    right = {
        "labels_B": torch.zeros(20, dtype=torch.int64),
        "sq_distances_B": torch.rand(20),
        "uniform_MU": torch.rand(2, 24).double(),
    }

    def breathe(size: int = 1, **tensors: Any) -> Breathed:
        return passes.breathe(
            rows[:3], **right | tensors, cost=1e9, rules=rules, size=size, n_refused=0
        )

    assert breathe().n_taken == 2
    for name, wrong in (
        ("labels_B", torch.zeros(19, dtype=torch.int64)),
        ("sq_distances_B", torch.rand(20).double()),
        ("uniform_MU", torch.rand(24, 2).double().T),
        ("uniform_MU", torch.rand(2, 23).double()),
    ):
        with pytest.raises(ValueError, match="breaths take"):
            breathe(1, **{name: wrong})
    with pytest.raises(ValueError, match="made for"):
        breathe(size=30)
    with pytest.raises(IndexError, match="labels must lie"):
        breathe(labels_B=torch.full((20,), 3))
