"""Rows that are compared with lists of centroids: the same bits as a call for each list."""

from __future__ import annotations

import pytest
import torch

from streamkm.kernels.base import Listed
from streamkm.kernels.cpu import CpuKernel
from streamkm.kernels.extension import instruction_sets
from tests.kernels.contract import permuted, sq_norms

CPU = torch.device("cpu")
N_ROWS, K = 900, 500
pytestmark = pytest.mark.skipif(not instruction_sets(), reason="the extension was not built")


@pytest.fixture(params=instruction_sets(), ids=lambda each: each.name)
def instruction_set(request):
    return request.param


def listed(rng) -> Listed:
    """A list without rows, one of all centroids, one of one and one of 300, in any order."""
    members = [torch.arange(5), torch.arange(K), torch.tensor([7]), permuted(K, 300).sort().values]
    lengths = torch.tensor([0, *map(len, members)])
    starts = torch.tensor([0, 0, 420, 430, N_ROWS])
    order_B = torch.from_numpy(rng.permutation(N_ROWS)).int()
    return Listed(order_B, starts, torch.cat(members).long(), lengths.cumsum(0))


# Breaks when a row is compared with the centroids of another list, a label is left as the place in
# a list, or threads share memory.
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n_features", [3, 40])
def test_lists_have_the_bits_of_a_call_each(instruction_set, rng, dtype, n_features) -> None:
    x_BD = torch.from_numpy(rng.normal(size=(N_ROWS, n_features))).to(dtype)
    c_KD = torch.from_numpy(rng.normal(size=(K, n_features))).to(dtype)
    c_KD[9] = c_KD[7]
    lists = listed(rng)
    kernel = CpuKernel(N_ROWS, K, dtype, CPU, instruction_set=instruction_set)
    found = kernel.assign_listed(x_BD, sq_norms(x_BD), c_KD, lists)
    n_in_doubt = int(kernel.n_rechecked)
    for number in range(1, 4):
        rows = lists.order_B[lists.starts[number] : lists.starts[number + 1]].long()
        members = lists.members_P[lists.offsets[number] : lists.offsets[number + 1]]
        alone = kernel.assign(x_BD[rows], sq_norms(x_BD[rows]), c_KD[members])
        assert torch.equal(found.labels_B[rows], members[alone.labels_B])
        assert torch.equal(found.sq_distances_B[rows], alone.sq_distances_B)
    assert int(kernel.n_rechecked) == 2 * n_in_doubt


# Breaks when lists that leave a row out, or name no centroid, reach the arithmetic.
@pytest.mark.parametrize(
    ("order", "starts", "members", "offsets"),
    [
        ([0, 0], [0, 2], [0], [0, 1]),
        ([0, 2], [0, 2], [0], [0, 1]),
        ([0, 1], [0, 1], [0], [0, 1]),
        ([0, 1], [0, 2], [3], [0, 1]),
        ([0, 1], [0, 1, 2], [0], [0, 1, 1]),
    ],
)
def test_refuses_what_are_no_lists(rng, order, starts, members, offsets) -> None:
    x_BD = torch.from_numpy(rng.normal(size=(2, 4)))
    lists = Listed(torch.tensor(order).int(), *map(torch.tensor, (starts, members, offsets)))
    kernel = CpuKernel(2, 3, torch.float64, CPU)
    with pytest.raises(IndexError, match="each of 2 rows must be in one list"):
        kernel.assign_listed(x_BD, sq_norms(x_BD), torch.zeros(3, 4, dtype=torch.float64), lists)
