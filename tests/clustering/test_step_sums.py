"""Sums of a batch that processes share: by one reduction, exact, and however rows are divided."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pytest
import torch

from streamkm.clustering import step_sums
from streamkm.clustering.assignment import nearest_and_fixed_sums
from streamkm.clustering.step_sums import Sharing
from streamkm.kernels.reference import ReferenceKernel
from tests.clustering.streams import CPU, batch_of
from tests.distributed.together import together

if TYPE_CHECKING:
    from collections.abc import Callable

    from streamkm.distributed.world import World

K, N_FEATURES, N_ROWS = 5, 3, 60
ALL = np.arange(N_ROWS)


class Found(NamedTuple):
    """What a process has after its batches, and how often it has waited."""

    sums: list[torch.Tensor]
    numbers: list[float]
    has_held: list[bool]
    n_sums: int
    n_maxima: int


def batches(what: str) -> list[np.ndarray]:
    """Four batches around the same places; from the third on they are so."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(4, N_ROWS, N_FEATURES)) + 8 * np.repeat(np.arange(K), 12)[:, None]
    if what == "one far row":
        rows[2, 7] = 1e9
    elif what == "one short row":
        rows[2, 7] = 1e-9
    elif what == "near their centroids":
        rows[2:] = np.repeat(np.arange(K) * 8.0, 12)[:, None] + 1e-6 * rows[2:]
    elif what == "a row that is dropped":
        rows[2, 7] = np.inf
    elif what == "a row of zeros":
        rows[2:, 7] = 0
    return list(rows)


def added_up(rows: list[np.ndarray], size: int, dtype: torch.dtype) -> list[Found]:
    """Batch after batch added up by `size` processes, the first of which has few rows."""
    centroids_KD = (torch.arange(K, dtype=dtype)[:, None] * 8).expand(K, N_FEATURES).contiguous()
    owner = np.minimum(ALL * size // 20, size - 1)

    def work(world: World) -> Found:
        sharing, kernel = Sharing(world), ReferenceKernel(N_ROWS, K, dtype, CPU)
        calls = {"sum": 0, "max": 0}
        if size > 1:
            for name, method in (("sum", "sum_later"), ("max", "max_")):
                setattr(world, method, counted(getattr(world, method), calls, name))
        usual = torch.tensor(torch.nan, dtype=torch.float64)
        sums, numbers, has_held = [], [], []
        for each in rows:
            own = ALL[owner == world.rank] if size > 1 else ALL
            batch = batch_of(each[own], dtype)
            batch.numbers_B, batch.n_shared = torch.from_numpy(own).int(), N_ROWS
            found = nearest_and_fixed_sums(
                kernel, batch, centroids_KD, spherical=False, sharing=sharing, usual=usual
            )
            counts_K, inertia = found.counts_K(), found.inertia()
            sums += [found.sums().wide(), counts_K]
            numbers += [float(inertia), int(found.n_dropped())]
            has_held.append(sharing.has_held)
            usual = inertia / counts_K.sum()
        return Found(sums, numbers, has_held, calls["sum"], calls["max"])

    return together(size, work)


def counted(call: Callable[..., object], calls: dict[str, int], name: str) -> Callable[..., object]:
    def counting(*tensors: torch.Tensor) -> object:
        calls[name] += 1
        return call(*tensors)

    return counting


# Breaks when quanta depend on which process has a row, when they do not fit a row and count all the
# same, or when processes exchange more than they need.
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(
    ("what", "holds", "n_sums", "n_maxima"),
    [
        # The first batch has none before it.
        ("like rows", [True, True, True, True], 4, 1),
        ("a row of zeros", [True, True, True, True], 4, 1),
        ("a row that is dropped", [True, True, True, True], 4, 1),
        # After a far row the next ones are near beside it.
        ("one far row", [True, True, False, False], 5, 3),
        ("one short row", [True, True, False, True], 5, 3),
        ("near their centroids", [True, True, False, True], 5, 3),
    ],
)
def test_sums_do_not_depend_on_how_rows_are_divided(
    what: str, holds: list[bool], n_sums: int, n_maxima: int, dtype: torch.dtype
) -> None:
    rows = batches(what)
    alone = added_up(rows, 1, dtype)[0]
    assert alone.has_held == holds
    for size in (2, 4):
        for found in added_up(rows, size, dtype):
            assert all(map(torch.equal, found.sums, alone.sums))
            assert found.numbers == alone.numbers
            assert (found.has_held, found.n_sums, found.n_maxima) == (holds, n_sums, n_maxima)
    for index, each in enumerate(rows):
        kept = torch.from_numpy(each[np.isfinite(each).all(axis=1)]).to(dtype).double()
        places = torch.arange(K) * 8.0
        sq_distances = (kept[:, None] - places[None, :, None]).square().sum(dim=2)
        nearest = sq_distances.argmin(dim=1)
        exact = torch.zeros(K, N_FEATURES, dtype=torch.float64).index_add_(0, nearest, kept)
        lengths = torch.zeros(K, dtype=torch.float64)
        lengths.scatter_reduce_(0, nearest, kept.norm(dim=1), "amax")
        sums_KD, counts_K = alone.sums[2 * index : 2 * index + 2]
        assert counts_K.tolist() == nearest.bincount(minlength=K).tolist()
        assert ((sums_KD - exact).abs() <= 2.0**-36 * lengths[:, None]).all()
        # By distances that are good enough to choose a centroid by.
        assert alone.numbers[2 * index] == pytest.approx(
            float(sq_distances.amin(dim=1).sum()), rel=1e-3
        )


# Breaks when counts of several clusters run into each other, or a long batch loses some.
@pytest.mark.parametrize("most", [N_ROWS, N_ROWS - 1], ids=["16 bits", "32 bits"])
def test_counts_are_whole_however_they_are_packed(most: int, monkeypatch) -> None:
    monkeypatch.setattr(step_sums, "MOST_SHORT_COUNTS", most)
    rows = [np.tile(np.arange(K) * 8.0, (N_FEATURES, 12)).T] * 2
    rows[1] = np.zeros_like(rows[0])
    for found in added_up(rows, 2, torch.float32):
        assert found.sums[1].tolist() == [12] * K
        assert found.sums[3].tolist() == [N_ROWS, 0, 0, 0, 0]
