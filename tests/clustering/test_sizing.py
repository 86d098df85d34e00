"""The parts of the passes that bound sizes, by hand; whole fits are in runs/test_bounded_sizes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from streamkm.bounds import Bounds
from streamkm.clustering.size_plan import N_BINS, sizing_bytes
from streamkm.clustering.sizing import allotted, initial_sizes, lost_by
from tests.clustering.streams import CPU


@given(st.lists(st.integers(0, 50), min_size=1, max_size=12), st.data())
def test_allotted_rows_are_within_bounds_and_all(counts, data):
    counts_K, k = torch.tensor(counts), len(counts)
    n_rows = int(counts_K.sum())
    least = data.draw(st.integers(0, n_rows // k))
    most = data.draw(st.integers(max(-(-n_rows // k), 1), 60))
    found_K = allotted(counts_K, Bounds(least, most))
    assert ((found_K >= least) & (found_K <= most)).all()
    assert int(found_K.sum()) == n_rows if least else (found_K == most).all()


def test_sizes_within_bounds_are_allotted_as_they_are():
    counts_K = torch.tensor([3, 4, 5])
    assert torch.equal(allotted(counts_K, Bounds(3, 5)), counts_K)


# The bins that end at the top bin are one octave in four parts: the last holds 1.75 to 2.
def test_what_the_last_of_some_rows_would_lose():
    top_bin = torch.tensor(1.8).view(torch.int32).long() >> 21
    counts_KE = torch.zeros((2, N_BINS), dtype=torch.int64)
    counts_KE[0, -4:] = torch.tensor([10, 0, 0, 20])
    found_K = lost_by(counts_KE, torch.tensor([5, 1]), top_bin)
    assert found_K.tolist() == [1.125, torch.inf]
    assert float(lost_by(counts_KE, torch.tensor([20, 1]), top_bin)[0]) == 1.875


@pytest.mark.parametrize("sq_distance", [0.0, 1e-20, 1.0, 1e30])
def test_a_state_takes_the_bytes_that_were_planned(sq_distance):
    sizes = initial_sizes(1000, torch.tensor(sq_distance), CPU)
    held = sum(tensor.nbytes for tensor in sizes.tensors().values())
    assert held <= sizing_bytes(1000) <= 6 * held
