"""Sums in whole numbers: exact enough, and the same however their rows are divided."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from streamkm.kernels.ops import fixed
from streamkm.kernels.ops.fixed import (
    FixedSums,
    add_fixed_,
    bits_for,
    exponents_by_label,
    exponents_of,
    fixed_by_label,
    wide_by_label,
)

DTYPES = (torch.float32, torch.float64)
N_ROWS, K = 1000, 7


@pytest.fixture(params=["compiled", "torch"])
def _way(request, monkeypatch) -> None:
    if request.param == "torch":
        monkeypatch.setattr(fixed, "instruction_sets", tuple)


def made(dtype: torch.dtype, n_features: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows of very different lengths, their labels and their shares."""
    rng = np.random.default_rng(3)
    x_ND = rng.normal(size=(N_ROWS, n_features)) * 10.0 ** rng.integers(-9, 9, size=(N_ROWS, 1))
    labels_B = torch.from_numpy(rng.integers(K, size=N_ROWS))
    return torch.from_numpy(x_ND).to(dtype), labels_B, torch.from_numpy(rng.random(N_ROWS))


def summed(x_ND, labels_B, shares_B, edges, positions_B=None) -> FixedSums:
    """Sums of parts of the rows, added part after part."""
    taken_BD = x_ND if positions_B is None else x_ND[positions_B.long()]
    sq_norms_B = taken_BD.double().square().sum(dim=1).to(x_ND.dtype)
    sq_distances_B = sq_norms_B / 7
    exponents_E = exponents_by_label(sq_norms_B, sq_distances_B, shares_B, labels_B, K)
    sums = FixedSums.empty(exponents_E, x_ND.shape[1], x_ND.dtype, bits_for(N_ROWS))
    for start, stop in pairwise(edges):
        part = slice(start, stop)
        add_fixed_(
            sums,
            x_ND if positions_B is not None else x_ND[part],
            None if positions_B is None else positions_B[part],
            labels_B[part],
            sq_distances_B[part],
            None if shares_B is None else shares_B[part],
        )
    return sums


@pytest.mark.usefixtures("_way")
@pytest.mark.parametrize("n_features", [1, 3, 8, 20, 67, 130])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("weighted", [False, True])
def test_sums_are_those_of_long_integers_in_any_order(dtype, n_features, weighted) -> None:
    """An element taken twice, left out or rounded otherwise shows."""
    x_ND, labels_B, all_shares_B = made(dtype, n_features)
    shares_B = all_shares_B if weighted else None
    sums = summed(x_ND, labels_B, shares_B, (0, N_ROWS))
    turned = torch.randperm(N_ROWS, generator=torch.Generator().manual_seed(5))
    again = summed(
        x_ND[turned],
        labels_B[turned],
        None if shares_B is None else shares_B[turned],
        (0, 1, 18, 500, N_ROWS),
    )
    assert torch.equal(again.sums_LKD, sums.sums_LKD)
    assert torch.equal(again.total_1, sums.total_1)
    wide_B = x_ND.double().square().sum(dim=1).to(dtype).double() / 7
    weighted = (wide_B if shares_B is None else wide_B * shares_B).sum()
    assert float(sums.total()) == pytest.approx(float(weighted), rel=1e-6)
    assert sums.counts_K.tolist() == torch.bincount(labels_B, minlength=K).tolist()
    wide_ND = x_ND.double() * (1 if shares_B is None else shares_B[:, None])
    for label in range(K):
        of_label = wide_ND[labels_B == label]
        quantum = 2.0 ** (int(sums.exponents_E[label]) - sums.n_bits)
        assert float(of_label.abs().max()) < 2.0 ** int(sums.exponents_E[label])
        found_D = sums.sums_LKD[0, label].double() * quantum
        assert torch.equal(found_D, (of_label / quantum).round().sum(dim=0) * quantum)
        exact_D = np.array([np.longdouble(0)] * n_features)
        for row in of_label.numpy():
            exact_D += row
        wide_D = sums.wide()[label].numpy()
        limit = quantum * len(of_label) * (1.0 if dtype == torch.float32 else 2.0**-sums.n_bits)
        rounding = 2.0**-51 * np.abs(wide_D)
        assert np.all(np.abs(wide_D - exact_D) <= limit + rounding)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("weighted", [False, True])
