"""Searching by groups of centroids: the same bits as without, and when it is done."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from streamkm.kernels.cpu import LABELS_ALONE, CpuKernel
from streamkm.kernels.extension import instruction_sets
from streamkm.kernels.ops import groups as module
from streamkm.kernels.ops.groups import Groups, GroupSearch
from streamkm.kernels.ops.tiles import Given, Tiled
from tests.kernels.contract import permuted, sq_norms
from tests.kernels.test_cpu import HARD_POINTS, exact_points

CPU = torch.device("cpu")
SETS = [each for each in instruction_sets() if each.bytes_panel]
pytestmark = pytest.mark.skipif(not SETS, reason="no set here screens in bytes")


@pytest.fixture(params=SETS, ids=lambda each: each.name)
def instruction_set(request):
    return request.param


def nested(rng: np.random.Generator, n: int, d: int) -> torch.Tensor:
    """Points around points that lie around points: 12 groups of 6."""
    draw = np.random.default_rng(1)
    points = (draw.normal(0, 20, (12, 1, d)) + draw.normal(0, 1, (12, 6, d))).reshape(-1, d)
    return torch.from_numpy(points[rng.integers(len(points), size=n)] + rng.normal(0, 0.2, (n, d)))


def line(n: int, d: int, start: float) -> torch.Tensor:
    """Points on a line, a step apart: the bound of a group is then no wider than the truth."""
    return torch.arange(n, dtype=torch.float64)[:, None] + torch.full((1, d), start)


DRAW = np.random.default_rng(5)
NESTED = nested(DRAW, 700, 40), nested(DRAW, 600, 40)
PLACES = (
    torch.from_numpy(DRAW.uniform(size=(700, 3))),
    torch.from_numpy(DRAW.uniform(size=(600, 3))),
)
CASES = {
    **HARD_POINTS,
    **{f"nested, of {size}": tuple(each * size for each in NESTED) for size in (1, 1e-21, 1e14)},
    "nested, far from zero": tuple(each + 3000 for each in NESTED),
    "nested, rows that are centroids": (NESTED[1], NESTED[1]),
    "nested, each centroid twice": (NESTED[0], NESTED[1][torch.arange(600) % 300]),
    "places": PLACES,
    "half way on a line": (line(599, 20, 0.5), line(600, 20, 0.0)),
    "half way on a line, far from zero": (line(599, 20, 5000.5), line(600, 20, 5000.0)),
}


def in_groups(kernel: CpuKernel, c_KD: torch.Tensor, how: str) -> Groups:
    """Groups of neighbours, or of any centroids, of unlike sizes."""
    search = GroupSearch(kernel._label)
    search._find(c_KD)
    assert search.groups is not None
    if how == "near":
        return search.groups
    cuts = torch.tensor([0, 1, 40, 41, 300, len(c_KD)])
    return Groups(permuted(len(c_KD), len(c_KD)).int(), cuts)


# Breaks when a bound of a group is narrower than it says, a tie goes to another than the lowest
# index, or rows and groups are mixed up.
@pytest.mark.parametrize(
    ("how", "dtype"), [("near", torch.float32), ("near", torch.float64), ("any", torch.float32)]
)
@pytest.mark.parametrize("case", CASES)
def test_groups_change_no_bit(instruction_set, case, dtype, how) -> None:
    x_BD, c_KD = (points.to(dtype) for points in CASES[case])
    kernel = CpuKernel(700, 600, dtype, CPU, instruction_set=instruction_set)
    flat = kernel.assign(x_BD, sq_norms(x_BD), c_KD)
    served = _served(kernel, x_BD, c_KD, in_groups(kernel, c_KD, how))
    assert torch.equal(served.labels_B, flat.labels_B)
    assert torch.equal(served.sq_distances_B, flat.sq_distances_B)
    if case == "places" and how == "near":
        assert served.n_compared < 0.5 * len(x_BD) * len(c_KD)


def _served(kernel: CpuKernel, x_BD: torch.Tensor, c_KD: torch.Tensor, groups: Groups) -> Tiled:
    given = Given(x_BD, None, sq_norms(x_BD), LABELS_ALONE)
    return kernel._assign_tiles(given, c_KD.contiguous(), groups)


# Breaks when a bound is narrower than it says.
@pytest.mark.parametrize("seed", range(6))
def test_labels_are_those_of_exact_arithmetic(instruction_set, seed) -> None:
    x_BD, c_KD, expected_B = exact_points(seed)
    kernel = CpuKernel(200, len(c_KD), torch.float32, CPU, instruction_set=instruction_set)
    kernel._make_room(x_BD.shape[1])
    found = _served(kernel, x_BD, c_KD, in_groups(kernel, c_KD, "near"))
    assert torch.equal(found.labels_B, expected_B)


@pytest.fixture
def eager(monkeypatch) -> None:
    """Groups of few centroids, from the first row on."""
    monkeypatch.setattr(module, "MIN_CENTROIDS", 256)
    monkeypatch.setattr(module, "MIN_ROWS", 64)
    monkeypatch.setattr(module, "PRODUCTS_BEFORE", 0)
    monkeypatch.setattr(module, "PRODUCTS_OF_AXES", 0)
    monkeypatch.setattr(module, "ROWS_PER_GROUP", 0)
    monkeypatch.setattr(module, "LOOK_ROWS", 50)
    monkeypatch.setattr(module, "TRIED_ROWS", 100)
    monkeypatch.setattr(module, "PROMISING", 1.2)
    monkeypatch.setattr(module, "IN_VAIN", 0.8)


# Breaks when rows of a call that begins without groups and ends with them lose their places, or
# those that are dropped their marks.
@pytest.mark.parametrize("exact", [True, False])
def test_a_window_with_dropped_rows(eager, monkeypatch, exact) -> None:
    window_ND, c_KD = (points.float() for points in NESTED)
    window_ND[3] = torch.nan
    window_ND[5, 7] = torch.inf
    positions_B = permuted(700, 650)
    found = []
    for serves in (GroupSearch.serves, lambda *_: False):
        monkeypatch.setattr(GroupSearch, "serves", serves)
        kernel = CpuKernel(650, 600, torch.float32, CPU)
        found.append(
            kernel.assign_in_place(window_ND, positions_B, c_KD, most_sq_norm=1e30, exact=exact)
        )
    for by_groups, flat in zip(*found, strict=True):
        assert torch.equal(by_groups, flat)
    assert found[0].dropped_B is not None
    assert int(found[0].dropped_B.sum()) == 2


# Breaks when groups are found where nothing can be left out, or are not where nearly all can; or
# when centroids that have moved keep groups that are of no use to them.
def test_groups_are_found_kept_and_given_up(eager) -> None:
    x_BD, c_KD = (points.float() for points in PLACES)
    kernel = CpuKernel(700, 600, torch.float32, CPU)
    search = kernel._search
    for _ in range(2):
        kernel.assign(x_BD, sq_norms(x_BD), c_KD)
    groups = search.groups
    assert groups is not None
    assert sorted(groups.order_K.tolist()) == list(range(600))
    assert search.n_compared < 0.6 * search.n_possible
    moved_KD = c_KD[permuted(600, 600).long()]
    before = int(kernel.n_rechecked)
    labels_B = kernel.assign(x_BD, sq_norms(x_BD), moved_KD).labels_B
    assert search.groups is not groups
    assert int(kernel.n_rechecked) > before
    assert torch.equal(moved_KD[labels_B], c_KD[kernel.assign(x_BD, sq_norms(x_BD), c_KD).labels_B])

    plain = CpuKernel(700, 600, torch.float32, CPU)
    rows_BD, flat_KD = (points.float() for points in HARD_POINTS["plain"])
    plain.assign(rows_BD, sq_norms(rows_BD), flat_KD)
    assert plain._search.groups is None
    assert plain._search.n_compared == plain._search.n_possible == 700 * 600


# Breaks when groups that leave a centroid out, or have one twice, reach the arithmetic.
@pytest.mark.parametrize(
    ("order", "offsets"),
    [
        ([0] * 600, [0, 600]),
        (range(600), [0, 300, 300, 600]),
        (range(600), [0, 599]),
        (range(600), [0, 700, 600]),
        (range(1, 601), [0, 600]),
    ],
)
def test_refuses_what_are_no_groups(order, offsets) -> None:
    x_BD, c_KD = (points.float() for points in NESTED)
    kernel = CpuKernel(700, 600, torch.float32, CPU)
    kernel._make_room(x_BD.shape[1])
    groups = Groups(torch.tensor(list(order), dtype=torch.int32), torch.tensor(offsets))
    with pytest.raises(IndexError, match="each of 600 centroids once"):
        _served(kernel, x_BD, c_KD, groups)


# Breaks when a call is too small or too large for what it says.
def test_which_calls_may_be_by_groups() -> None:
    kernel = CpuKernel(1, 1, torch.float32, CPU)
    search = GroupSearch(kernel._label)
    assert not search.serves(module.MIN_ROWS, module.MIN_CENTROIDS - 1, 8)
    assert not search.serves(module.MIN_ROWS - 1, module.MIN_CENTROIDS, 8)
    assert search.serves(module.MIN_ROWS, module.MIN_CENTROIDS, 8)
    assert not search.wants_look(module.MIN_ROWS)
    assert search.wants_look(module.PRODUCTS_BEFORE)
    assert search.rows_at_once(10 * module.PRODUCTS_BEFORE) == module.LOOK_ROWS
    assert module.n_groups_of(1) == 1
    assert math.isclose(module.n_groups_of(1 << 20), 3 * 1024, rel_tol=0.01)
