"""Equal rows of a sample are one row of their weight."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from streamkm.clustering.seeding.sample import Sample, merged


# Breaks when the order of the rows, or how their weight is given, decides what is drawn.
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_repeated_rows_and_weights_are_the_same_sample(dtype: torch.dtype) -> None:
    rng = np.random.default_rng(0)
    rows = torch.from_numpy(rng.integers(0, 3, (400, 4))).to(dtype).unique(dim=0)
    assert len(rows) == 81
    times = torch.from_numpy(rng.integers(1, 5, len(rows)))
    order = torch.from_numpy(rng.permutation(len(rows)))
    repeated = merged(Sample(rows.repeat_interleave(times, dim=0)), 8)
    weighted = merged(Sample(rows[order], times[order].double()), 8)
    assert torch.equal(repeated.x_SD, weighted.x_SD)
    assert repeated.weights_S is not None
    assert weighted.weights_S is not None
    assert torch.equal(repeated.weights_S, weighted.weights_S)
    assert repeated.weights_S.sum() == times.sum()
    assert len(repeated) == 81  # No two different rows are merged.


# Breaks when a fit without equal rows gets another order, and other draws.
def test_what_has_no_equal_rows_stays_as_it_is() -> None:
    sample = Sample(torch.arange(12.0).reshape(6, 2))
    assert merged(sample, 3) is sample


def test_enough_rows_are_left() -> None:
    sample = Sample(torch.tensor([[0.0], [0.0], [-0.0], [1.0]]))
    assert merged(sample, 3) is sample  # 2 distinct rows: 0 and -0 are equal.
    assert len(merged(sample, 2)) == 2


# Breaks when a number and the one of all other bits, such as 2 and just above -2, have one hash.
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_numbers_of_complementary_bits_are_two(dtype: torch.dtype) -> None:
    kind = torch.int64 if dtype == torch.float64 else torch.int32
    rows = torch.arange(1.0, 101.0, dtype=dtype)[:, None]
    others = (~rows.view(kind)).view(dtype)
    assert len(merged(Sample(torch.cat((rows, others, rows[:1]))), 3)) == 200


def test_hashes_are_the_same_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = torch.from_numpy(np.random.default_rng(0).integers(0, 2, (100, 3))).float()
    whole = merged(Sample(rows), 2)
    monkeypatch.setattr("streamkm.clustering.seeding.sample.HASHED_ELEMENTS", 7)
    assert torch.equal(merged(Sample(rows), 2).x_SD, whole.x_SD)
