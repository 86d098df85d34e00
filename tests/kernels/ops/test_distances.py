"""Distances as sums of squares, in torch and compiled."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from streamkm.kernels import sq_distances_between, sq_distances_to, sq_distances_with
from streamkm.kernels.extension import instruction_sets
from streamkm.kernels.ops import distances as module
from tests.kernels.contract import exact_sq_distances, normal, sq_norms

CPU = torch.device("cpu")
WAYS = [*instruction_sets(), None]


@pytest.fixture(params=WAYS, ids=lambda entry: entry.name if entry else "torch", autouse=True)
def way(request, monkeypatch):
    available = [] if request.param is None else [request.param]
    monkeypatch.setattr(module, "instruction_sets", lambda: available)
    return request.param


# Breaks when the distance is expanded: 1e4 from the origin that leaves no digit of 1e-3.
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_sq_distances_to_holds_where_the_expanded_form_cancels(dtype: torch.dtype) -> None:
    c_KD = normal(6, 33, dtype=dtype, device=CPU) + 1e4
    labels_B = torch.arange(600) % 6
    x_BD = c_KD[labels_B] + normal(600, 33, dtype=dtype, device=CPU) / 64
    exact_B = exact_sq_distances(x_BD, c_KD)[np.arange(600), labels_B.numpy()]
    tolerance = 40 * torch.finfo(dtype).eps
    result_B = sq_distances_to(x_BD, labels_B, c_KD)
    assert result_B.dtype == torch.float64
    np.testing.assert_allclose(result_B.numpy(), exact_B, rtol=tolerance)
    expanded_B = sq_norms(x_BD) - 2 * (x_BD * c_KD[labels_B]).sum(1) + sq_norms(c_KD)[labels_B]
    assert np.abs(expanded_B.double().numpy() / exact_B - 1).max() > 1000 * tolerance


# Breaks when rows of a later tile get the centroids of an earlier one.
def test_sq_distances_to_in_several_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(module.TILE_ELEMENTS, "cpu", 3 * 10)
    x_BD = normal(47, 3, dtype=torch.float32, device=CPU)
    c_KD = normal(5, 3, dtype=torch.float32, device=CPU)
    labels_B = torch.arange(47) % 5
    exact_B = exact_sq_distances(x_BD, c_KD)[np.arange(47), labels_B.numpy()]
    np.testing.assert_allclose(sq_distances_to(x_BD, labels_B, c_KD).numpy(), exact_B, rtol=1e-6)


# Breaks when a row on its centroid is given rounding instead of 0.
def test_sq_distances_to_of_a_row_on_its_centroid_is_zero() -> None:
    c_KD = normal(4, 768, dtype=torch.float32, device=CPU) + 100
    assert sq_distances_to(c_KD, torch.arange(4), c_KD).tolist() == [0.0] * 4


# Breaks when labels are passed on unchecked: the extension would read beyond the centroids.
@pytest.mark.parametrize("label", [-1, 4])
def test_labels_without_a_centroid_are_refused(label: int) -> None:
    with pytest.raises((IndexError, RuntimeError)):
        sq_distances_to(torch.ones((1, 3)), torch.tensor([label]), torch.ones((4, 3)))


# Breaks where a tile, a panel or a block is not filled, or its last rows are those of another.
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("n_points", "n_rows", "n_features"), [
    (1, 1, 1), (8, 517, 128), (3, 256, 7), (17, 300, 130), (40, 13, 16), (33, 1025, 3),
])  # fmt: skip
def test_distances_between_a_few_points_and_all_rows(n_points, n_rows, n_features, dtype) -> None:
    x_SD = normal(n_rows, n_features, dtype=dtype, device=CPU)
    points_LD = normal(n_points, n_features, dtype=dtype, device=CPU).flip(1)
    points_LD[0] = x_SD[-1]
    result_LS = sq_distances_between(points_LD, x_SD, sq_norms(x_SD))
    assert result_LS.shape == (n_points, n_rows)
    assert result_LS.dtype == dtype
    assert (result_LS >= 0).all()
    exact_LS = exact_sq_distances(x_SD, points_LD).T
    # Cancellation leaves a share of the squared lengths.
    tolerance = (
        16 * torch.finfo(dtype).eps * float(sq_norms(x_SD).max() + sq_norms(points_LD).max())
    )
    np.testing.assert_allclose(result_LS.numpy(), exact_LS, rtol=0, atol=tolerance)


# Breaks where the expanded form is all: of groups far apart, rows of one would be equally near.
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("n_rows", "n_features"), [(300, 2), (517, 128)])
def test_small_distances_between_rows_far_from_the_origin(n_rows, n_features, dtype) -> None:
    eps = torch.finfo(dtype).eps
    far_S1 = torch.where(torch.arange(n_rows) % 2 == 0, 1.0, -1.0).to(dtype)[:, None]
    x_SD = far_S1 + 100 * eps * normal(n_rows, n_features, dtype=dtype, device=CPU)
    x_SD[5] = x_SD[1]
    exact_LS = exact_sq_distances(x_SD, x_SD[:9]).T
    found_LS = sq_distances_between(x_SD[:9], x_SD, sq_norms(x_SD))
    np.testing.assert_allclose(found_LS.numpy(), exact_LS, rtol=1e-5)
    assert found_LS[1, 5] == found_LS[1, 1] == 0
    with_LS, costs_L = sq_distances_with(
        torch.arange(9), torch.full((n_rows,), torch.inf, dtype=dtype), x_SD, sq_norms(x_SD), None
    )
    np.testing.assert_allclose(with_LS.numpy(), exact_LS, rtol=1e-5)
    np.testing.assert_allclose(costs_L.numpy(), exact_LS.sum(axis=1), rtol=1e-5)


# Breaks when many features are added up in one sequence: where all are alike, all additions round
# the same way.
def test_distances_between_rows_of_many_features_that_are_alike(way) -> None:
    levels_S1 = 0.1 + 1e-3 * torch.arange(64.0)[:, None]
    x_SD = levels_S1.expand(64, 16384).contiguous()
    found_LS = sq_distances_between(x_SD[:8], x_SD, sq_norms(x_SD)).numpy()
    error_LS = np.abs(found_LS - exact_sq_distances(x_SD[:8], x_SD))
    # How torch's product adds up is not ours to say.
    n_roundings = 64 if way else 1024
    unit = torch.finfo(torch.float32).eps
    assert (error_LS <= n_roundings * unit * sq_norms(x_SD).numpy()).all()


def test_distances_between_do_not_depend_on_threads(monkeypatch) -> None:
    x_SD, results = normal(3000, 65, dtype=torch.float32, device=CPU), []
    rows_L, closest_S = torch.arange(9), torch.full((3000,), 130.0)
    for n_threads in (1, 3):
        monkeypatch.setattr(module, "n_threads_for", lambda _, n=n_threads: n)
        found = sq_distances_with(rows_L, closest_S, x_SD, sq_norms(x_SD), None)
        results.append((sq_distances_between(x_SD[:9], x_SD, sq_norms(x_SD)), *found))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


# Breaks where a candidate keeps a distance from itself, where a row is added up that is not
# there, and where weights or the distances before are those of another row.
@pytest.mark.parametrize("weighted", [False, True], ids=["alike", "weighted"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("n_candidates", "n_rows", "n_features"), [
    (1, 1, 1), (8, 517, 128), (3, 256, 7), (17, 300, 130), (5, 1025, 3),
])  # fmt: skip
def test_distances_with_one_more_chosen(n_candidates, n_rows, n_features, dtype, weighted) -> None:
    x_SD = normal(n_rows, n_features, dtype=dtype, device=CPU)
    generator = torch.Generator().manual_seed(n_rows)
    rows_L = torch.randint(n_rows, (n_candidates,), generator=generator)
    closest_S = torch.rand(n_rows, dtype=dtype, generator=generator) * 2 * n_features
    weights_S = torch.rand(n_rows, dtype=torch.float64, generator=generator) if weighted else None
    distances_LS, cost_L = sq_distances_with(rows_L, closest_S, x_SD, sq_norms(x_SD), weights_S)
    exact_LS = np.minimum(exact_sq_distances(x_SD, x_SD[rows_L]).T, closest_S.double().numpy())
    tolerance = 32 * torch.finfo(dtype).eps * float(sq_norms(x_SD).max())
    np.testing.assert_allclose(distances_LS.numpy(), exact_LS, rtol=0, atol=tolerance)
    assert (distances_LS[torch.arange(n_candidates), rows_L] == 0).all()
    of_rows = np.ones(n_rows) if weights_S is None else weights_S.numpy()
    np.testing.assert_allclose(cost_L, distances_LS.double().numpy() @ of_rows, rtol=1e-12)


def test_distances_between_no_rows_or_rows_that_lie_apart() -> None:
    x_SD = normal(50, 12, dtype=torch.float32, device=CPU)
    assert sq_distances_between(x_SD[:3], x_SD[:0], sq_norms(x_SD[:0])).shape == (3, 0)
    apart_SD = x_SD[::2, ::2]
    whole_SD = apart_SD.contiguous()
    torch.testing.assert_close(
        sq_distances_between(apart_SD[:3], apart_SD, sq_norms(whole_SD)),
        sq_distances_between(whole_SD[:3], whole_SD, sq_norms(whole_SD)),
        rtol=0,
        atol=1e-4,
    )


# Breaks when tensors are passed on unchecked: the extension reads them as what it expects.
@pytest.mark.parametrize(("rows", "weights"), [
    (torch.int32, None), (torch.int64, torch.ones(300)), (torch.int64, torch.ones(1).double()),
])  # fmt: skip
def test_tensors_that_are_not_compiled_code_s(rows: torch.dtype, weights) -> None:
    x_SD = normal(300, 5, dtype=torch.float32, device=CPU)
    rows_L, closest_S = torch.tensor([3, 299]), torch.full((300,), torch.inf)
    result = sq_distances_with(rows_L, closest_S, x_SD, sq_norms(x_SD), None)
    other = sq_distances_with(rows_L.to(rows), closest_S, x_SD, sq_norms(x_SD), weights)
    torch.testing.assert_close(other, result, rtol=1e-5, atol=1e-5)
