"""Centroids of a few rows that go where they save more, before the closing pass."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from streamkm.clustering.spare import spend_spare_
from streamkm.clustering.state import KMeansState, initial_state
from tests.clustering.streams import bits, cut, inertia_of, lloyd, minibatch, run_epoch, state_from


def after_an_epoch(
    drawn: list[float], *, lone: float = 10.0, inertia: float = 1600.0, weight: float | None = None
) -> KMeansState:
    """Clusters of 200, 1, 100 and 0 rows at 0, `lone`, 100 and 60, and some drawn rows."""
    centroids = torch.tensor([[0.0], [lone], [100.0], [60.0]], dtype=torch.float64)
    state = initial_state(centroids, 0.0, weighted=weight is not None)
    counts = torch.tensor([200, 1, 100, 0])
    state.counts_K += counts
    state.epoch_counts_K += counts
    state.mass_K += torch.tensor([8.0, 2, 8, 0]) * (weight or 1)  # What each remembers.
    state.sums_KD += centroids * state.mass_K[:, None]
    state.inertia += inertia * (weight or 1)
    if weight is not None:
        state.weights_K += counts * weight
        state.epoch_weights_K += counts * weight
        state.reservoir_weights_R[: len(drawn)] = weight
    state.reservoir_RD[: len(drawn), 0] = torch.tensor(drawn)
    state.reservoir_keys_R[: len(drawn)] = torch.arange(len(drawn)).double()
    return state


# By hand: the drawn rows at 100 lie at squared distances of 4 and 1, so that the mean of all is the
# harmonic mean 1.6, and the inertia 160 (half of 1600 by their share). Half of 2 / pi of that is
# 51. Without the lone centroid 200 / 201 of its squared distance is lost: 49 at 7, 64 at 8.
@pytest.mark.parametrize("weight", [None, 3.0])
@pytest.mark.parametrize(("lone", "moves"), [(7.0, True), (8.0, False)])
def test_it_moves_where_half_of_the_gain_exceeds_the_loss(lone, moves, weight) -> None:
    state = after_an_epoch([102.0, 0.5, 99.0, 0.7], lone=lone, weight=weight)
    before = bits(state)
    assert spend_spare_(state, spherical=False) == moves
    step = math.sqrt(1.6 * 2 / math.pi)
    expected = [0, 100 + step, 100 - step, 60] if moves else [0, lone, 100, 60]
    assert state.centroids_KD[:, 0].tolist() == pytest.approx(expected)
    after = bits(state)
    assert [name for name in before if after[name] != before[name]] == ["centroids_KD"] * moves


# Breaks when one row far off says how far all rows of its cluster lie, be it by its distance or by
# its part of the inertia; or when the part of the inertia does not bound what a cluster has.
@pytest.mark.parametrize(
    ("drawn", "inertia"),
    [
        ([102.0], 1600.0),
        ([130.0, 131.0, 0.5], 1600.0),
        ([102.0, 99.0, 0.5, 0.6], 250.0),
        ([], 1600.0),
    ],
    ids=["one row", "heavy rows", "little inertia", "none"],
)
def test_a_cluster_is_halved_only_if_its_rows_surely_lie_apart(drawn, inertia) -> None:
    state = after_an_epoch(drawn, lone=7.0, inertia=inertia)
    before = bits(state)
    assert spend_spare_(state, spherical=False) == 0
    assert bits(state) == before


# Breaks when a cluster that stands on a row of the reservoir is judged by the rows of the epoch.
def test_a_cluster_that_was_just_filled_stays() -> None:
    state = after_an_epoch([102.0, 0.5, 99.0, 0.7], lone=30.0)
    assert spend_spare_(state, spherical=False) == 0
    assert float(state.centroids_KD[3, 0]) == 60


@pytest.mark.parametrize("k", [1, 2])
def test_nothing_moves_without_a_third_cluster(k) -> None:
    state = state_from([[0.0], [7.0]][:k])
    counts = torch.tensor([200, 1])[:k]
    state.epoch_counts_K += counts
    state.mass_K += counts
    state.inertia += 1e6
    state.reservoir_RD[:, 0], state.reservoir_keys_R[:] = 3.0, 1.0
    assert spend_spare_(state, spherical=False) == 0


def fit(
    rows: np.ndarray, first: np.ndarray, *, spends: bool, unit: bool = False
) -> tuple[int, float]:
    """Number of centroids that moved, and the inertia after an epoch and a closing pass."""
    state, batches = state_from(first), cut(rows, 500, unit=unit)
    options = {"n_rows": len(rows), "spherical": unit}
    run_epoch(minibatch(state.k, rate="annealed", batch_rows=500, **options), state, batches, 0)
    n_moved = spend_spare_(state, spherical=unit) if spends else 0
    run_epoch(lloyd(state.k, len(rows), spherical=unit, closing=True), state, batches, 1)
    return n_moved, inertia_of(rows, state)


# 20 groups of 500 rows, and 6 lone rows with a centroid each. 5 lie near enough that a half of a
# group saves more; the last one lies so far off that it stays.
@pytest.mark.parametrize("unit", [False, True], ids=["euclidean", "cosine"])
def test_lone_rows_lose_their_centroids_to_groups(rng, unit) -> None:
    centres = rng.normal(scale=20, size=(20, 4))
    centres /= np.linalg.norm(centres, axis=1, keepdims=True) if unit else 1
    spread = 0.05 if unit else 1.0
    rows = centres[rng.integers(20, size=10_000)] + spread * rng.normal(size=(10_000, 4))
    lone = rng.choice(10_000, 6, replace=False)
    rows[lone] = centres[:6] + spread * np.array([4.0] * 5 + [150.0])[:, None]
    if unit:
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    first = np.concatenate((centres, rows[lone]))
    n_moved, found = fit(rows, first, spends=True, unit=unit)
    _, without = fit(rows, first, spends=False, unit=unit)
    assert 1 <= n_moved <= 5
    assert found < 0.995 * without
