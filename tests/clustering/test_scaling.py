"""Scaling: what is subtracted, divided and dropped before distances are taken."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from sklearn.preprocessing import MinMaxScaler, StandardScaler, normalize

from streamkm.clustering.batch import Batch
from streamkm.clustering.preparation import Preparation
from streamkm.clustering.scaling import (
    RunningMoments,
    Scaling,
    _centre,
    compute_dtype,
)
from streamkm.kernels.exact import rounding_bound
from streamkm.kernels.reference import ReferenceKernel

CPU = torch.device("cpu")
NARROW = ["uint8", "int8", "int16", "uint16", "float16", "bfloat16", "float32"]
WIDE = ["int32", "uint32", "int64", "uint64", "float64"]


def moments_of(x_ND: torch.Tensor | np.ndarray) -> RunningMoments:
    moments = RunningMoments.empty(x_ND.shape[1], CPU)
    moments.update_(torch.as_tensor(x_ND))
    return moments


def prepared(
    scaling: Scaling, x_ND: torch.Tensor | np.ndarray, rows: torch.Tensor | None = None
) -> Batch:
    x_ND = torch.as_tensor(x_ND).clone()
    workspace_BD = torch.full(x_ND.shape, torch.nan, dtype=compute_dtype(x_ND.dtype))
    return Preparation(scaling, workspace_BD)(x_ND, slice(None) if rows is None else rows)


def fitted(scale: str, x_ND: torch.Tensor | np.ndarray, metric: str = "euclidean") -> Scaling:
    return Scaling.fit(scale, metric, moments_of(x_ND))


def columns(rng: np.random.Generator) -> np.ndarray:
    """Of many sizes, with two that are constant."""
    return np.column_stack(
        [
            rng.normal(0, 1, 500),
            rng.normal(1e6, 1, 500),
            rng.uniform(-1e-6, 1e-6, 500),
            np.full(500, 0.1),
            np.zeros(500),
            rng.integers(0, 2, 500),
        ]
    )


# ---- the maps -----------------------------------------------------------------


# Breaks with n - 1 in the variance, or a constant column divided by its rounding.
@pytest.mark.parametrize(
    ("scale", "scaler"), [("zscore", StandardScaler()), ("minmax", MinMaxScaler())]
)
def test_zscore_and_minmax_are_scikit_learn_s(rng, scale, scaler) -> None:
    x_ND = columns(rng)
    expected = scaler.fit_transform(x_ND)
    scaling = fitted(scale, x_ND)
    np.testing.assert_allclose(prepared(scaling, x_ND).x_BD, expected, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(scaling.transform(torch.from_numpy(x_ND)), expected, atol=1e-9)


# Breaks when a row of zeros becomes NaN.
def test_l2_is_scikit_learn_s(rng) -> None:
    x_ND = rng.normal(0, 100, (50, 4))
    x_ND[7] = 0
    batch = prepared(fitted("l2", x_ND), x_ND)
    np.testing.assert_allclose(batch.x_BD, normalize(x_ND), rtol=1e-14)
    assert batch.is_normalized
    assert batch.sq_norms_B[7] == 0
    np.testing.assert_allclose(np.delete(batch.sq_norms_B.numpy(), 7), 1, rtol=1e-14)


# Breaks when a length is squared before it is used: 1e-25 squared is 0 in float32.
@pytest.mark.parametrize("size", [1e-40, 1e-25, 1e-20, 1.0, 1e18])
def test_l2_gives_unit_length_to_every_row_but_zeros(size: float) -> None:
    x_ND = torch.tensor([[3.0, -4.0], [0.0, 0.0], [1.0, 0.0]]) * size
    batch = prepared(fitted("none", x_ND, metric="cosine"), x_ND)
    expected = torch.tensor([[0.6, -0.8], [0.0, 0.0], [1.0, 0.0]])
    torch.testing.assert_close(batch.x_BD, expected, rtol=1e-4, atol=0)
    assert batch.dropped_B is None


# Breaks when inverse() forgets the shift, or multiplies where it should divide.
@given(st.sampled_from(["none", "zscore", "minmax"]), st.integers(0, 2**32))
def test_inverse_undoes_transform(scale: str, seed: int) -> None:
    draws = np.random.default_rng(seed)
    x_ND = draws.normal(draws.normal(0, 1e4, 5), np.exp(draws.normal(0, 4, 5)), (100, 5))
    scaling = fitted(scale, x_ND)
    points_KD = torch.from_numpy(draws.normal(0, 1e4, (7, 5)))
    torch.testing.assert_close(scaling.inverse(scaling.transform(points_KD)), points_KD)


def test_inverse_of_l2_stays_in_the_unit_ball() -> None:
    scaling = fitted("l2", np.ones((3, 2)))
    point_KD = torch.tensor([[0.3, 0.4]])
    assert torch.equal(scaling.inverse(point_KD), point_KD.double())
    torch.testing.assert_close(scaling.transform(point_KD), torch.tensor([[0.6, 0.8]]).double())


# ---- prepare ------------------------------------------------------------------


def stored(rng: np.random.Generator, dtype: str) -> torch.Tensor:
    """Values at the ends of the type's range and others between, (40, 3)."""
    if "float" in dtype:
        return torch.from_numpy(rng.normal(0, 50, (40, 3))).to(getattr(torch, dtype))
    info = np.iinfo(dtype)
    values = rng.integers(info.min, info.max, (40, 3), dtype=dtype, endpoint=True)
    values[0], values[1] = info.min, info.max
    return torch.from_numpy(values)


