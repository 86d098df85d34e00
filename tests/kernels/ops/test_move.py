"""Points that follow sums: compiled, and as operations of torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import pytest
import torch

from streamkm.kernels import Sums, means_of, move_points_
from streamkm.kernels.extension import instruction_sets
from streamkm.kernels.ops import move as module

needs_extension = pytest.mark.skipif(not instruction_sets(), reason="the extension was not built")


@dataclass
class Points:
    """K points, and the sums that they follow."""

    points_KD: torch.Tensor
    sums_KD: torch.Tensor
    masses_K: torch.Tensor
    added: Sums
    touched_K: torch.Tensor

    @classmethod
    def drawn(cls, k: int, n_features: int, dtype: torch.dtype, *, weighted: bool = False) -> Self:
        """The same for the same arguments; the first sum is 0, and some masses are."""
        generator = torch.Generator().manual_seed(k)
        normal_KD = torch.randn(k, n_features, generator=generator, dtype=torch.float64)
        masses_K = torch.arange(k) % 5
        if weighted:
            masses_K = torch.rand(k, generator=generator, dtype=torch.float64) * 3
            masses_K[1:2] = 0
        sums_KD = normal_KD * 17
        added_KD = torch.randn(k, n_features, generator=generator).to(dtype)
        sums_KD[0] = added_KD[0] = 0
        added = Sums(added_KD, torch.tensor(0.25, dtype=torch.float64))
        return cls(normal_KD.to(dtype), sums_KD, masses_K, added, torch.arange(k) % 3 != 1)

    def move_(self, *, spherical: bool, compiled: bool, monkeypatch: pytest.MonkeyPatch) -> float:
        with monkeypatch.context() as patch:
            if not compiled:
                patch.setattr(module, "instruction_sets", tuple)
            shift = move_points_(
                self.points_KD, self.sums_KD, self.masses_K, self.touched_K,
                spherical=spherical, added=self.added,
            )  # fmt: skip
        return float(shift)


# Breaks when the two ways keep different shares of the sums, or one forgets what is not touched.
@pytest.mark.parametrize("spherical", [False, True])
@pytest.mark.parametrize("compiled", [pytest.param(True, marks=needs_extension), False])
def test_touched_sums_keep_a_share(spherical, compiled, monkeypatch) -> None:
    points, kept_K = Points.drawn(7, 3, torch.float64), torch.linspace(0, 1, 7).double()
    share_K1 = torch.where(points.touched_K, kept_K, 1)[:, None]
    added_KD = torch.where(points.touched_K[:, None], points.added.wide(), 0)
    expected_KD = points.sums_KD * share_K1 + added_KD
    if not compiled:
        monkeypatch.setattr(module, "instruction_sets", tuple)
    move_points_(
        points.points_KD, points.sums_KD, points.masses_K, points.touched_K,
        spherical=spherical, added=points.added, kept_K=kept_K,
    )  # fmt: skip
    torch.testing.assert_close(points.sums_KD, expected_KD)


# Breaks when an untouched point moves, a sum is added twice or not at all, or the shift is not
# the sum of the squared distances that points moved.
@needs_extension
@pytest.mark.parametrize(("k", "n_features"), [(1, 1), (7, 3), (64, 128), (300, 33)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("spherical", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_compiled_and_torch_agree(monkeypatch, k, n_features, dtype, spherical, weighted) -> None:
    results = {}
    for compiled in (True, False):
        points = Points.drawn(k, n_features, dtype, weighted=weighted)
        before = Points.drawn(k, n_features, dtype, weighted=weighted)
        shift = points.move_(spherical=spherical, compiled=compiled, monkeypatch=monkeypatch)
        untouched_K = ~points.touched_K
        for name in ("points_KD", "sums_KD"):
            was, now = getattr(before, name), getattr(points, name)
            assert torch.equal(was[untouched_K], now[untouched_K])
        moved_KD = (points.points_KD - before.points_KD).double()
        assert shift == pytest.approx(float(moved_KD.square().sum()), rel=1e-12)
        if spherical:
            assert torch.equal(points.points_KD[0], before.points_KD[0])
        results[compiled] = points
    by_extension, by_torch = results[True], results[False]
    assert torch.equal(by_extension.sums_KD, by_torch.sums_KD)
    rtol = 4 * torch.finfo(dtype).eps if spherical else 0
    torch.testing.assert_close(by_extension.points_KD, by_torch.points_KD, rtol=rtol, atol=0)


# Breaks when a length is taken of squares that leave float64.
@pytest.mark.parametrize("compiled", [pytest.param(True, marks=needs_extension), False])
def test_tiny_and_huge_sums_have_directions(monkeypatch, compiled) -> None:
    none = Sums(torch.zeros((3, 3)), torch.ones((), dtype=torch.float64))
    points = Points(
        torch.eye(3),
        torch.tensor([[3e-200, 4e-200, 0], [3e200, 0, 4e200], [0, 0, 0]], dtype=torch.float64),
        torch.full((3,), 2),
        none,
        torch.ones(3, dtype=torch.bool),
    )
    points.move_(spherical=True, compiled=compiled, monkeypatch=monkeypatch)
    expected_KD = torch.tensor([[0.6, 0.8, 0], [0.6, 0, 0.8], [0, 0, 1]])
    torch.testing.assert_close(points.points_KD, expected_KD)


# Breaks where what a thread adds up depends on how many there are.
@needs_extension
def test_bits_do_not_depend_on_threads(monkeypatch) -> None:
    results = []
    for n_threads in (1, 3):
        monkeypatch.setattr(module, "n_threads_for", lambda _, n=n_threads: n)
        points = Points.drawn(500, 64, torch.float32)
        shift = points.move_(spherical=False, compiled=True, monkeypatch=monkeypatch)
        results.append((shift, points.points_KD))
    assert results[0][0] == results[1][0]
    assert torch.equal(results[0][1], results[1][1])


# Breaks when asking for the sums changes them: float64 needs no copy to be widened.
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sums_are_the_same_however_often_they_are_asked_for(dtype: torch.dtype) -> None:
    sums = Sums(torch.ones((2, 3), dtype=dtype), torch.tensor(4.0, dtype=torch.float64))
    assert sums.wide().tolist() == sums.wide().tolist() == [[4.0] * 3] * 2


# Breaks when the gain is not the rows' own: it must hold where no mean is exact, for directions
# as for means, and a cluster without a row must gain nothing.
@pytest.mark.parametrize("compiled", [pytest.param(True, marks=needs_extension), False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("spherical", [False, True])
def test_means_gain_what_rows_are_nearer_to_them(monkeypatch, compiled, dtype, spherical) -> None:
    if not compiled:
        monkeypatch.setattr(module, "instruction_sets", tuple)
    generator = torch.Generator().manual_seed(0)
    x_BD = torch.randn(50, 3, generator=generator, dtype=torch.float64)
    labels_B, points_KD = torch.arange(50) % 4, torch.eye(5, 3).to(dtype)
    sums_KD = torch.zeros(5, 3, dtype=torch.float64).index_add_(0, labels_B, x_BD)
    masses_K = torch.bincount(labels_B, minlength=5).double()
    means_KD, gain = means_of(sums_KD, masses_K, points_KD, spherical=spherical)
    assert means_KD.dtype == dtype
    assert torch.equal(means_KD[4], points_KD[4])
    assert torch.equal(points_KD, torch.eye(5, 3).to(dtype))
    before, after = ((x_BD - p_KD[labels_B]).square().sum() for p_KD in (points_KD, means_KD))
    assert float(gain) == pytest.approx(float(before - after), rel=1e-12)
    if not spherical:
        expected_KD = (sums_KD[:4] / masses_K[:4, None]).to(dtype)
        assert torch.equal(means_KD[:4], expected_KD)
