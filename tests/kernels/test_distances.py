"""Distances as sums of squares, in torch and compiled."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from streamkm.kernels import distances as module
from streamkm.kernels import sq_distances_to
from streamkm.kernels.extension import instruction_sets
from tests.kernels.contract import exact_sq_distances, normal, sq_norms

CPU = torch.device("cpu")
WAYS = [*instruction_sets(), None]


@pytest.fixture(params=WAYS, ids=lambda entry: entry.name if entry else "torch", autouse=True)
def way(request, monkeypatch) -> None:
    available = [] if request.param is None else [request.param]
    monkeypatch.setattr(module, "instruction_sets", lambda: available)


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
