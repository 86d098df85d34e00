"""Streaming moments, against NumPy in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streamkm.clustering.scaling import RunningMoments
from streamkm.kernels.extension import instruction_sets, stored_types
from streamkm.kernels.ops import moments as module

CPU = torch.device("cpu")
WAYS = [*instruction_sets(), None]


@pytest.fixture(params=WAYS, ids=lambda entry: entry.name if entry else "torch", autouse=True)
def way(request, monkeypatch: pytest.MonkeyPatch):
    available = [] if request.param is None else [request.param]
    monkeypatch.setattr(module, "instruction_sets", lambda: available)
    return request.param


def moments_of(x_ND: np.ndarray, cuts: list[int] | None = None) -> RunningMoments:
    moments = RunningMoments.empty(x_ND.shape[1], CPU)
    for part in np.split(x_ND, sorted(cuts or [])):
        if len(part):
            moments.update_(torch.from_numpy(part))
    return moments


def assert_like_numpy(moments: RunningMoments, x_ND: np.ndarray, rtol: float = 1e-12) -> None:
    x_ND = x_ND.astype(np.float64)
    finite = x_ND[np.isfinite(x_ND).all(axis=1)]
    assert int(moments.count) == len(finite)
    assert int(moments.n_dropped) == len(x_ND) - len(finite)
    np.testing.assert_allclose(moments.mean_D.numpy(), finite.mean(0), rtol=rtol, atol=1e-12)
    # Two passes: NumPy subtracts the mean before it squares.
    np.testing.assert_allclose(moments.variance_D.numpy(), finite.var(0), rtol=1e-9, atol=1e-18)
    assert np.array_equal(moments.min_D.numpy(), finite.min(0))
    assert np.array_equal(moments.max_D.numpy(), finite.max(0))


# Breaks when E[x^2] - E[x]^2 is taken, which leaves no digit here in float32 and 4 in
# float64, or when a merge weighs the means wrongly.
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.integers(0, 700), max_size=8),
    st.sampled_from([np.float32, np.float64]),
    st.sampled_from([0.0, -3.0, 1e6]),
    st.integers(0, 2**32),
)
def test_moments_are_numpy_s_whatever_the_batches(cuts, dtype, mean, seed) -> None:
    x_ND = np.random.default_rng(seed).normal(mean, 1, (700, 3)).astype(dtype)
    assert_like_numpy(moments_of(x_ND, cuts), x_ND)


# Breaks when tiles of one batch are merged otherwise than batches, or the last is lost.
def test_moments_of_many_tiles(monkeypatch: pytest.MonkeyPatch, rng) -> None:
    monkeypatch.setattr(module, "TILE_ELEMENTS", 7 * 4)
    x_ND = rng.normal(1e6, [1, 10, 0.1, 1e3], (500, 4))
    assert_like_numpy(moments_of(x_ND), x_ND)


# Breaks when a strip of several short rows, the last of a part, or one of many parts is
# taken for something else.
@pytest.mark.parametrize("n_features", [1, 2, 3, 31, 64, 65, 130, 5000])
@pytest.mark.parametrize("weighted", [False, True])
def test_moments_of_any_shape(rng, n_features: int, weighted: bool) -> None:
    n_rows = 200_000 // n_features + 1
    x_ND = rng.normal(rng.normal(0, 100, n_features), 1, (n_rows, n_features))
    if n_features != 2:
        x_ND[rng.integers(n_rows, size=5), rng.integers(n_features)] = np.nan
    weights_N = rng.integers(0, 3, n_rows).astype(float)
    moments = RunningMoments.of(
        torch.from_numpy(x_ND), torch.from_numpy(weights_N) if weighted else None
    )
    repeated = np.repeat(x_ND, weights_N.astype(int), axis=0) if weighted else x_ND
    n_dropped = int(np.isnan(x_ND).any(axis=1).sum())
    assert int(moments.n_dropped) == n_dropped
    moments.n_dropped.fill_(int(np.isnan(repeated).any(axis=1).sum()))
    assert_like_numpy(moments, repeated)


# Breaks when a dtype is read as another.
def test_every_dtype_that_is_stored(rng) -> None:
    for dtype in stored_types() if instruction_sets() else (torch.float32, torch.uint8):
        x_ND = torch.from_numpy(rng.integers(0, 100, (3000, 5))).to(dtype)
        assert_like_numpy(RunningMoments.of(x_ND), x_ND.double().numpy())


# Breaks when parts are joined as threads come by.
def test_threads_decide_no_bits(monkeypatch: pytest.MonkeyPatch, rng) -> None:
    x_ND = torch.from_numpy(rng.normal(3, 1, (40_000, 7))).float()
    results = []
    for n_threads in (1, 2, 3):
        monkeypatch.setattr(module, "n_threads_for", lambda _, n=n_threads: n)
        results.append(RunningMoments.of(x_ND).tensors())
    for other in results[1:]:
        assert all(torch.equal(other[name], results[0][name]) for name in other)


# Breaks when the result leans on which part comes first (beyond rounding).
def test_order_of_merging_does_not_matter(rng) -> None:
    small, large = rng.normal(0, 1, (3, 2)), rng.normal(1e6, 5, (4000, 2))
    one = moments_of(np.concatenate((small, large)), [3])
    other = moments_of(np.concatenate((large, small)), [4000])
    for name, tensor in one.tensors().items():
        torch.testing.assert_close(tensor, other.tensors()[name], rtol=1e-12, atol=0)


# Breaks when a NaN reaches a sum, or a tile without a finite row divides by zero.
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_rows_that_are_not_finite_are_left_out(rng, bad: float) -> None:
    x_ND = rng.normal(5, 2, (300, 3))
    x_ND[::7, 1] = bad
    x_ND[100:140] = bad
    x_ND[200, 0], x_ND[200, 2] = np.inf, -np.inf
    assert_like_numpy(moments_of(x_ND, [100, 140, 141]), x_ND)


def test_nothing_but_nan_leaves_moments_of_no_rows() -> None:
    moments = moments_of(np.full((20, 2), np.nan))
    assert float(moments.count) == 0
    assert int(moments.n_dropped) == 20
    assert moments.mean_D.tolist() == moments.m2_D.tolist() == [0.0, 0.0]
    assert moments.min_D.tolist() == [np.inf, np.inf]
    assert moments.max_D.tolist() == [-np.inf, -np.inf]


# Breaks when the batch, which a run still needs, is used as workspace.
def test_the_batch_is_left_alone(rng) -> None:
    x_ND = torch.from_numpy(rng.normal(size=(50, 3)))
    before = x_ND.clone()
    RunningMoments.empty(3, CPU).update_(x_ND)
    assert torch.equal(x_ND, before)


# Breaks when integers are squared in their own type, or pass through float32.
@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int32, np.int64, np.uint64])
def test_integers_do_not_overflow(rng, dtype) -> None:
    info = np.iinfo(dtype)
    low, high = max(info.min, -(2**52)), min(info.max, 2**52)
    x_ND = rng.integers(low, high, (400, 3), endpoint=True).astype(dtype)
    assert_like_numpy(moments_of(x_ND, [100]), x_ND)


# Breaks when the rounding of a mean makes a column of equal values look like variance:
# z-score would blow it up. 0.1 is no binary fraction.
def test_constant_columns_are_found(rng) -> None:
    x_ND = np.column_stack(
        [np.full(9999, 0.1), np.full(9999, 1e9 + 0.1), np.zeros(9999), rng.normal(1e6, 1e-2, 9999)]
    )
    moments = moments_of(x_ND, [1, 500, 501, 7000])
    assert moments.is_constant_D().tolist() == [True, True, True, False]


# Breaks when a tensor is shared: an update of one would alter the other.
def test_tensors_are_all_there_and_none_is_shared() -> None:
    tensors = RunningMoments.empty(3, CPU).tensors()
    assert set(tensors) == {"count", "mean_D", "m2_D", "min_D", "max_D", "n_dropped"}
    assert len({tensor.data_ptr() for tensor in tensors.values()}) == len(tensors)
