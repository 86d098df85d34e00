"""The state as a value: named tensors, copied and rebuilt to the bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from streamkm.clustering.state import BY_TOL, STOP_REASONS, KMeansState, initial_state
from streamkm.kernels import Sums
from tests.clustering.streams import batch_of, bits, minibatch, state_from


def used_state(rng: np.random.Generator) -> KMeansState:
    state = state_from(rng.normal(size=(5, 3)), tolerance=1e-9, dtype=torch.float32)
    algorithm = minibatch(5, 40, torch.float32, max_no_improvement=9)
    state.begin_epoch_()
    for index in range(3):
        rows = rng.normal(size=(40, 3))
        rows[0] = np.nan
        algorithm.update_(state, batch_of(rows, torch.float32), epoch=0, index=index)
    return state


# Breaks when a field is missing from tensors(): a checkpoint would lose it.
def test_a_state_is_its_tensors(rng) -> None:
    state = used_state(rng)
    again = KMeansState(**{name: tensor.clone() for name, tensor in state.tensors().items()})
    assert bits(again) == bits(state)
    # The same next step follows from it.
    rows = rng.normal(size=(40, 3))
    for each in (state, again):
        minibatch(5, 40, torch.float32, max_no_improvement=9).update_(
            each, batch_of(rows, torch.float32), epoch=0, index=3
        )
    assert bits(again) == bits(state)


# Breaks when counts or sums are narrowed.
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtypes(dtype: torch.dtype) -> None:
    state = initial_state(torch.zeros((2, 3), dtype=dtype), 0.5, weighted=True, n_branches=2)
    tensors = state.tensors()
    integers = {"counts_K", "epoch_counts_K", "no_improvement", "n_steps", "n_dropped"}
    integers |= {"n_reseeded", "stop", "reservoir_labels_R", "pass_sums_LKD", "pass_grades_K"}
    integers |= {"pass_totals_LT", "pass_total_grades_T", "listed_P", "n_listed_J"}
    rows = {"centroids_KD", "reservoir_RD", "branches_JD"}
    for name, tensor in tensors.items():
        expected = torch.int64 if name in integers else dtype if name in rows else torch.float64
        assert tensor.dtype == expected, name
    assert float(state.tolerance) == 0.5
    assert state.k == 2
    assert len({tensor.data_ptr() for tensor in tensors.values()}) == len(tensors)


# Breaks when the closing pass goes on with the counts of the epoch that stopped the run.
def test_the_closing_pass_begins_anew_although_the_state_is_stopped(rng) -> None:
    state = used_state(rng)
    state.stop.fill_(BY_TOL)
    state.begin_epoch_(closing=True)
    assert int(state.epoch_counts_K.sum()) == int(state.n_dropped) == float(state.inertia) == 0
    assert state.reservoir_keys_R.isinf().all()
    assert int(state.stop) == BY_TOL


# Breaks when an epoch inherits another's inertia, or forgets what belongs to the run.
def test_begin_epoch_forgets_the_epoch_only(rng) -> None:
    state = used_state(rng)
    before = bits(state)
    state.begin_epoch_()
    assert int(state.epoch_counts_K.sum()) == int(state.n_dropped) == float(state.inertia) == 0
    assert state.reservoir_keys_R.isinf().all()
    changed = {name for name, value in bits(state).items() if value != before[name]}
    assert changed == {"epoch_counts_K", "n_dropped", "inertia", "reservoir_keys_R"}


# Breaks when rows without weights carry tensors, and checkpoints, of ones.
def test_a_state_without_weights_has_none() -> None:
    state = initial_state(torch.zeros((2, 3)), 0.5)
    assert not state.is_weighted
    assert {t.shape for n, t in state.tensors().items() if "weights" in n} == {(0,)}
    assert state.whole_mass_K is state.counts_K


def test_begin_epoch_leaves_a_stopped_state_alone(rng) -> None:
    state = used_state(rng)
    state.stop.fill_(BY_TOL)
    before = bits(state)
    state.begin_epoch_()
    assert bits(state) == before
    assert BY_TOL in STOP_REASONS


# Breaks when the sums of a model are those of the few rows that a cluster remembers: they would be
# divided by the counts of all rows when `partial_fit` goes on.
def test_whole_sums_are_the_counts_times_the_means() -> None:
    state = state_from([[2.0], [3.0], [7.0]])
    state.sums_KD.copy_(torch.tensor([[8.0], [30.0], [0.0]]))
    state.mass_K.copy_(torch.tensor([4.0, 10.0, 0.0]))
    state.counts_K.copy_(torch.tensor([100, 10, 0]))
    assert state.whole_sums_KD[:, 0].tolist() == [200.0, 30.0, 0.0]


# Breaks when a mean is divided by the number of rows where they have weights, when a centroid
# that was not touched moves, or sums of a batch are forgotten or added to all clusters.
@pytest.mark.parametrize("weighted", [False, True])
def test_means_directions_and_the_shift(weighted: bool) -> None:
    ones = torch.ones((), dtype=torch.float64)
    for spherical, expected in ((False, [2.0, 1.5]), (True, [0.8, 0.6])):
        state = initial_state(torch.zeros((2, 2)), 0.0, weighted=weighted)
        state.sums_KD += torch.tensor([[3.0, 1.0], [5.0, 5.0]])
        state.counts_K += 7 if weighted else 2
        state.weights_K += 2
        state.mass_K += 2
        added = Sums(torch.tensor([[1.0, 2.0], [9.0, 9.0]]), ones)
        touched_K = torch.tensor([True, False])
        shift = state.move_(touched_K, spherical=spherical, added=added)
        torch.testing.assert_close(state.centroids_KD, torch.tensor([expected, [0.0, 0.0]]))
        assert state.sums_KD.tolist() == [[4.0, 3.0], [5.0, 5.0]]
        assert float(shift) == pytest.approx(expected[0] ** 2 + expected[1] ** 2)
