"""What a step does beside assigning and adding, by hand; test_minibatch.py has whole runs of it."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest
import torch

from streamkm.kernels import (
    Added,
    FixedSums,
    StepRules,
    StepState,
    can_finish,
    expected_exponents,
    finish_step_,
    instruction_sets,
)
from tests.forked import Forked

pytestmark = pytest.mark.skipif(not instruction_sets(), reason="the extension was not built")


def exponents(lengths: list[float], labels: list[int], dtype: torch.dtype, far: float = 1.0):
    """Centroids of lengths 3 and 100, rows of others; rows may be 4 from their centroids."""
    sq_norms_B = torch.tensor(lengths, dtype=dtype).square()
    found_E, n_misfits = expected_exponents(
        torch.tensor([9.0, 1e4], dtype=dtype), torch.tensor(labels), sq_norms_B,
        torch.full_like(sq_norms_B, far), reach=4.0, least_share=4.0**-16, most_share=0.25,
    )  # fmt: skip
    return found_E.tolist(), n_misfits


# Breaks when a row that the quanta do not fit is counted all the same, or one that fits is not.
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_rows_beyond_reach_are_found(dtype: torch.dtype) -> None:
    # 2^3 is above 3 + 4, and 2^7 above 100 + 4; one more for rounding, and 2^5 above 4^2.
    expected = [4, 8, 0, 5]
    assert exponents([7, 90, 128], [0, 1, 1], dtype) == (expected, 0)
    assert exponents([8.5, 129], [0, 1], dtype) == (expected, 2)
    assert exponents([1e-9, 0, 1e-9], [0, 1, 2], dtype) == (expected, 1)  # 2: not counted
    assert exponents([1e9], [2], dtype) == (expected, 0)
    assert exponents([7], [0], dtype, far=32) == (expected, 1)
    assert exponents([], [], dtype) == (expected, 0)
    with pytest.raises(IndexError, match="labels"):
        exponents([7], [3], dtype)


# Breaks when the end of a step is not what the docstrings of states and rules say.
@pytest.mark.parametrize("count_dtype", [torch.int16, torch.int32, torch.int64], ids=str)
def test_the_end_of_a_step_by_hand(count_dtype: torch.dtype) -> None:
    def scalar(value: float) -> torch.Tensor:
        return torch.tensor(value, dtype=torch.float64)

    def integer(value: int) -> torch.Tensor:
        return torch.tensor(value)

    state = StepState(
        torch.tensor([[1.0, 0], [5, 5]]), torch.tensor([[8.0, 0], [40, 40]]).double(),
        torch.tensor([8.0, 8]).double(), torch.tensor([8, 8]), torch.tensor([1, 2]),
        torch.zeros(0, 2), torch.zeros(0), torch.zeros(0), scalar(100), scalar(math.nan),
        scalar(math.nan), scalar(3), scalar(2), integer(4), integer(9), integer(0), scalar(0.5),
        integer(0),
    )  # fmt: skip
    # In quanta of 2^-2: two rows of cluster 0, whose sum is (4, 2); none of cluster 1; and one
    # that no cluster counts. The distances add up to 10 quarters.
    sums_LKD = torch.tensor([[[16, 8], [0, 0], [99, 99]]])
    fixed = FixedSums(
        sums_LKD, torch.tensor([2, 0, 1]), torch.tensor([10]),
        torch.tensor([3, 3, 3, 3], dtype=torch.int32), 5,
    )  # fmt: skip
    added = Added(fixed, torch.tensor([2, 0], dtype=count_dtype), torch.tensor([10, 3]))
    assert can_finish(state)
    # A cluster remembers at most 4 rows, two of them new: a quarter of the 8 before.
    finish_step_(state, added, StepRules(4.0, 39, 5, 1, 2), spherical=False)
    assert state.mass_K.tolist() == [4, 8]
    assert state.sums_KD.tolist() == [[6, 2], [40, 40]]
    assert state.centroids_KD.tolist() == [[1.5, 0.5], [5, 5]]
    assert state.counts_K.tolist() == [10, 8]
    assert state.epoch_counts_K.tolist() == [3, 2]
    assert (float(state.inertia), float(state.batch_inertia), float(state.shift)) == (
        102.5,
        1.25,
        0.5,
    )
    assert (int(state.n_steps), int(state.n_dropped)) == (10, 3)
    # 2 rows of 40 weigh a tenth, since both ends count.
    assert float(state.smoothed_inertia) == pytest.approx(3 * 0.9 + 1.25 * 0.1)
    assert float(state.best_inertia) == 2
    assert int(state.no_improvement) == 5
    assert int(state.stop) == 1  # By the shift, which comes first.


#: A step of one cluster of 2^23 features, whose process may have 16 MiB more than it has: a row
#: in float64 is 64 MiB.
WITHOUT_MEMORY = """
import math, resource
import torch
from streamkm.kernels import Added, FixedSums, StepRules, StepState, finish_step_
torch.set_num_threads(1)
D = 1 << 23
numbers = [torch.zeros((), dtype=torch.float64) for _ in range(5)]
wholes = [torch.zeros((), dtype=torch.int64) for _ in range(3)]
state = StepState(
    torch.zeros(1, D), torch.zeros(1, D).double(), torch.ones(1).double(), torch.tensor([5]),
    torch.tensor([5]), torch.zeros(0, D), torch.zeros(0), torch.zeros(0), *numbers, *wholes,
    torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.int64),
)
fixed = FixedSums(
    torch.ones(1, 2, D, dtype=torch.int64), torch.tensor([2, 0]), torch.tensor([10]),
    torch.tensor([3, 3, 3], dtype=torch.int32), 5,
)
added = Added(fixed, torch.tensor([2]), torch.tensor([10, 3]))
before = [tensor.clone() for tensor in state]
with open("/proc/self/statm") as file:
    size = int(file.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + (16 << 20), resource.RLIM_INFINITY))
try:
    finish_step_(state, added, StepRules(None, 39, 5, 1, 2), spherical=False)
    print("there was room")
except MemoryError:
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    print(all(map(torch.equal, before, state)))
"""


# Breaks when a step that finds no memory has changed half of the state.
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the size is read from there")
def test_a_step_without_memory_changes_nothing() -> None:
    process = Forked(["-c", WITHOUT_MEMORY], environment={**os.environ, "OMP_NUM_THREADS": "1"})
    out, err = process.communicate(timeout=60)
    assert (out, process.returncode) == ("True\n", 0), err
