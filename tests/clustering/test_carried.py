"""What passes of Lloyd's algorithm leave for the next ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from streamkm.clustering.batch import Batch
from streamkm.clustering.carried import CarriedRows
from streamkm.clustering.lloyd import Lloyd
from streamkm.kernels.cpu import CpuKernel
from streamkm.kernels.extension import instruction_sets
from tests.clustering.streams import bits, state_from

if TYPE_CHECKING:
    import numpy as np

K = 20


def passed(carried: CarriedRows, compared: dict[int, int]) -> list[bool]:
    """Go through batches of 10 rows, each compared so often; whether each went by a drift."""
    went = []
    for index, n_compared in compared.items():
        of_batch = carried.of_batch(index, 10)
        if of_batch is None:
            continue
        went.append(of_batch.drift is not None)
        of_batch.n_compared = n_compared
        carried.take(index, of_batch, K)
    return went


# Breaks when a pass goes by what it does not know: the first, or one after a resumed one that has
# seen some batches only, or whose centroids are two moves away.
def test_only_what_the_pass_before_has_found() -> None:
    carried, c_KD = CarriedRows(), torch.zeros(K, 2)
    carried.begin_pass_(c_KD)
    assert passed(carried, {1: 200}) == [False]
    carried.begin_pass_(c_KD + 1)
    assert passed(carried, {0: 200, 1: 5}) == [False, True]
    carried.begin_pass_(c_KD + 2)
    assert passed(carried, {1: 5}) == [True]
    carried.begin_pass_(c_KD + 3)
    assert passed(carried, {0: 200, 1: 5}) == [False, True]


# Breaks when rows are looked at in vain in every batch, or never again.
def test_a_pass_gives_up_where_nothing_is_spared() -> None:
    carried, c_KD = CarriedRows(), torch.zeros(K, 2)
    expected = [[False] * 3, [True, False, False], [True, False, False], [True], [True]]
    for number, flags in enumerate(expected):
        carried.begin_pass_(c_KD + number)
        assert passed(carried, {0: 199, 1: 200, 2: 200}) == flags
    assert carried.n_rows == 150
    assert carried.spared_share == 5 / 3000
    # The others are kept again as soon as the first is worth it, and go by it in the next pass.
    for number, flags in ((5, [True, False, False]), (6, [True, True, True])):
        carried.begin_pass_(c_KD + number)
        assert passed(carried, {0: 9, 1: 9, 2: 9}) == flags


def in_windows(rng: np.random.Generator) -> list[Batch]:
    """Rows of three batches where they lie; some are not finite."""
    x_ND = torch.from_numpy(rng.normal(size=(900, 24))).float()
    x_ND[5] = torch.nan
    nothing = x_ND.new_empty(0)
    return [Batch(x_BD, nothing, None, lies_in_window=True) for x_BD in x_ND.split(400)]


# Breaks when what is carried changes a bit of the state, empty clusters that are filled are taken
# for unmoved, or a resumed run goes by centroids that it has not seen.
@pytest.mark.skipif(not instruction_sets(), reason="the extension was not built")
def test_states_are_the_same_bits_with_and_without(rng) -> None:
    batches = in_windows(rng)
    centroids_KD = rng.normal(size=(40, 24))
    centroids_KD[11] = 100  # which no row is nearest to
    kernel = CpuKernel(400, 40, torch.float32, torch.device("cpu"))
    plain, carrying = Lloyd(kernel, 0), Lloyd(kernel, 0, carried=CarriedRows())
    resumed = carrying
    states = [state_from(centroids_KD, dtype=torch.float32) for _ in range(3)]
    for epoch in range(7):
        for state, algorithm in zip(states, (plain, carrying, resumed), strict=True):
            algorithm.begin_epoch_(state)
            for index, batch in enumerate(batches):
                if algorithm is resumed and (epoch, index) == (3, 1):
                    algorithm = resumed = Lloyd(kernel, 0, carried=CarriedRows())
                algorithm.update_(state, batch, epoch=epoch, index=index)
            algorithm.finish_epoch_(state)
        assert bits(states[0]) == bits(states[1]) == bits(states[2])
        if epoch == 0:  # From now on a run of its own.
            resumed = Lloyd(kernel, 0, carried=CarriedRows())
    assert carrying.carried is not None
    assert carrying.carried.spared_share > 0.1
