"""The reservoir of rows that replace empty clusters."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from streamkm.clustering.reservoir import (
    OFFERED_PER_BATCH,
    draw_,
    reseed_,
    step_generator,
)
from streamkm.clustering.reservoir_plan import reservoir_rows
from tests.clustering.streams import CPU, batch_of, bits, state_from


@pytest.fixture(params=["compiled", "torch"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "torch":
        monkeypatch.setattr("streamkm.kernels.ops.offer.instruction_sets", tuple)


def offer(state, rows: list[list[float]], sq_distances: list[float], *entropy: int, unit=False):
    draw_(
        state,
        batch_of(rows, unit=unit),
        torch.arange(len(rows)) % state.k,
        torch.tensor(sq_distances, dtype=torch.float64),
        step_generator(CPU, *entropy),
    )


# Breaks when some places in a batch are never offered: there a far row would never be found.
@pytest.mark.usefixtures("way")
def test_every_place_in_a_long_batch_has_its_chance() -> None:
    n_rows, places = 4 * OFFERED_PER_BATCH, range(400, 404)
    batch = batch_of(torch.arange(n_rows)[:, None])
    sq_distances_B = torch.zeros(n_rows, dtype=torch.float64)
    sq_distances_B[list(places)] = 1.0
    found = set()
    for step in range(60):
        state = state_from([[0.0]])
        labels_B = torch.zeros(n_rows, dtype=torch.int64)
        draw_(state, batch, labels_B, sq_distances_B, step_generator(CPU, step))
        found.add(int(state.reservoir_RD[0, 0]))
    assert found == set(places)


# Breaks when something beside the coordinates of a step decides.
@pytest.mark.usefixtures("way")
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
    """A state of one centroid at 10 for each count, with that many rows, which add up to 5 each."""
    state = state_from([[10.0]] * len(counts))
    state.sums_KD += 5
    state.counts_K += torch.tensor(counts)
    state.mass_K += state.counts_K
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


# Breaks when a cluster that has forgotten most rows loses a whole one: its mass turns negative.
def test_a_donor_loses_as_much_of_a_row_as_it_remembers() -> None:
    state = filled_reservoir([1.0], [0], [50, 0])
    state.mass_K[0] = 0.5  # A hundredth of its rows.
    reseed_(state, state.counts_K == 0)
    assert state.counts_K.tolist() == [49, 1]
    assert state.mass_K.tolist() == pytest.approx([0.49, 1])
    assert state.sums_KD[:, 0].tolist() == pytest.approx([5 - 0.01, 1])


# Breaks when the rows that the seeding counts as are lost with a row: it would be lost thrice.
def test_a_donor_loses_a_row_once() -> None:
    state = filled_reservoir([1.0], [0], [2, 0])
    state.mass_K[0] = 6.0
    reseed_(state, state.counts_K == 0)
    assert state.mass_K.tolist() == [5, 1]
    assert state.sums_KD[:, 0].tolist() == [4, 1]


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


# Breaks when many clusters outgrow the reservoir, or it is longer than anyone needs.
@pytest.mark.parametrize(("k", "n_places"), [(1, 1), (3, 3), (256, 256), (1000, 256), (8192, 512)])
def test_reservoir_is_bounded(k: int, n_places: int) -> None:
    assert reservoir_rows(k) == len(state_from([[0.0]] * k).reservoir_RD) == n_places
