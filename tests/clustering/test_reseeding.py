"""The reservoir of rows that replace empty clusters."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from streamkm.clustering.reseeding import (
    DRAWN_PER_BATCH,
    OFFERED_PER_BATCH,
    draw_,
    reseed_,
    step_generator,
)
from streamkm.clustering.sizes import reservoir_rows
from tests.clustering.streams import CPU, batch_of, bits, state_from

ONES = torch.ones(1, dtype=torch.bool)


def offer(state, rows: list[list[float]], sq_distances: list[float], *entropy: int, unit=False):
    draw_(
        state,
        batch_of(rows, unit=unit),
        torch.tensor(sq_distances, dtype=torch.float64),
        step_generator(CPU, *entropy),
    )


# Breaks when weights are distances, not their squares, or a later batch has an advantage.
def test_drawn_in_proportion_to_the_squared_distance() -> None:
    n_draws, weights = 3000, np.array([1.0, 2.0, 3.0, 4.0, 5.0])
    counts = np.zeros(5)
    for seed in range(n_draws):
        state = state_from([[0.0]])
        offer(state, [[1.0], [2.0], [3.0]], [1.0, 2.0, 3.0], seed, 0)
        offer(state, [[4.0], [5.0]], [4.0, 5.0], seed, 1)
        counts[int(state.reservoir_RD[0, 0]) - 1] += 1
    expected = n_draws * weights / weights.sum()
    assert (np.abs(counts - expected) < 5 * np.sqrt(expected)).all()


# Breaks when draws are with replacement: one far row would take all the places.
def test_drawn_without_replacement() -> None:
    state = state_from([[0.0]] * 4)
    offer(state, [[1.0], [2.0], [3.0]], [1e9, 1.0, 1.0], 0)
    assert sorted(state.reservoir_RD[:3, 0].tolist()) == [1.0, 2.0, 3.0]
    assert state.reservoir_keys_R.isfinite().tolist() == [True, True, True, False]
    keys = state.reservoir_keys_R.tolist()
    assert keys == sorted(keys)


# Breaks when a row on its centroid (to rounding) or a zero row of unit data gets in.
def test_rows_of_no_use_are_never_taken() -> None:
    state = state_from([[0.0]] * 3)
    offer(state, [[1.0], [2.0]], [0.0, 0.0], 0)
    assert state.reservoir_keys_R.isinf().all()
    offer(state, [[100.0], [7.0]], [1e4 * 1e-16, 1e-3], 1)
    assert state.reservoir_RD[:, 0].tolist() == [7.0, 0.0, 0.0]
    offer(state, [[0.0], [1.0]], [1.0, 0.5], 2, unit=True)
    assert sorted(state.reservoir_RD[:, 0].tolist()) == [0.0, 1.0, 7.0]
    assert state.reservoir_keys_R.isfinite().tolist() == [True, True, False]


# Breaks when some places in a batch are never offered: there a far row would never be found.
def test_every_place_in_a_long_batch_has_its_chance() -> None:
    found = set()
    for step in range(60):
        distances = [0.0] * (4 * OFFERED_PER_BATCH)
        for place in range(4):
            distances[400 + place] = 1.0
        state = state_from([[0.0]])
        offer(state, [[float(i)] for i in range(len(distances))], distances, step)
        found.add(int(state.reservoir_RD[0, 0]))
    assert found == {400, 401, 402, 403}


# Breaks when something beside the coordinates of a step decides.
def test_the_same_step_draws_the_same() -> None:
    rows = np.random.default_rng(0).normal(size=(500, 3)).tolist()
    weights = [float(i) for i in range(500)]
    states = [state_from([[0.0] * 3] * 20) for _ in range(4)]
    for state, entropy in zip(states, [(1, 2, 3), (1, 2, 3), (1, 2, 4), (2, 2, 3)], strict=True):
        torch.rand(1)
        offer(state, rows, weights, *entropy)
    one, same, other_index, other_seed = map(bits, states)
    assert one == same
    assert one["reservoir_RD"] not in (other_index["reservoir_RD"], other_seed["reservoir_RD"])


# Breaks when coordinates are added up, so that (1, 2) is (2, 1), or are cut to 32 bits.
def test_generators_of_different_steps_differ() -> None:
    numbers = range(-1, 7)
    steps: list[tuple[int, ...]] = [(a, b, c) for a in numbers for b in numbers for c in numbers]
    steps += [(a,) for a in numbers] + [(2**32, 0, 0), (2**63, 0, 0), (0, 2**32, 0)]
    draws = {float(torch.rand((), generator=step_generator(CPU, *step)).item()) for step in steps}
    seeds = {step_generator(CPU, *step).initial_seed() for step in steps}
    assert len(seeds) == len(steps)
    assert len(draws) > 0.99 * len(steps)


# Breaks when the mixing changes: checkpoints of older versions would go on otherwise.
def test_seeds_of_steps_are_pinned() -> None:
    # splitmix64's first output from state 0 is 0xE220A8397B1DCDAF.
    assert step_generator(CPU, 0).initial_seed() == 0xE220A8397B1DCDAF >> 1


# Breaks when places are not those of the starved, or rows are used twice.
def test_starved_clusters_get_the_rows_in_order() -> None:
    state = state_from([[0.0], [10.0], [20.0], [30.0]])
    state.sums_KD += 5
    state.counts_K += 5
    state.reservoir_RD.copy_(torch.tensor([[1.0], [2.0], [3.0], [0.0]]))
    state.reservoir_keys_R.copy_(torch.tensor([0.1, 0.2, 0.3, torch.inf]))
    moved_K = reseed_(state, torch.tensor([False, True, False, True]))
    assert moved_K.tolist() == [False, True, False, True]
    assert state.centroids_KD[:, 0].tolist() == [0.0, 1.0, 20.0, 2.0]
    # A moved cluster is the mean of its sum and count: else the next update undoes it.
    assert state.sums_KD[:, 0].tolist() == [5.0, 1.0, 5.0, 2.0]
    assert state.counts_K.tolist() == [5, 1, 5, 1]
    assert int(state.n_reseeded) == 2


# Breaks when copies of one row get several centroids, of which all but one attract nothing.
def test_equal_rows_get_one_place() -> None:
    state = state_from([[5.0], [6.0], [7.0], [8.0]])
    state.reservoir_RD.copy_(torch.tensor([[2.0], [2.0], [1.0], [2.0]]))
    state.reservoir_keys_R.copy_(torch.tensor([0.1, 0.2, 0.3, 0.4]))
    moved_K = reseed_(state, torch.tensor([True, True, False, True]))
    assert moved_K.tolist() == [True, True, False, False]
    assert state.centroids_KD[:, 0].tolist() == [2.0, 1.0, 7.0, 8.0]


# Breaks when places without a row (infinite keys) are used as if they had one.
def test_no_more_clusters_are_moved_than_there_are_rows() -> None:
    state = state_from([[5.0], [6.0], [7.0]])
    offer(state, [[1.0]], [1.0], 0)
    moved_K = reseed_(state, torch.ones(3, dtype=torch.bool))
    assert moved_K.tolist() == [True, False, False]
    assert state.centroids_KD[:, 0].tolist() == [1.0, 6.0, 7.0]


# Breaks when many clusters, or few rows, outgrow the reservoir or the batch.
@pytest.mark.parametrize(("k", "n_rows"), [(1, 1), (3, 1000), (1000, 5), (1000, 1000)])
def test_reservoir_is_bounded(k: int, n_rows: int) -> None:
    state = state_from([[0.0]] * k)
    assert len(state.reservoir_RD) == min(k, reservoir_rows(k))
    offer(state, [[1.0]] * n_rows, [1.0] * n_rows, 0)
    n_held = int(state.reservoir_keys_R.isfinite().sum())
    assert n_held == min(k, reservoir_rows(k), n_rows, DRAWN_PER_BATCH)