# Breaks when a type is widened to one that does not hold it, or an order is ignored.
@pytest.mark.parametrize("rows", [None, torch.arange(39, 4, -2, dtype=torch.int32)], ids=["", "i"])
@pytest.mark.parametrize("dtype", NARROW + WIDE)
def test_every_stored_dtype_is_widened(rng, dtype: str, rows) -> None:
    x_ND = stored(rng, dtype)
    scaling = Scaling(torch.zeros(3).double(), torch.ones(3).double(), normalize=False)
    batch = prepared(scaling, x_ND, rows)
    assert batch.x_BD.dtype == (torch.float32 if dtype in NARROW else torch.float64)
    expected = x_ND.double() if rows is None else x_ND.double()[rows.long()]
    assert torch.equal(batch.x_BD.double(), expected)
    norms_B = expected.square().sum(dim=1)
    torch.testing.assert_close(batch.sq_norms_B.double(), norms_B, rtol=1e-6, atol=0)
    assert batch.dropped_B is None


# Breaks when the map is applied in the stored type: uint8 wraps, float16 overflows.
@pytest.mark.parametrize("scale", ["zscore", "minmax", "l2", "none"])
@pytest.mark.parametrize("dtype", NARROW + WIDE)
def test_every_stored_dtype_is_scaled_after_widening(rng, dtype: str, scale: str) -> None:
    x_ND = stored(rng, dtype)
    wide_ND = x_ND.double()
    result_BD = prepared(fitted(scale, x_ND), x_ND).x_BD.double()
    expected_BD = fitted(scale, wide_ND).transform(wide_ND)
    tolerance = 3e-6 if dtype in NARROW else 1e-12
    torch.testing.assert_close(
        result_BD, expected_BD, rtol=tolerance, atol=tolerance * float(expected_BD.abs().max())
    )


