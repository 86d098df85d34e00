"""Bunches: a search for several nearest among few centroids finds what one among all does."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from streamkm.kernels.cpu import CpuKernel
from streamkm.kernels.ops import bunches as of_bunches
from streamkm.kernels.ops import groups as module
from streamkm.kernels.ops.bunches import bunches, second_in_bunches
from streamkm.kernels.rows import Rows
from tests.kernels.contract import sq_norms
from tests.kernels.ops.test_groups import CASES, CPU, SETS, eager, in_groups

__all__ = ["eager"]

pytestmark = pytest.mark.skipif(not SETS, reason="no set here screens in bytes")


@pytest.fixture(autouse=True)
def narrow(monkeypatch) -> None:
    """A bunch has one group of the few that there are, about."""
    monkeypatch.setattr(of_bunches, "GROUPS_OF_BUNCH", 1)


# Breaks when a bound of a group is narrower than it says, rows and bunches are mixed up, or the
# longest centroid, which decides what is in doubt, is not in every bunch.
@pytest.mark.parametrize(
    ("how", "dtype"), [("near", torch.float32), ("near", torch.float64), ("any", torch.float32)]
)
@pytest.mark.parametrize("case", CASES)
def test_bunches_change_no_bit(case, dtype, how) -> None:
    x_BD, c_KD = (points.to(dtype) for points in CASES[case])
    kernel = CpuKernel(700, 600, dtype, CPU)
    flat = kernel.assign_two(x_BD, sq_norms(x_BD), c_KD)
    groups = in_groups(kernel, c_KD, how)
    second_B, n_compared = second_in_bunches(
        kernel._assign_two, Rows(x_BD, sq_norms(x_BD)), flat.labels_B, c_KD, groups
    )
    assert torch.equal(second_B.nan_to_num(-1), flat[2].nan_to_num(-1))
    if case == "nested, of 1" and how == "near":
        assert n_compared < 0.5 * len(x_BD) * len(c_KD)


# Breaks when a bunch lacks one of the several nearest, or a row is in no bunch or in two.
@pytest.mark.parametrize("n_nearest", [1, 3, 70])
@pytest.mark.parametrize("case", ["places", "nested, of 1"])
def test_a_bunch_has_the_several_nearest(case, n_nearest) -> None:
    x_BD, c_KD = (points.float() for points in CASES[case])
    kernel = CpuKernel(700, 600, torch.float32, CPU)
    labels_B = kernel.assign(x_BD, sq_norms(x_BD), c_KD).labels_B
    nearest_BM = torch.cdist(x_BD.double(), c_KD.double()).topk(n_nearest, largest=False).indices
    seen = []
    for rows_R, of_C in bunches(x_BD, labels_B, c_KD, in_groups(kernel, c_KD, "near"), n_nearest):
        seen += rows_R.tolist()
        assert of_C is None or torch.isin(nearest_BM[rows_R], of_C).all()
    assert sorted(seen) == list(range(len(x_BD)))


# Breaks when a kernel that works by groups does not find the second nearest by them, takes bits
# from them, or goes on with them where nearly all centroids are compared.
def test_a_kernel_finds_two_by_groups(eager, monkeypatch) -> None:
    monkeypatch.setattr(module, "PROMISING", 2.0)
    monkeypatch.setattr(module, "PAIRS_FOR_TWO", 0)
    x_BD, c_KD = (points.float() for points in CASES["nested, of 1"])
    kernel, flat = (CpuKernel(700, 600, torch.float32, CPU) for _ in range(2))
    expected = flat._assign_two(x_BD, sq_norms(x_BD), c_KD)
    with monkeypatch.context() as patient:
        patient.setattr(module, "IN_VAIN", 2.0)  # Groups of 12 do not fill panels of 32.
        for _ in range(3):
            found = kernel.assign_two(x_BD, sq_norms(x_BD), c_KD)
            assert all(map(torch.equal, found, expected))
    assert kernel._search.groups is not None
    assert 0 < kernel._search._share_of_two < 0.5
    noise = torch.from_numpy(np.random.default_rng(0).normal(size=(700, 40))).float()
    kernel._search.learn_of_two(1, 1)
    assert not kernel._search.pays_for_two(700, 600)
    assert torch.isfinite(kernel.assign_two(noise, sq_norms(noise), c_KD)[2]).all()
