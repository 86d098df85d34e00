"""The reservoir of rows that replace empty clusters."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from streamkm.clustering.batch import Batch
from streamkm.clustering.reservoir import (
    OFFERED_PER_BATCH,
    draw_,
    reseed_,
    step_generator,
)
from streamkm.clustering.state import initial_state, reservoir_rows
from streamkm.kernels.extension import instruction_sets
from streamkm.kernels.ops import offer as module
from streamkm.kernels.ops.offer import DRAWN_PER_BATCH
from tests.clustering.streams import CPU, batch_of, bits, state_from


@pytest.fixture(params=["compiled", "torch"], autouse=True)
def way(request, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "torch":
        monkeypatch.setattr(module, "instruction_sets", lambda: ())


ONES = torch.ones(1, dtype=torch.bool)


def offer(state, rows: list[list[float]], sq_distances: list[float], *entropy: int, unit=False):
    draw_(
        state,
        batch_of(rows, unit=unit),
        torch.arange(len(rows)) % state.k,
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


# Breaks when a row that could come before the last of the reservoir is passed over without a look.
def test_what_is_passed_over_could_not_have_entered() -> None:
    rows = np.random.default_rng(0).normal(size=(3000, 3))
    sq_distances = np.random.default_rng(1).exponential(size=3000)
    state = state_from([[0.0] * 3] * 20)
    keys: list[float] = []
    for step, part in enumerate(np.split(np.arange(3000), 10)):
        offer(state, rows[part].tolist(), sq_distances[part].tolist(), step)
        drawn = torch.rand(300, dtype=torch.float64, generator=step_generator(CPU, step))
        least = -np.log1p(-drawn.numpy()) / sq_distances[part]
        keys = sorted([*keys, *np.sort(least)[:DRAWN_PER_BATCH]])[: len(state.reservoir_keys_R)]
        np.testing.assert_allclose(state.reservoir_keys_R.numpy(), keys, rtol=1e-12)


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


def filled_reservoir(rows: list[float], labels: list[int], counts: list[int]):
    """A state of one centroid at 10 for each count, with so many rows that add up to 5 each."""
    state = state_from([[10.0]] * len(counts))
    state.sums_KD += 5
    state.counts_K += torch.tensor(counts)
    state.epoch_counts_K += state.counts_K
    n = len(state.reservoir_keys_R)
    padding = [0.0] * (n - len(rows))
    state.reservoir_RD.copy_(torch.tensor([*rows, *padding])[:, None])
    state.reservoir_labels_R.copy_(torch.tensor([*labels, *padding]))
    keys = [0.1 * i for i in range(len(rows))] + [torch.inf] * len(padding)
    state.reservoir_keys_R.copy_(torch.tensor(keys))
    return state


# Breaks when places are not those of the starved, rows are used twice, or a row stays in
# the sum that it came from: the clusters would be no partition of the rows.
def test_starved_clusters_get_the_rows_in_order() -> None:
    state = filled_reservoir([1.0, 2.0, 3.0], [2, 0, 0], [5, 0, 5, 0])
    reseeding = reseed_(state, state.counts_K == 0)
    assert reseeding.filled_K.tolist() == [False, True, False, True]
    assert reseeding.donors_K.tolist() == [True, False, True, False]
    assert float(reseeding.sq_distances) == 81 + 64
    assert state.sums_KD[:, 0].tolist() == [3.0, 1.0, 4.0, 2.0]
    assert state.counts_K.tolist() == [4, 1, 4, 1]
    assert int(state.n_reseeded) == 2


# Breaks when places without a row (infinite keys) are used as if they had one.
def test_no_more_clusters_are_moved_than_there_are_rows() -> None:
    state = filled_reservoir([1.0], [2], [0, 0, 7])
    assert reseed_(state, state.counts_K == 0).filled_K.tolist() == [True, False, False]
    assert state.counts_K.tolist() == [1, 0, 6]


# Breaks when a cluster gives its last row away, which leaves one empty for the one filled.
def test_a_cluster_keeps_its_last_row() -> None:
    state = filled_reservoir([1.0, 2.0, 3.0], [1, 1, 2], [0, 2, 1, 0, 0])
    assert reseed_(state, state.counts_K == 0).filled_K.tolist() == [True, *[False] * 4]
    assert state.counts_K.tolist() == [1, 1, 1, 0, 0]


# Breaks when equal rows become two centroids of one place: one of them stays without a row.
def test_equal_rows_are_used_once() -> None:
    state = filled_reservoir([1.0, 1.0, 3.0], [3, 3, 3], [0, 0, 0, 9])
    assert reseed_(state, state.counts_K == 0).filled_K.tolist() == [True, True, False, False]
    assert state.sums_KD[:, 0].tolist() == [1.0, 3.0, 5.0, 1.0]


# Breaks when many clusters, or few rows, outgrow the reservoir or the batch.
@pytest.mark.parametrize(("k", "n_rows"), [(1, 1), (3, 1000), (1000, 5), (1000, 1000)])
def test_reservoir_is_bounded(k: int, n_rows: int) -> None:
    state = state_from([[0.0]] * k)
    assert len(state.reservoir_RD) == min(k, reservoir_rows(k))
    offer(state, [[1.0]] * n_rows, [1.0] * n_rows, 0)
    n_held = int(state.reservoir_keys_R.isfinite().sum())
    assert n_held == min(k, reservoir_rows(k), n_rows, DRAWN_PER_BATCH)


# Breaks when the two ways draw other rows, or take them from elsewhere in the window.
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_both_ways_draw_the_same(monkeypatch: pytest.MonkeyPatch, rng, dtype, weighted) -> None:
    window_ND = torch.as_tensor(rng.normal(size=(900, 3))).to(dtype)
    window_ND[::7] = 0
    states = []
    for available in (instruction_sets(), ()):
        monkeypatch.setattr(module, "instruction_sets", lambda available=available: available)
        draws = np.random.default_rng(0)
        state = initial_state(window_ND[:40].clone(), 0.0, weighted=weighted)
        for step in range(6):
            positions_B = torch.from_numpy(draws.permutation(900)[:700]).int()
            norms_B = window_ND[positions_B.long()].square().sum(dim=1)
            weights_B = torch.from_numpy(draws.integers(0, 3, 700)).double() if weighted else None
            batch = Batch(
                window_ND, norms_B, None, weights_B=weights_B, positions_B=positions_B,
                is_normalized=True,
            )  # fmt: skip
            sq_distances_B = torch.from_numpy(draws.exponential(size=700)).to(dtype)
            sq_distances_B[::5] = 0
            labels_B = torch.from_numpy(draws.integers(0, 40, 700))
            generator = step_generator(CPU, step)
            draw_(state, batch, labels_B, sq_distances_B, generator, n_offered=100 * (1 + step))
        states.append(state.tensors())
    for name, tensor in states[0].items():
        torch.testing.assert_close(tensor, states[1][name], rtol=1e-12, atol=0, equal_nan=True)
    assert states[0]["reservoir_keys_R"].isfinite().all()


def test_rows_that_are_not_within_the_window_are_refused() -> None:
    state = state_from([[0.0]])
    rows = torch.ones((4, 1)).double()
    batch = Batch(rows, torch.ones(2).double(), None, positions_B=torch.tensor([0, 4]).int())
    with pytest.raises((IndexError, RuntimeError)):
        draw_(state, batch, torch.zeros(2).long(), torch.tensor([0.0, 1.0]).double(),
              step_generator(CPU, 0))  # fmt: skip
