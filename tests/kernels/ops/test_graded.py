"""Sums of a pass in whole numbers: the same in any order, whatever the sizes of the addends."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from streamkm.kernels.ops import graded
from streamkm.kernels.ops.graded import LEAST_GRADE, add_graded_, graded_total, raise_grades_

K, D = 5, 9


@pytest.fixture(params=["compiled", "torch"])
def _way(request, monkeypatch) -> None:
    if request.param == "torch":
        monkeypatch.setattr(graded, "instruction_sets", tuple)


def empty() -> tuple[torch.Tensor, torch.Tensor]:
    return (
        torch.zeros((2, K, D), dtype=torch.int64),
        torch.full((K,), LEAST_GRADE, dtype=torch.int64),
    )


def addends(spread: int) -> list[torch.Tensor]:
    """Numbers of sizes from 1 to 10 to the power of `spread`, each cluster's of its own size."""
    rng = np.random.default_rng(1)
    sizes = 10.0 ** rng.integers(-spread, spread + 1, size=(60, K, 1))
    return list(
        torch.from_numpy(
            rng.normal(size=(60, K, D)) * sizes * 10.0 ** rng.integers(-20, 20, (K, 1))
        )
    )


@pytest.mark.usefixtures("_way")
@pytest.mark.parametrize("spread", [0, 3, 20, 60])
def test_no_order_and_no_division_shows(spread) -> None:
    """A grade that drops other bits when it rises late shows."""
    added = addends(spread)
    found = []
    for order in (range(60), reversed(range(60)), np.random.default_rng(2).permutation(60)):
        sums_LKD, grades_K = empty()
        for index in order:
            add_graded_(sums_LKD, grades_K, added[index])
        found.append((sums_LKD, grades_K))
    parts = [empty() for _ in range(3)]
    for index, each in enumerate(added):
        add_graded_(*parts[index % 3], each)
    raised_K = torch.stack([grades_K for _, grades_K in parts]).amax(dim=0)
    for sums_LKD, grades_K in parts:
        raise_grades_(sums_LKD, grades_K, raised_K)
    found.append((torch.stack([sums_LKD for sums_LKD, _ in parts]).sum(dim=0), raised_K))
    first = graded_total(*found[0])
    for sums_LKD, grades_K in found[1:]:
        assert torch.equal(grades_K, found[0][1])
        assert torch.equal(graded_total(sums_LKD, grades_K), first)
    exact = torch.stack(added).sum(dim=0)
    largest = torch.stack(added).abs().amax(dim=(0, 2))[:, None]
    assert bool(((first - exact).abs() <= 60 * 2.0**-43 * largest).all())


@pytest.mark.parametrize("spread", [0, 3, 60])
def test_compiled_and_torch_agree_to_the_bit(spread, monkeypatch) -> None:
    """Also at grades below zero, which integer division rounds the other way."""
    compiled, in_torch = empty(), empty()
    for each in addends(spread):
        add_graded_(*compiled, each, torch.tensor(4.0))
    monkeypatch.setattr(graded, "instruction_sets", tuple)
    for each in addends(spread):
        add_graded_(*in_torch, each, torch.tensor(4.0))
    assert torch.equal(compiled[0], in_torch[0])
    assert torch.equal(compiled[1], in_torch[1])


@pytest.mark.usefixtures("_way")
def test_whole_numbers_are_exact() -> None:
    """Sums of counts are those of integers."""
    sums_LKD, grades_K = empty()
    added = torch.arange(K * D, dtype=torch.float64).view(K, D)
    for _ in range(1000):
        add_graded_(sums_LKD, grades_K, added)
    assert torch.equal(graded_total(sums_LKD, grades_K), 1000 * added)


@pytest.mark.usefixtures("_way")
@pytest.mark.parametrize("size", [1e-280, 1e-30, 1.0, 2.0**44, 2.0**-44, 1e30, 1e300])
def test_numbers_of_any_size_keep_45_bits(size) -> None:
    """The largest addend decides; zeros change nothing."""
    sums_LKD, grades_K = empty()
    added = torch.full((K, D), size / 3, dtype=torch.float64)
    for each in (torch.zeros_like(added), added, torch.zeros_like(added), added):
        add_graded_(sums_LKD, grades_K, each)
    torch.testing.assert_close(
        graded_total(sums_LKD, grades_K), 2 * added, rtol=2.0**-44, atol=1e-310
    )
