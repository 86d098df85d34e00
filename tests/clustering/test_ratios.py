"""The worst ratios of the Davies-Bouldin index, beside all of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from streamkm.clustering import ratios
from streamkm.clustering.ratios import worst_ratios


def of_all(centres_UD: torch.Tensor, spreads_U: torch.Tensor) -> torch.Tensor:
    apart_UUD = (centres_UD[:, None] - centres_UD).numpy()
    apart_UU = np.linalg.norm(apart_UUD, axis=2)
    apart_UU[apart_UU == 0] = np.inf
    spread_U = spreads_U.numpy()
    return torch.from_numpy(((spread_U[:, None] + spread_U) / apart_UU).max(axis=1))


@pytest.fixture
def small_blocks(monkeypatch) -> None:
    """So that a few hundred clusters are many blocks and tiles."""
    for name, value in (("BLOCK_COLUMNS", 64), ("TILE_ROWS", 50), ("FIRST_COLUMNS", 16)):
        monkeypatch.setattr(ratios, name, value)


def normal(n: int, d: int) -> np.ndarray:
    return np.random.default_rng(3).normal(size=(n, d))


def near(n: int, d: int, apart: float) -> np.ndarray:
    """Groups of centroids that float32 can hardly tell apart, far from the origin."""
    rng = np.random.default_rng(4)
    return rng.normal(size=(5, d))[rng.integers(5, size=n)] * 1e3 + apart * rng.normal(size=(n, d))


CENTRES = {
    "normal": normal(300, 8),
    "a line, sorted": np.arange(300.0)[:, None] ** 2,
    "near": near(300, 4, 1e-6),
    "equal": near(300, 3, 0.0),
    "tiny": normal(200, 5) * 1e-140,
    "huge": normal(200, 5) * 1e150,
    "many features": normal(150, 600),
}
SPREADS = {
    "alike": np.random.default_rng(5).uniform(0.9, 1.1, 300),
    "unlike": np.random.default_rng(6).lognormal(0, 3, 300),
    "one": np.eye(300)[17],
    "none": np.zeros(300),
}


# Breaks when the screen leaves out a pair that is the worst of its row: a margin too small for the
# rounding of float32, or a bound that is older than the ratios.
@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("spreads", SPREADS)
@pytest.mark.parametrize("centres", CENTRES)
def test_the_worst_ratios_are_those_of_all(centres, spreads) -> None:
    centres_UD = torch.from_numpy(CENTRES[centres])
    unit = 2.0 ** int(np.log2(float(centres_UD.abs().max())))  # It rounds nothing.
    spreads_U = torch.from_numpy(SPREADS[spreads][: len(centres_UD)]) * unit
    expected_U = of_all(centres_UD / unit, spreads_U / unit)
    torch.testing.assert_close(
        worst_ratios(centres_UD, spreads_U), expected_U, rtol=1e-12, atol=1e-13
    )


# Breaks when all pairs are computed after all: then K = 100,000 takes minutes.
@pytest.mark.usefixtures("small_blocks")
def test_few_pairs_are_computed_in_full(monkeypatch) -> None:
    n_pairs, distances = 0, ratios._distances

    def counted(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        nonlocal n_pairs
        found = distances(one, other)
        n_pairs += found.numel()
        return found

    monkeypatch.setattr(ratios, "_distances", counted)
    n = 600
    centres_UD = torch.from_numpy(normal(n, 8))
    worst_ratios(centres_UD, torch.ones(n, dtype=torch.float64))
    assert n_pairs < n * (16 + 40)


def test_two_clusters_by_hand() -> None:
    centres_UD = torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 1.0]], dtype=torch.float64)
    spreads_U = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)
    # Between 0 and 1 lies 5, between 0 and 2 lies 1, between 1 and 2 the square root of 18.
    assert worst_ratios(centres_UD, spreads_U).tolist() == [1.5, 3 / 5, 1.5]
