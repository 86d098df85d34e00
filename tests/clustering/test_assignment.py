"""Labels of rows and sums of a batch are the same however the rows lie."""

from __future__ import annotations

import pytest
import torch

from streamkm.clustering.assignment import (
    nearest,
    nearest_and_sums,
    nearest_two,
    sums_by_label,
    weighted_sum,
)
from streamkm.clustering.preparation import Preparation
from streamkm.clustering.scaling import RunningMoments, Scaling
from streamkm.clustering.state import initial_state
from streamkm.kernels import Kernel, KernelRequest, make_kernel
from streamkm.kernels.cpu import CpuKernel
from streamkm.kernels.extension import instruction_sets
from streamkm.tables import ALGORITHMS
from tests.clustering.contract import made
from tests.clustering.streams import CPU, batch_of, bits
from tests.kernels.contract import normal, permuted


@pytest.fixture(params=["reference", "cpu"] if instruction_sets() else ["reference"])
def kernel(request: pytest.FixtureRequest) -> Kernel:
    return make_kernel(request.param, KernelRequest(9, 2, torch.float64, CPU))


# Breaks when a row that does not count is added up, a weight is left out or rounded, or a row of
# zeros goes where the lengths of centroids put it.
def test_sums_by_hand(kernel: Kernel) -> None:
    centroids_KD = torch.tensor([[0.0, 2.0], [1.0, 0.0]]).double()
    rows = [[0.0, 3.0], [5.0, 0.0], [0.0, 0.0], [torch.nan, 1.0], [7.0, 7.0], [3.0, 1.0]]
    batch = batch_of(rows, unit=True)
    assert batch.dropped_B is not None
    batch.weights_B = torch.tensor([2.0, 1e-30, 4.0, 0.0, 0.0, 3.0]).double()
    for spherical, place in ((True, 0), (False, 1)):
        (labels_B, sq_distances_B), (sums, counts_K, weights_K) = nearest_and_sums(
            kernel, batch, centroids_KD, spherical=spherical, exact=True
        )
        assert labels_B[[0, 1, 2, 5]].tolist() == [0, 1, place, 1]
        assert sq_distances_B[[0, 1, 5]].tolist() == [1.0, 16.0, 5.0]
        sums_KD = sums.wide()
        assert sums_KD.tolist() == [[0.0, 6.0], [9.0 + 5e-30, 3.0]]
        assert counts_K.tolist() == [2 - place, 2 + place]
        assert weights_K.tolist() == [2.0 + 4 * (1 - place), 3.0 + 4 * place]
        assert float(weighted_sum(batch, sq_distances_B)) == pytest.approx(
            2 + 15 + 4 * float(sq_distances_B[2])
        )
        again_KD = sums_by_label(kernel, batch, labels_B, centroids_KD)
        assert torch.equal(again_KD, sums_KD)


# Breaks when the second nearest is told of another label than the first.
def test_the_two_nearest_by_hand(kernel: Kernel) -> None:
    centroids_KD = torch.tensor([[0.0, 2.0], [1.0, 0.0]]).double()
    batch = batch_of([[0.0, 3.0], [5.0, 0.0], [0.0, 0.0]], unit=True)
    for spherical, label in ((True, 0), (False, 1)):
        labels_B, first_B, second_B = nearest_two(kernel, batch, centroids_KD, spherical=spherical)
        assert labels_B.tolist() == [0, 1, label]
        assert first_B[:2].tolist() == [1.0, 16.0]
        assert second_B[:2].tolist() == [10.0, 29.0]
        alone_B, exact_B = nearest(kernel, batch, centroids_KD, spherical=spherical)
        assert torch.equal(alone_B, labels_B)
        assert torch.equal(exact_B, first_B)


# Breaks when what lies in a window is clustered by other numbers than what was copied out of it.
# (The kernel of a tree takes no rows where they lie.)
@pytest.mark.parametrize("algorithm", [each for each in ALGORITHMS if each != "tree"])
@pytest.mark.parametrize("n_bad", [0, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("d", [9, 20])
def test_states_are_the_same_to_the_bit(
    algorithm: str, n_bad: int, dtype: torch.dtype, d: int
) -> None:
    x_ND = normal(3000, d, dtype=dtype, device=CPU)
    start_KD = x_ND[:12].clone()
    x_ND[20 : 20 + n_bad, 4] = torch.nan
    scaling = Scaling.fit("none", "euclidean", RunningMoments.of(x_ND[:20]), dtype)

    def state_after(*, in_place: bool) -> dict[str, bytes]:
        kernel = CpuKernel(700, 12, dtype, CPU)
        works = made(algorithm, kernel, len(x_ND), k=12)
        state = initial_state(start_KD.clone(), 0.0)
        for index, rows in enumerate(permuted(3000, 3000).split(700)):
            workspace_BD = torch.empty((700, d), dtype=dtype)
            batch = Preparation(scaling, workspace_BD, in_place)(x_ND.clone(), rows)
            assert len(batch) == len(rows)
            works.update_(state, batch, epoch=0, index=index)
        works.finish_epoch_(state)
        assert int(state.n_dropped) == n_bad
        return bits(state)

    assert state_after(in_place=True) == state_after(in_place=False)
