"""Gains of swaps, in torch and compiled."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch

from streamkm.kernels import swap_gains
from streamkm.kernels.extension import instruction_sets
from streamkm.kernels.ops import swaps as module


@pytest.fixture(params=["compiled", "torch"], autouse=True)
def way(request, monkeypatch) -> None:
    available = instruction_sets() if request.param == "compiled" else []
    monkeypatch.setattr(module, "instruction_sets", lambda: available)


def drawn(n_candidates: int, n_rows: int, k: int, dtype: torch.dtype):
    generator = torch.Generator().manual_seed(n_rows)
    distances_LS = 4 * torch.rand((n_candidates, n_rows), dtype=dtype, generator=generator)
    first_S = torch.rand(n_rows, dtype=dtype, generator=generator)
    second_S = first_S + torch.rand(n_rows, dtype=dtype, generator=generator)
    label_S = torch.randint(k, (n_rows,), generator=generator)
    weights_S = torch.rand(n_rows, dtype=torch.float64, generator=generator)
    return distances_LS, first_S, second_S, label_S, weights_S


# Breaks where a row is missed, weighed by another's weight, or lost to another place.
@pytest.mark.parametrize("weighted", [False, True], ids=["alike", "weighted"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("n_candidates", "n_rows", "k"), [(1, 1, 2), (4, 517, 9), (3, 300, 700)])
def test_cost_before_less_the_cost_of_each_swap(n_candidates, n_rows, k, dtype, weighted) -> None:
    distances_LS, first_S, second_S, label_S, weights_S = drawn(n_candidates, n_rows, k, dtype)
    gains_LK = swap_gains(
        distances_LS, first_S, second_S, label_S, weights_S if weighted else None, k
    )
    distances, first, second = (
        tensor.double().numpy() for tensor in (distances_LS, first_S, second_S)
    )
    weights = weights_S.numpy() if weighted else np.ones(n_rows)
    expected = np.empty((n_candidates, k))
    for candidate in range(n_candidates):
        for place in range(k):
            kept = np.where(label_S.numpy() == place, second, first)
            expected[candidate, place] = weights @ (first - np.minimum(kept, distances[candidate]))
    assert gains_LK.dtype == torch.float64
    tolerance = 1e-5 if dtype == torch.float32 else 1e-9
    np.testing.assert_allclose(gains_LK.numpy(), expected, rtol=tolerance, atol=tolerance * n_rows)


def test_gains_do_not_depend_on_threads_nor_on_how_tensors_lie(monkeypatch) -> None:
    distances_LS, first_S, second_S, label_S, weights_S = drawn(5, 3000, 20, torch.float32)
    gains_of = partial(
        swap_gains, first_S=first_S, second_S=second_S, label_S=label_S, weights_S=weights_S, k=20
    )
    results = [gains_of(distances_LS.T.contiguous().T)]
    for n_threads in (1, 3):
        monkeypatch.setattr(module, "n_threads_for", lambda _, n=n_threads: n)
        results.append(gains_of(distances_LS))
    assert torch.equal(results[1], results[2])
    torch.testing.assert_close(results[0], results[1], rtol=1e-12, atol=0)


# Breaks when labels are passed on unchecked: the extension would write beyond the gains.
@pytest.mark.parametrize("label", [-1, 4])
def test_labels_without_a_place_are_refused(label: int) -> None:
    one_S = torch.ones(1)
    with pytest.raises((IndexError, RuntimeError)):
        swap_gains(torch.ones((1, 1)), one_S, one_S, torch.tensor([label]), None, 4)


# Breaks when tensors are passed on unchecked: the extension reads them as what it expects.
def test_tensors_that_are_not_compiled_code_s() -> None:
    distances_LS, first_S, second_S, label_S, weights_S = drawn(3, 500, 7, torch.float64)
    result = swap_gains(distances_LS, first_S, second_S, label_S, weights_S.float().double(), 7)
    other = swap_gains(distances_LS, first_S, second_S, label_S, weights_S.float(), 7)
    torch.testing.assert_close(other, result, rtol=1e-9, atol=1e-9)
    for short in ((first_S[:9], second_S, label_S), (first_S, second_S[:9], label_S)):
        with pytest.raises(RuntimeError, match="size of tensor"):
            swap_gains(distances_LS, *short, weights_S, 7)
    with pytest.raises(RuntimeError, match="size of tensor"):
        swap_gains(distances_LS, first_S, second_S, label_S, weights_S[:9], 7)
