"""Centroids that follow the sums of their clusters, by hand."""

from __future__ import annotations

import pytest
import torch

from streamkm.clustering.moves import move_centroids_
from streamkm.clustering.state import initial_state
from streamkm.kernels import Sums


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
        added = Sums(torch.tensor([[1.0, 2.0], [9.0, 9.0]]), ones)
        touched_K = torch.tensor([True, False])
        shift = move_centroids_(state, touched_K, spherical=spherical, added=added)
        torch.testing.assert_close(state.centroids_KD, torch.tensor([expected, [0.0, 0.0]]))
        assert state.sums_KD.tolist() == [[4.0, 3.0], [5.0, 5.0]]
        assert float(shift) == pytest.approx(expected[0] ** 2 + expected[1] ** 2)
