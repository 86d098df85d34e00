"""Labels of bounded clusters: by price, in the order of the rows, however they are cut."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from streamkm.clustering.batch import Batch
from streamkm.clustering.preparation import Preparation
from streamkm.clustering.scaling import RunningMoments, Scaling
from streamkm.clustering.sizes import NEVER, PricedKernel, SizeRule, Taken, bounded_nearest, take_
from streamkm.kernels import KernelRequest, make_kernel
from streamkm.kernels.extension import instruction_sets
from tests.clustering.streams import CPU

KERNELS = ("reference", "cpu") if instruction_sets() else ("reference",)


def priced(prices: Any, n_rows: int, name: str = "reference") -> PricedKernel:
    prices_K = torch.as_tensor(prices, dtype=torch.float64)
    request = KernelRequest(n_rows, len(prices_K), torch.float32, CPU)
    return PricedKernel(make_kernel(name, request), prices_K)


def batch_of(kernel: PricedKernel, rows: np.ndarray) -> Batch:
    moments = RunningMoments.empty(rows.shape[1], CPU)
    prepare = Preparation.for_kernel(
        Scaling.fit("none", "euclidean", moments, torch.float32), kernel,
        batch_rows=len(rows), stored=torch.float32, dtype=torch.float32,
    )  # fmt: skip
    return prepare(torch.from_numpy(rows.astype(np.float32)), slice(0, len(rows)))


def taken(room: list[int], due: int = 0, n_rows: int = 0) -> Taken:
    k, no_rows = len(room), torch.zeros(0, dtype=torch.int64)
    n_given = torch.zeros((), dtype=torch.int64)
    return Taken(
        torch.tensor(room), torch.full((k,), due), torch.tensor(n_rows), torch.full((k,), NEVER),
        n_given, no_rows, no_rows,
    )  # fmt: skip


# On a line: centroids at 0, 10 and 20. A price of 40 on the first moves its border from 5 to 3.
def test_a_price_moves_the_border():
    kernel = priced([40, 0, 0], 5)
    rows = np.array([[0], [2.9], [3.1], [6], [19]])
    centroids_KD = torch.tensor([[0.0], [10.0], [20.0]])
    found = bounded_nearest(kernel, batch_of(kernel, rows), centroids_KD, None, 0)
    assert found.labels_B.tolist() == [0, 0, 1, 1, 2]
    # Distances are without the price.
    np.testing.assert_allclose(found.sq_distances_B, [0, 2.9**2, 6.9**2, 16, 1], rtol=1e-5)


# Six rows at 0, then one at 20, for clusters of 2, 3 and 2: the first two go to the nearest, three
# to the next, and one to the last, where the row that comes late has the place that is left.
def test_full_clusters_give_rows_to_the_next():
    kernel, rows = priced([0, 0, 0], 7), np.array([[0.0]] * 6 + [[20.0]])
    centroids_KD, room = torch.tensor([[0.0], [10.0], [20.0]]), taken([2, 3, 2], 0, 7)
    labels_B = take_(room, kernel, batch_of(kernel, rows), centroids_KD, 100)
    assert labels_B.tolist() == [0, 0, 1, 1, 1, 2, 2]
    assert room.closes_K.tolist() == [102, 105, 107]
    assert (room.room_K.tolist(), int(room.n_given)) == ([0, 0, 0], 4)


# Eight rows at 0, of which two are due to each of three clusters. After the fourth as many are left
# as are due to the others, so that the first closes.
def test_clusters_get_what_is_due_to_them():
    kernel, rows = priced([0, 0, 0], 8), np.zeros((8, 1))
    centroids_KD, left = torch.tensor([[0.0], [10.0], [20.0]]), taken([8, 8, 8], 2, 8)
    labels_B = take_(left, kernel, batch_of(kernel, rows), centroids_KD, 0)
    assert labels_B.tolist() == [0, 0, 0, 0, 1, 1, 2, 2]
    assert left.closes_K.tolist() == [4, 6, 8]
    # Where all rows are due from the first on.
    left = taken([8, 8, 8, 8], 2, 8)
    kernel, centroids_KD = priced([0] * 4, 8), torch.tensor([[0.0], [10.0], [20.0], [30.0]])
    labels_B = take_(left, kernel, batch_of(kernel, rows), centroids_KD, 0)
    assert labels_B.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


# Breaks when what a row gets depends on which rows it is computed with: then labels of predict,
# whose batches are others, would not hold the bounds; or when a cluster takes one too many.
@pytest.mark.parametrize("kernel_name", KERNELS)
@pytest.mark.parametrize(("spare", "due"), [(0, 0), (7, 0), (9, 30), (300, 33)])
def test_labels_do_not_depend_on_batches(kernel_name, spare, due):
    draws = np.random.default_rng(3)
    rows = np.sort(draws.normal(size=(300, 2)), axis=0)
    rows[100:140] = rows[100]
    centroids_KD = torch.from_numpy(rows[draws.choice(300, 9)].astype(np.float32))
    prices = draws.uniform(0, 0.1, 9)
    room = np.full(9, 300 // 9) + spare
    room[0] += 300 - 9 * (300 // 9)
    moved = torch.tensor([5, 6, 40, 41, 120, 299]), torch.tensor([8, 0, 3, 2, 1, 0])
    given = []
    for batch_rows in (300, 41, 7):
        kernel = priced(prices, max(batch_rows, 13), kernel_name)
        left = taken(room.tolist(), due, 300)._replace(moved_rows_M=moved[0], moved_to_M=moved[1])
        rule = SizeRule(torch.from_numpy(prices), left.closes_K, *moved)
        labels = [
            take_(left, kernel, batch_of(kernel, rows[i : i + batch_rows]), centroids_KD, i)
            for i in range(0, 300, batch_rows)
        ]
        given.append(torch.cat(labels))
        assert (torch.bincount(given[-1], minlength=9) <= torch.tensor(room)).all()
        assert torch.bincount(given[-1], minlength=9).min() >= due
        assert int(left.due_K.sum()) == int(left.n_left) == 0
        again = [
            bounded_nearest(
                kernel, batch_of(kernel, rows[i : i + 13]), centroids_KD, rule, i
            ).labels_B
            for i in range(0, 300, 13)
        ]
        assert torch.equal(torch.cat(again), given[-1])
    assert torch.equal(given[0], given[1])
    assert torch.equal(given[0], given[2])
