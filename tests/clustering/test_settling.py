"""Rows that go to the next cluster, in chains, and how they are gathered."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from streamkm.bounds import Bounds
from streamkm.clustering.settling import Pool, offer_, settle_
from streamkm.clustering.sizes import NEVER
from tests.clustering.streams import CPU
from tests.clustering.test_sizes import batch_of, priced

PLACES = 64


def empty() -> Pool:
    whole = torch.zeros(PLACES, dtype=torch.int64)
    losses_P = torch.full((PLACES,), torch.inf, dtype=torch.float64)
    return Pool(whole + NEVER, whole.clone(), whole.clone(), losses_P)


def gathered(
    rows: np.ndarray, centroids_KD: torch.Tensor, batch_rows: int
) -> tuple[Pool, torch.Tensor, torch.Tensor]:
    k = len(centroids_KD)
    pool, kernel = empty(), priced([0] * k, max(batch_rows, 2))
    prices_K, reach_K = torch.zeros(k).double(), torch.full((k,), torch.inf).double()
    labels = [
        offer_(
            pool, kernel, batch_of(kernel, rows[i : i + batch_rows]), centroids_KD, prices_K,
            reach_K, i,
        )
        for i in range(0, len(rows), batch_rows)
    ]  # fmt: skip
    return pool, torch.cat(labels), prices_K


# On a line: the first of three clusters has two too many, the last has room for two. Two rows go
# from each to the next, of the least losses: sent straight, they would cost far more.
@pytest.mark.parametrize("bounds", [Bounds(0, 4), Bounds(4, 12)], ids=str)
def test_rows_go_by_chains_at_the_least_cost(bounds):
    rows = np.array([[0], [1], [2], [3], [4], [4.5], [9], [10], [13], [14], [20], [21]])
    centroids_KD = torch.tensor([[0.0], [10.0], [20.0]])
    pool, labels_B, prices_K = gathered(rows, centroids_KD, 5)
    assert settle_(pool, torch.bincount(labels_B), prices_K, bounds) == 4
    assert pool.rows_P[:5].tolist() == [4, 5, 8, 9, NEVER]
    assert pool.to_P[:4].tolist() == [1, 1, 2, 2]
    labels_B[pool.rows_P[:4]] = pool.to_P[:4]
    apart = np.square(rows - centroids_KD.numpy().T)
    best = linear_sum_assignment(np.repeat(apart, 4, axis=1))
    assert apart[range(12), labels_B].sum() == np.repeat(apart, 4, axis=1)[best].sum()


# Breaks when what is gathered depends on how rows are cut into batches: many more rows than places,
# many of equal losses.
def test_what_is_gathered_does_not_depend_on_batches():
    draws = np.random.default_rng(0)
    rows = draws.integers(0, 12, (500, 2)).astype(float)
    centroids_KD = torch.from_numpy(draws.uniform(0, 12, (6, 2)).astype(np.float32))
    found = []
    for batch_rows in (500, 77, 20):
        pool, labels_B, prices_K = gathered(rows, centroids_KD, batch_rows)
        assert int((pool.rows_P != NEVER).sum()) == PLACES
        settle_(pool, torch.bincount(labels_B, minlength=6), prices_K, Bounds(0, 90))
        found.append(pool)
    for other in found[1:]:
        assert all(torch.equal(*pair) for pair in zip(found[0], other, strict=True))


def test_nothing_gathered_moves_nothing():
    prices_K = torch.zeros(2, dtype=torch.float64, device=CPU)
    assert settle_(empty(), torch.tensor([3, 1]), prices_K, Bounds(0, 2)) == 0