def test_compiled_and_torch_agree_to_the_bit(dtype, weighted, monkeypatch) -> None:
    """Both round half to even, products first."""
    x_ND, labels_B, all_shares_B = made(dtype, 37)
    shares_B = all_shares_B if weighted else None
    compiled = summed(x_ND, labels_B, shares_B, (0, N_ROWS))
    monkeypatch.setattr(fixed, "instruction_sets", tuple)
    in_torch = summed(x_ND, labels_B, shares_B, (0, N_ROWS))
    assert torch.equal(compiled.exponents_E, in_torch.exponents_E)
    assert torch.equal(compiled.sums_LKD, in_torch.sums_LKD)
    assert torch.equal(compiled.wide(), in_torch.wide())


@pytest.mark.usefixtures("_way")
@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_of_a_window_are_added_where_they_lie(dtype) -> None:
    """Positions count into the window, labels into the batch."""
    x_ND, labels_B, _ = made(dtype, 20)
    positions_B = torch.arange(N_ROWS - 1, -1, -1, dtype=torch.int32)
    there = summed(x_ND, labels_B, None, (0, 300, N_ROWS), positions_B)
    copied = summed(x_ND.flip(0), labels_B, None, (0, N_ROWS))
    assert torch.equal(there.sums_LKD, copied.sums_LKD)


@pytest.mark.usefixtures("_way")
@pytest.mark.parametrize("dtype", DTYPES)
def test_sums_of_equal_rows_are_exact(dtype) -> None:
    """So that a centroid that is the mean of equal rows is that row."""
    row = torch.tensor([0.1, -1 / 3, 1e-3, 7.0], dtype=dtype)
    x_ND, labels_B = row.repeat(999, 1), torch.zeros(999, dtype=torch.int64)
    sums = summed(x_ND, labels_B, None, (0, 999))
    assert torch.equal((sums.wide()[0] / sums.counts_K[0]).to(dtype), row)


@pytest.mark.usefixtures("_way")
def test_no_rows_leave_sums_of_zero() -> None:
    """A process whose share of a batch is empty takes part with nothing."""
    x_ND, labels_B, _ = made(torch.float32, 5)
    nothing = torch.empty(0)
    exponents_E = exponents_by_label(nothing, nothing, None, labels_B[:0], K)
    sums = FixedSums.empty(exponents_E, 5, torch.float32, bits_for(1))
    add_fixed_(sums, x_ND[:0], None, labels_B[:0], nothing)
    assert not sums.wide().any()
    assert not sums.counts_K.any()
    assert float(sums.total()) == 0


def test_numbers_add_up_by_label() -> None:
    """Weights from 1e-9 to 1e9 keep 52 bits of the largest, and more."""
    rng = np.random.default_rng(0)
    values_B = torch.from_numpy(rng.random(N_ROWS) * 10.0 ** rng.integers(-9, 9, N_ROWS))
    labels_B = torch.from_numpy(rng.integers(K, size=N_ROWS))
    exponents_K, n_bits = exponents_of(values_B, labels_B, K), bits_for(N_ROWS)
    sums_LK = fixed_by_label(values_B, labels_B, exponents_K, n_bits)
    turned_LK = fixed_by_label(values_B.flip(0), labels_B.flip(0), exponents_K, n_bits)
    assert torch.equal(turned_LK, sums_LK)
    found = wide_by_label(sums_LK, exponents_K, n_bits)
    expected = torch.bincount(labels_B, values_B, minlength=K)
    torch.testing.assert_close(found, expected, rtol=1e-14, atol=0)


@pytest.mark.parametrize(
    ("n_rows", "bits"), [(1, 48), (1 << 14, 48), ((1 << 14) + 1, 47), (1 << 20, 42)]
)
def test_whole_numbers_leave_room_for_all_rows(n_rows, bits) -> None:
    """A sum of `n_rows` of them is less than 2^62."""
    assert bits_for(n_rows) == bits
    assert n_rows << bits <= 1 << 62
