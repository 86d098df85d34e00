"""Rows of which the pass before has found something: the same bits, by bounds that always hold."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

from streamkm.kernels.base import Carried
from streamkm.kernels.cpu import CpuKernel
from streamkm.kernels.drift import Drift
from streamkm.kernels.extension import instruction_sets

CPU = torch.device("cpu")
N_ROWS = 400
DTYPES = [torch.float32, torch.float64]
pytestmark = pytest.mark.skipif(not instruction_sets(), reason="the extension was not built")


@pytest.fixture(params=instruction_sets(), ids=lambda each: each.name)
def instruction_set(request):
    return request.param


def fresh(n_rows: int) -> Carried:
    return Carried(torch.zeros(n_rows, dtype=torch.int32), torch.zeros(n_rows))


def plain(rng: np.random.Generator, k: int, d: int) -> np.ndarray:
    return rng.normal(size=(k, d)) * 3


def near_ties(rng: np.random.Generator, k: int, d: int) -> np.ndarray:
    return 1 + rng.normal(size=(k, d)) * 1e-7


def equal(_rng: np.random.Generator, k: int, d: int) -> np.ndarray:
    return np.ones((k, d))


def denormal(rng: np.random.Generator, k: int, d: int) -> np.ndarray:
    return rng.normal(size=(k, d)) * 1e-39


def tiny(rng: np.random.Generator, k: int, d: int) -> np.ndarray:
    return rng.normal(size=(k, d)) * 1e-20


def huge(rng: np.random.Generator, k: int, d: int) -> np.ndarray:
    return rng.normal(size=(k, d)) * 8e18 / math.sqrt(d)


def far_off(rng: np.random.Generator, k: int, d: int) -> np.ndarray:
    return 1e4 + rng.normal(size=(k, d))


def with_one_far(rng: np.random.Generator, k: int, d: int) -> np.ndarray:
    points: np.ndarray = rng.normal(size=(k, d))
    points[k // 2] *= 1e6
    return points


POINTS = [plain, near_ties, equal, denormal, tiny, huge, far_off, with_one_far]


def data(rng: Any, points: Any, k: int, d: int, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """Centroids, and rows around them of which some have NaN or are too long."""
    c_KD = points(rng, k, d)
    spread = c_KD.std() * 0.7 if points is not equal else 1.0
    x_BD = c_KD[rng.integers(k, size=N_ROWS)] + rng.normal(size=(N_ROWS, d)) * spread
    x_BD[3, d // 2], x_BD[200] = np.nan, 1e300
    x_BD[5:8] = c_KD[k // 3]
    with np.errstate(over="ignore"):
        return torch.from_numpy(x_BD).to(dtype), torch.from_numpy(c_KD).to(dtype)


def moved(rng: np.random.Generator, c_KD: torch.Tensor, share: float, by: float) -> torch.Tensor:
    """`c_KD` with some centroids moved, by multiples of how far apart they are."""
    after_KD = c_KD.clone()
    some = torch.from_numpy(rng.permutation(len(c_KD))[: round(share * len(c_KD))])
    scale = by * float(c_KD.double().std() or 1)
    step = torch.from_numpy(rng.normal(size=(len(some), c_KD.shape[1]))) * scale
    after_KD[some] = (after_KD[some].double() + step).to(c_KD.dtype)
    return after_KD


# Breaks when a bound is too high by a rounding error, a tie goes to another index than that of a
# comparison with all, or a row that is dropped keeps a bound.
@pytest.mark.parametrize("points", POINTS, ids=lambda each: each.__name__)
@pytest.mark.parametrize(
    ("k", "d", "dtype"),
    [
        (5, 3, torch.float64),
        (70, 17, torch.float32),
        (90, 40, torch.float64),
        (300, 150, torch.float32),
    ],
)
def test_bits_are_those_of_all_centroids(instruction_set, rng, points, dtype, k, d) -> None:
    x_BD, c_KD = data(rng, points, k, d, dtype)
    kernel = CpuKernel(N_ROWS, k, dtype, CPU, instruction_set=instruction_set)
    carried, before_KD = fresh(N_ROWS), None
    most = torch.finfo(torch.float32).max / 4
    for share, by in [(0, 0), (0.5, 0.5), (0.05, 2), (0.02, 0.01), (0, 0), (1, 1e-6)]:
        c_KD = moved(rng, c_KD, share, by)
        carried.drift = None if before_KD is None else Drift.between(before_KD, c_KD)
        arguments: dict[str, Any] = {"most_sq_norm": most, "exact": True}
        found = kernel.assign_in_place(x_BD, None, c_KD, carried=carried, **arguments)
        expected = kernel.assign_in_place(x_BD, None, c_KD, **arguments)
        dropped_B, expected_dropped_B = found.dropped_B, expected.dropped_B
        assert dropped_B is not None
        assert expected_dropped_B is not None
        assert torch.equal(dropped_B, expected_dropped_B)
        assert torch.equal(found.labels_B[~dropped_B], expected.labels_B[~dropped_B])
        assert torch.equal(found.sq_distances_B, expected.sq_distances_B)
        assert torch.equal(found.sq_norms_B, expected.sq_norms_B)
        assert torch.equal(carried.labels_B.long(), found.labels_B)
        assert not carried.lows_B[dropped_B].any()
        check_lows(x_BD, c_KD, carried)
        before_KD = c_KD


def check_lows(x_BD: torch.Tensor, c_KD: torch.Tensor, carried: Carried) -> None:
    """No centroid is nearer than the bound: by extended precision, the nearest by fractions."""
    x, c = x_BD.double().numpy(), c_KD.double().numpy()
    lows = carried.lows_B.double().numpy()
    for row in [*range(0, N_ROWS, 53), 5, 6]:
        if lows[row] == 0:
            continue
        difference = x[row].astype(np.longdouble) - c
        squares = np.square(difference).sum(axis=1)
        squares[carried.labels_B[row]] = np.inf
        nearest = int(squares.argmin())
        pairs = zip(x[row], c[nearest], strict=True)
        exact = sum((Fraction(float(a)) - Fraction(float(b))) ** 2 for a, b in pairs)
        assert Fraction(float(lows[row])) ** 2 <= exact or len(c) == 1


# Breaks when rows are compared with all centroids although few moved, or none.
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_few_comparisons_where_little_moved(rng, dtype) -> None:
    x_BD, c_KD = data(rng, plain, 320, 40, dtype)
    kernel = CpuKernel(N_ROWS, 320, dtype, CPU)
    carried = fresh(N_ROWS)
    arguments: dict[str, Any] = {"most_sq_norm": 1e38, "exact": True, "carried": carried}
    kernel.assign_in_place(x_BD, None, c_KD, **arguments)
    assert carried.n_compared == N_ROWS * 320
    carried.drift = Drift.between(c_KD, c_KD)
    kernel.assign_in_place(x_BD, None, c_KD, **arguments)
    assert carried.n_compared < N_ROWS * 20
    after_KD = c_KD.clone()
    after_KD[7] += 5
    carried.drift = Drift.between(c_KD, after_KD)
    kernel.assign_in_place(x_BD, None, after_KD, **arguments)
    assert carried.n_compared < N_ROWS * 40


# Breaks when labels that are no centroids reach the arithmetic.
def test_labels_that_are_none_are_refused(rng) -> None:
    x_BD, c_KD = data(rng, plain, 20, 4, torch.float32)
    kernel = CpuKernel(N_ROWS, 20, torch.float32, CPU)
    carried = fresh(N_ROWS)
    carried.labels_B[9] = 20
    carried.drift = Drift.between(c_KD, c_KD)
    with pytest.raises(IndexError, match="labels must lie within 0 and 19"):
        kernel.assign_in_place(x_BD, None, c_KD, most_sq_norm=1e38, exact=True, carried=carried)
