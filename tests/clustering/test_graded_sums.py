"""Sums in one order, and those of several processes that are taken together."""

from __future__ import annotations

import pytest
import torch

from streamkm.clustering.graded_sums import serial_sum, sum_graded_
from streamkm.distributed.world import ALONE, World
from streamkm.kernels import LEAST_GRADE, add_graded_, graded_total


class Pretended(World):
    """A world of two processes: what one asks for, the other has asked for before."""

    def __init__(self, theirs):
        super().__init__(0, 0, ["here", "there"])
        self._theirs = list(theirs)

    def max_(self, *tensors):
        for tensor in tensors:
            torch.maximum(tensor, self._theirs.pop(0), out=tensor)

    def sum_(self, *tensors):
        for tensor in tensors:
            tensor += self._theirs.pop(0)


def of(*addends):
    """Graded sums of these numbers, as one row of one column."""
    sums, grades = torch.zeros((2, 1, 1), dtype=torch.int64), torch.full((1,), LEAST_GRADE)
    for addend in addends:
        add_graded_(sums, grades, torch.tensor([[addend]], dtype=torch.float64))
    return sums, grades


# Breaks when sums of unlike sizes are added as if they were of one.
@pytest.mark.parametrize("own", [[1e-3, 2.0], [1e40], []])
def test_two_processes_have_the_sum_of_one(own):
    others = [3e20, 0.1, -7.5]
    whole = of(*own, *others)
    theirs = of(*others)
    raised = torch.maximum(theirs[1], of(*own)[1])
    raised_theirs = (theirs[0].clone(), theirs[1].clone())
    add_graded_(*raised_theirs, torch.tensor([[max(own, default=0.0)]], dtype=torch.float64))
    add_graded_(*raised_theirs, torch.tensor([[-max(own, default=0.0)]], dtype=torch.float64))
    sums, grades = of(*own)
    counts = torch.tensor([3, 4])
    world = Pretended([raised, raised_theirs[0], torch.tensor([10, 20])])
    sum_graded_(world, [(sums, grades)], counts)
    assert torch.equal(sums, whole[0])
    assert torch.equal(grades, whole[1])
    assert torch.equal(graded_total(sums, grades), graded_total(*whole))
    assert counts.tolist() == [13, 24]


def test_one_process_keeps_its_sums():
    sums, grades = of(1.5)
    sum_graded_(ALONE, [(sums, grades)])
    assert graded_total(sums, grades).item() == 1.5


# Breaks when torch divides a long sum among its threads.
def test_threads_do_not_show_in_a_sum(rng):
    values = torch.from_numpy(rng.normal(size=(300, 401)))
    before, found = torch.get_num_threads(), set()
    for n_threads in (1, 2, 3):
        torch.set_num_threads(n_threads)
        found.add(float(serial_sum(values)))
    torch.set_num_threads(before)
    assert len(found) == 1
    assert found.pop() == pytest.approx(float(values.sum()))
    assert float(serial_sum(torch.zeros(0))) == 0
