"""Ruling centroids out by heads of points: the same bits as without, and when it is done."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from streamkm.kernels.cpu import LABELS_ALONE, CpuKernel
from streamkm.kernels.ops import groups as searching
from streamkm.kernels.ops import heads as module
from streamkm.kernels.ops.heads import Heads, find_heads
from streamkm.kernels.ops.tiles import Given, Tiled
from tests.kernels.contract import permuted, sq_norms
from tests.kernels.ops.test_groups import CASES, CPU, SETS, instruction_set  # noqa: F401
from tests.kernels.test_cpu import exact_points

pytestmark = pytest.mark.skipif(not SETS, reason="no set here screens in bytes")


def thin(rng: np.random.Generator, n: int, d: int = 160) -> torch.Tensor:
    """Points that differ along few of `d` directions, none of which is that of a feature."""
    draw = np.random.default_rng(1)
    turned = np.linalg.qr(draw.normal(size=(d, d)))[0]
    return torch.from_numpy(rng.normal(size=(n, d)) * 0.92 ** np.arange(d) @ turned + 0.1)


THIN = thin(DRAW := np.random.default_rng(5), 700), thin(DRAW, 600)
ALL_CASES = {
    **CASES,
    **{f"thin, of {size}": tuple(each * size for each in THIN) for size in (1, 1e-21, 1e14)},
    "thin, far from zero": tuple(each + 3000 for each in THIN),
    "thin, rows that are centroids": (THIN[1], THIN[1]),
    "thin, each centroid twice": (THIN[0], THIN[1][torch.arange(600) % 300]),
}


def heads_of(c_KD: torch.Tensor, n_directions: int, how: str) -> Heads:
    """Main axes of the centroids, or any orthonormal directions, or those of the features."""
    n_features = c_KD.shape[1]
    middle_D = c_KD.mean(dim=0)
    directions_DD = torch.eye(n_features, dtype=torch.float64)
    some_KD = c_KD[c_KD.isfinite().all(dim=1)].double()
    if how == "any":
        drawn = torch.from_numpy(np.random.default_rng(2).normal(size=(n_features, n_features)))
        directions_DD = torch.linalg.qr(drawn).Q
    elif how == "axes" and len(some_KD):
        some_KD = (some_KD - some_KD.mean(dim=0)) / some_KD.abs().amax().clamp_min(1e-300)
        directions_DD = torch.linalg.svd(some_KD, full_matrices=True).Vh
    directions_MD = directions_DD[:n_directions].float().contiguous()
    products_MM = directions_MD.double() @ directions_MD.double().mT
    skew = float((products_MM - torch.eye(len(directions_MD), dtype=torch.float64)).norm())
    return Heads(directions_MD, middle_D.nan_to_num(0.0, 0.0, 0.0), skew)


def by_heads(kernel: CpuKernel, x_BD: torch.Tensor, c_KD: torch.Tensor, heads: Heads) -> Tiled:
    given = Given(x_BD, None, sq_norms(x_BD), LABELS_ALONE)
    return kernel._assign_tiles(given, c_KD.contiguous(), heads)


# Breaks when a head may have been moved by more than is allowed for, a limit is lower than the
# nearest centroid is far, or a tie goes to another than the lowest index. (However many candidates
# are left, the rows of the first block have their labels by heads.)
@pytest.mark.parametrize(
    ("how", "dtype"),
    [
        ("axes", torch.float32),
        ("axes", torch.float64),
        ("any", torch.float32),
        ("own", torch.float32),
    ],
)
@pytest.mark.parametrize("case", ALL_CASES)
def test_heads_change_no_bit(instruction_set, case, dtype, how) -> None:  # noqa: F811
    x_BD, c_KD = (points.to(dtype) for points in ALL_CASES[case])
    kernel = CpuKernel(700, 600, dtype, CPU, instruction_set=instruction_set)
    flat = kernel.assign(x_BD, sq_norms(x_BD), c_KD)
    for n_directions in {1, c_KD.shape[1] // 3, c_KD.shape[1] - 1} - {0}:
        found = by_heads(kernel, x_BD, c_KD, heads_of(c_KD, n_directions, how))
        assert torch.equal(found.labels_B, flat.labels_B)
        assert torch.equal(found.sq_distances_B, flat.sq_distances_B)


# Breaks when a bound is narrower than it says.
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("how", ["axes", "any"])
def test_labels_are_those_of_exact_arithmetic(instruction_set, seed, how) -> None:  # noqa: F811
    x_BD, c_KD, expected_B = exact_points(seed)
    kernel = CpuKernel(200, len(c_KD), torch.float32, CPU, instruction_set=instruction_set)
    kernel._make_room(n_features := x_BD.shape[1])
    for n_directions in {1, n_features // 2, n_features - 1} - {0}:
        found = by_heads(kernel, x_BD, c_KD, heads_of(c_KD, n_directions, how))
        assert torch.equal(found.labels_B, expected_B)


# Breaks when heads rule nothing out, or less is compared than is told.
def test_few_directions_serve_thin_rows(instruction_set) -> None:  # noqa: F811
    rng = np.random.default_rng(7)
    x_BD, c_KD = thin(rng, 4000).float(), thin(rng, 2500).float()
    kernel = CpuKernel(4000, 2500, torch.float32, CPU, instruction_set=instruction_set)
    kernel._make_room(160)
    flat = kernel._assign_tiles(Given(x_BD, None, sq_norms(x_BD), LABELS_ALONE), c_KD)
    heads = find_heads(x_BD, flat.sq_distances_B, c_KD, instruction_set.bits)
    assert heads is not None
    n_numbers = len(heads.directions_MD) + 1
    assert n_numbers in {32, 64, 96}
    assert heads.skew < 1e-4
    found = by_heads(kernel, x_BD, c_KD, heads)
    assert found.n_compared == 4000 * 2500 * n_numbers // 160
    assert torch.equal(found.labels_B, flat.labels_B)


# Breaks when heads are looked for in vain at length, or are told to pay where they do not.
def test_no_heads_where_points_differ_in_all_directions(monkeypatch) -> None:
    draw = torch.Generator().manual_seed(0)
    x_BD, c_KD = torch.randn(200, 96, generator=draw), torch.randn(2500, 96, generator=draw)
    sq_distances_B = torch.cdist(x_BD, c_KD).square().amin(dim=1)
    assert find_heads(x_BD, sq_distances_B, c_KD, 8) is None
    monkeypatch.setattr(module, "FEW_AXES", 1.0)
    assert find_heads(x_BD, sq_distances_B, c_KD, 8) is None
    c_KD[3, 3] = torch.nan
    assert find_heads(x_BD, sq_distances_B, c_KD, 8) is None
    monkeypatch.setattr(module, "MOST_FEATURES", 159)
    thin_BD, thin_KD = (points.float() for points in THIN)
    sq_distances_B = torch.cdist(thin_BD, thin_KD).square().amin(dim=1)
    assert find_heads(thin_BD, sq_distances_B, thin_KD, 8) is None
    monkeypatch.setattr(module, "MOST_FEATURES", 160)
    monkeypatch.setattr(module, "PROMISING", 10.0)
    assert find_heads(thin_BD, sq_distances_B, thin_KD, 8) is not None


@pytest.fixture
def eager(monkeypatch) -> None:
    """Heads, not groups, for few centroids, from the first row on."""
    monkeypatch.setattr(searching, "MIN_CENTROIDS", 256)
    monkeypatch.setattr(searching, "MIN_ROWS", 64)
    monkeypatch.setattr(searching, "PRODUCTS_BEFORE", 0)
    monkeypatch.setattr(searching, "PRODUCTS_OF_AXES", 0)
    monkeypatch.setattr(searching, "ROWS_PER_GROUP", 0)
    monkeypatch.setattr(searching, "LOOK_ROWS", 50)
    monkeypatch.setattr(searching, "PROMISING", -1.0)
    monkeypatch.setattr(module, "PROMISING", 10.0)


# Breaks when heads are not found where they pay, are kept where they do not, or serve a call of so
# few rows that turning the centroids takes longer.
def test_heads_are_found_and_given_up(eager) -> None:
    x_BD, c_KD = (points.float() for points in THIN)
    kernel = CpuKernel(700, 600, torch.float32, CPU)
    search = kernel._search
    flat = kernel.assign(x_BD, sq_norms(x_BD), c_KD)
    heads = search.way(700)
    assert isinstance(heads, Heads)
    assert search.way(100) is None
    points_ND = torch.randn(1300, 160, generator=torch.Generator().manual_seed(0))
    kernel.assign(points_ND[:700], sq_norms(points_ND[:700]), points_ND[700:])
    assert search.way(700) is None
    assert torch.equal(flat.labels_B, torch.cdist(x_BD.double(), c_KD.double()).argmin(dim=1))


# Breaks when rows that are dropped, or lie in a window, are turned in place of others.
def test_a_window_with_dropped_rows(eager) -> None:
    window_ND, c_KD = (points.float() for points in THIN)
    window_ND[3] = torch.nan
    window_ND[5, 7] = torch.inf
    positions_B = permuted(700, 650)
    kernel = CpuKernel(650, 600, torch.float32, CPU)
    first, then = (
        kernel.assign_in_place(window_ND, positions_B, c_KD, most_sq_norm=1e30, exact=True)
        for _ in range(2)
    )
    assert torch.equal(first.labels_B, then.labels_B)
    assert torch.equal(first.sq_distances_B, then.sq_distances_B)
    assert first.dropped_B is not None
    assert int(first.dropped_B.sum()) == 2
    rows_BD = window_ND[positions_B.long()].double()
    expected_B = torch.cdist(rows_BD.nan_to_num(0, 0, 0), c_KD.double()).argmin(dim=1)
    is_kept_B = ~first.dropped_B
    assert torch.equal(first.labels_B[is_kept_B], expected_B[is_kept_B])