# Breaks when NaN survives as a row, or the mask is of the rows before they were ordered.
@pytest.mark.parametrize("scale", ["none", "zscore", "minmax", "l2"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_rows_that_are_not_finite_are_dropped(rng, dtype: str, scale: str) -> None:
    x_ND = stored(rng, dtype)
    x_ND[3, 1], x_ND[4, 0], x_ND[9] = torch.nan, torch.inf, -torch.inf
    order = torch.arange(39, -1, -1)
    batch = prepared(fitted(scale, x_ND), x_ND, order)
    assert batch.dropped_B is not None
    assert (39 - torch.nonzero(batch.dropped_B)[:, 0]).tolist() == [9, 4, 3]
    assert (batch.x_BD[batch.dropped_B] == 0).all()
    assert (batch.sq_norms_B[batch.dropped_B] == 0).all()
    assert batch.x_BD.isfinite().all()


# Breaks when a row whose squared length overflows becomes a distance of infinity.
def test_a_row_too_long_for_its_dtype_is_dropped() -> None:
    batch = prepared(fitted("none", np.ones((1, 2))), torch.tensor([[1e25, 0.0], [1.0, 1.0]]))
    assert batch.dropped_B is not None
    assert batch.dropped_B.tolist() == [True, False]


@pytest.mark.parametrize("dtype", NARROW + WIDE)
def test_compute_dtype_holds_every_value(dtype: str) -> None:
    name = torch.float32 if dtype in NARROW else torch.float64
    assert compute_dtype(getattr(torch, dtype)) == name


# ---- centring -----------------------------------------------------------------


# Breaks when the shift has digits below those of the data: the difference would be rounded.
@given(
    st.floats(1, 24),
    st.floats(-20, 20),
    st.sampled_from([np.float32, np.float64]),
    st.integers(0, 2**32),
)
def test_centring_is_exact(log2_ratio: float, log2_std: float, dtype, seed: int) -> None:
    draws = np.random.default_rng(seed)
    rows = draws.choice([-1, 1]) * (2.0**log2_ratio + draws.normal(size=(2000, 1)))
    x_ND = (2.0**log2_std * rows).astype(dtype)
    shift = float(_centre(moments_of(x_ND)).to(torch.from_numpy(x_ND).dtype))
    assume(shift != 0)
    closer = np.abs(x_ND.astype(np.float64) - shift) < np.abs(x_ND)
    difference = (torch.from_numpy(x_ND) - shift).numpy()
    # float64 tells exactly: both terms are float32, or Sterbenz' lemma applies.
    exact = [float(value) - shift for value in x_ND[closer]]
    assert difference[closer].astype(np.float64).tolist() == exact
    assert ((difference + dtype(shift))[closer] == x_ND[closer]).all()


# Breaks when a feature near the origin is moved: zeros would no longer be zeros.
def test_only_features_far_from_the_origin_are_centred(rng) -> None:
    x_ND = rng.normal([0, 1.5, -30, 1e6, 0], [1, 1, 1, 1, 0], (5000, 5))
    shift_D = fitted("none", x_ND).shift_D
    assert (shift_D != 0).tolist() == [False, False, True, True, False]
    assert np.abs(shift_D.numpy() - x_ND.mean(axis=0))[2:].max() < 1


# Breaks when moments of no row, or of infinite ones, make a shift of NaN.
def test_a_shift_is_always_finite() -> None:
    for moments in (RunningMoments.empty(2, CPU), moments_of(np.full((3, 2), 1e300))):
        assert _centre(moments).isfinite().all()


# Breaks without centring: |x|^2 is 3e12, its last digit in float32 is 2.6e5, and
# distances of about 1 drown. Labels are exact even so, but only because every row
# has to be looked at again (the second half shows that).
def test_screening_is_good_far_from_the_origin(rng) -> None:
    x_ND = rng.normal(1e6, 1, (2000, 3)).astype(np.float32)
    c_KD = x_ND[:20]
    exact_BK = np.square(x_ND[:, None].astype(np.float64) - c_KD[None]).sum(axis=2)

    def share_uncertain(scaling: Scaling) -> float:
        batch = prepared(scaling, x_ND)
        centroids_KD = scaling.transform(torch.from_numpy(c_KD)).float()
        kernel = ReferenceKernel(2000, 20, torch.float32, CPU)
        labels_B = kernel.assign(batch.x_BD, batch.sq_norms_B, centroids_KD).labels_B
        assert labels_B.tolist() == exact_BK.argmin(axis=1).tolist()
        largest = centroids_KD.square().sum(dim=1).max()
        bound_B = rounding_bound(batch.sq_norms_B, largest, 3)
        gaps = np.diff(np.sort(exact_BK, axis=1)[:, :2], axis=1)[:, 0]
        return float((torch.from_numpy(gaps) <= 2 * bound_B).double().mean())

    assert share_uncertain(fitted("none", x_ND)) < 0.01
    assert share_uncertain(Scaling(torch.zeros(3), torch.ones(3), normalize=False)) == 1
