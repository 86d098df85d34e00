"""Rows that enter a reservoir: how often which, and the same compiled and by torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from streamkm.kernels import OfferedRows, Reservoir, offer_
from streamkm.kernels.extension import instruction_sets
from streamkm.kernels.ops import offer as module


@pytest.fixture(params=["compiled", "torch"], autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "torch":
        monkeypatch.setattr(module, "instruction_sets", tuple)


def empty(
    n_rows: int, n_features: int = 1, dtype=torch.float64, *, weighted: bool = False
) -> Reservoir:
    return Reservoir(
        torch.zeros((n_rows, n_features), dtype=dtype),
        torch.full((n_rows,), torch.inf, dtype=torch.float64),
        torch.zeros(n_rows, dtype=torch.int64),
        torch.zeros(n_rows if weighted else 0, dtype=torch.float64),
    )


def drawn_by(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def offer(
    reservoir: Reservoir,
    rows: list[list[float]],
    sq_distances: list[float],
    seed: int,
    *,
    unit=False,
) -> None:
    x_BD = torch.tensor(rows, dtype=torch.float64)
    distances_B = torch.tensor(sq_distances, dtype=torch.float64)
    offered = OfferedRows(
        x_BD, None, x_BD.square().sum(dim=1), torch.arange(len(rows)) % len(reservoir.keys_R),
        distances_B, None, skips_zeros=unit, first=0, stride=1,
    )  # fmt: skip
    uniform = torch.rand(len(rows), dtype=torch.float64, generator=drawn_by(seed))
    offer_(reservoir, offered, uniform)


# Breaks when weights are distances, not their squares, or a later batch has an advantage.
def test_drawn_in_proportion_to_the_squared_distance() -> None:
    n_draws, weights = 3000, np.array([1.0, 2.0, 3.0, 4.0, 5.0])
    counts = np.zeros(5)
    for seed in range(n_draws):
        reservoir = empty(1)
        offer(reservoir, [[1.0], [2.0], [3.0]], [1.0, 2.0, 3.0], 2 * seed)
        offer(reservoir, [[4.0], [5.0]], [4.0, 5.0], 2 * seed + 1)
        counts[int(reservoir.rows_RD[0, 0]) - 1] += 1
    expected = n_draws * weights / weights.sum()
    assert (np.abs(counts - expected) < 5 * np.sqrt(expected)).all()


# Breaks when draws are with replacement: one far row would take all the places.
def test_drawn_without_replacement() -> None:
    reservoir = empty(4)
    offer(reservoir, [[1.0], [2.0], [3.0]], [1e9, 1.0, 1.0], 0)
    assert sorted(reservoir.rows_RD[:3, 0].tolist()) == [1.0, 2.0, 3.0]
    assert reservoir.keys_R.isfinite().tolist() == [True, True, True, False]
    keys = reservoir.keys_R.tolist()
    assert keys == sorted(keys)


# Breaks when a row on its centroid (to rounding) or a zero row of unit data gets in.
def test_rows_of_no_use_are_never_taken() -> None:
    reservoir = empty(3)
    offer(reservoir, [[1.0], [2.0]], [0.0, 0.0], 0)
    assert reservoir.keys_R.isinf().all()
    offer(reservoir, [[100.0], [7.0]], [1e4 * 1e-30, 1e-3], 1)
    assert reservoir.rows_RD[:, 0].tolist() == [7.0, 0.0, 0.0]
    offer(reservoir, [[0.0], [1.0]], [1.0, 0.5], 2, unit=True)
    assert sorted(reservoir.rows_RD[:, 0].tolist()) == [0.0, 1.0, 7.0]
    assert reservoir.keys_R.isfinite().tolist() == [True, True, False]


# Breaks when a row that could come before the last of the reservoir is passed over without a look.
def test_what_is_passed_over_could_not_have_entered() -> None:
    rows = np.random.default_rng(0).normal(size=(3000, 3))
    sq_distances = np.random.default_rng(1).exponential(size=3000)
    reservoir = empty(20, 3)
    keys: list[float] = []
    for step, part in enumerate(np.split(np.arange(3000), 10)):
        offer(reservoir, rows[part].tolist(), sq_distances[part].tolist(), step)
        drawn = torch.rand(300, dtype=torch.float64, generator=drawn_by(step))
        least = -np.log1p(-drawn.numpy()) / sq_distances[part]
        keys = sorted([*keys, *least])[:20]
        np.testing.assert_allclose(reservoir.keys_R.numpy(), keys, rtol=1e-12)


# Breaks when few rows, or more than there are places, outgrow the reservoir or the batch.
@pytest.mark.parametrize(("n_places", "n_rows"), [(1, 1), (3, 1000), (256, 5), (256, 1000)])
def test_no_more_rows_enter_than_there_are_places(n_places: int, n_rows: int) -> None:
    reservoir = empty(n_places)
    offer(reservoir, [[1.0]] * n_rows, [1.0] * n_rows, 0)
    n_held = int(reservoir.keys_R.isfinite().sum())
    assert n_held == min(n_places, n_rows)


# Breaks when the two ways draw other rows, or take them from elsewhere in the window.
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_both_ways_draw_the_same(monkeypatch: pytest.MonkeyPatch, rng, dtype, weighted) -> None:
    window_ND = torch.as_tensor(rng.normal(size=(900, 3))).to(dtype)
    window_ND[::7] = 0
    found: list[Reservoir] = []
    for available in (instruction_sets(), ()):
        monkeypatch.setattr(module, "instruction_sets", lambda available=available: available)
        draws = np.random.default_rng(0)
        reservoir = empty(40, 3, dtype, weighted=weighted)
        for step in range(6):
            positions_B = torch.from_numpy(draws.permutation(900)[:700]).int()
            weights_B = torch.from_numpy(draws.integers(0, 3, 700)).double() if weighted else None
            sq_distances_B = torch.from_numpy(draws.exponential(size=700)).to(dtype)
            sq_distances_B[::5] = 0
            offered = OfferedRows(
                window_ND, positions_B, window_ND[positions_B.long()].square().sum(dim=1),
                torch.from_numpy(draws.integers(0, 40, 700)), sq_distances_B, weights_B,
                skips_zeros=True, first=step, stride=7 - step,
            )  # fmt: skip
            n_offered = len(range(step, 700, 7 - step))
            uniform = torch.rand(n_offered, dtype=torch.float64, generator=drawn_by(step))
            offer_(reservoir, offered, uniform)
        found.append(reservoir)
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=0)
    assert found[0].keys_R.isfinite().all()


def test_rows_that_are_not_within_the_window_are_refused() -> None:
    rows = torch.ones((4, 1)).double()
    offered = OfferedRows(
        rows, torch.tensor([0, 4]).int(), torch.ones(2).double(), torch.zeros(2).long(),
        torch.tensor([0.0, 1.0]).double(), None, skips_zeros=False, first=0, stride=1,
    )  # fmt: skip
    with pytest.raises((IndexError, RuntimeError)):
        offer_(empty(1), offered, torch.rand(2, dtype=torch.float64, generator=drawn_by(0)))
