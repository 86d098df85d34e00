"""Rows of a window as a batch: the same in torch and compiled, for every stored dtype."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch

from streamkm.kernels.extension import instruction_sets
from streamkm.kernels.ops import gather as module
from streamkm.kernels.ops.gather import gather

STORED = [
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.uint8,
    torch.int8,
    torch.uint16,
    torch.int16,
    torch.uint32,
    torch.int32,
    torch.uint64,
    torch.int64,
]


@pytest.fixture(params=[*instruction_sets(), None], ids=lambda p: p.name if p else "torch")
def way(request, monkeypatch) -> None:
    available = [] if request.param is None else [request.param]
    monkeypatch.setattr(module, "instruction_sets", lambda: available)


def window(dtype: torch.dtype, n_features: int) -> torch.Tensor:
    draws = np.random.default_rng(n_features)
    if dtype.is_floating_point:
        return torch.from_numpy(draws.normal(size=(900, n_features)) * 50).to(dtype)
    least, most = torch.iinfo(dtype).min, torch.iinfo(dtype).max
    whole = draws.integers(max(least, -(2**20)), min(most, 2**20), (900, n_features))
    return torch.from_numpy(whole).to(dtype)


# Breaks when bits are taken for another dtype, positions for others, or the features
# behind the last sixteen are left out.
@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("to", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("stored", STORED, ids=str)
def test_rows_are_widened_scaled_and_measured(stored, to) -> None:
    for n_features, scaled in product([1, 3, 16, 37], [False, True]):
        check_gathered(stored, to, n_features, scaled=scaled)


def check_gathered(stored: torch.dtype, to: torch.dtype, n_features: int, *, scaled: bool) -> None:
    x_ND = window(stored, n_features)
    positions = torch.randperm(900, generator=torch.Generator().manual_seed(0))[:700].int()
    shift_D = torch.linspace(-2, 3, n_features, dtype=to) if scaled else None
    factor_D = torch.linspace(0.5, 1.7, n_features, dtype=to) if scaled else None
    workspace_BD = torch.full((800, n_features), torch.nan, dtype=to)
    wide_ND = x_ND.to(to)
    for rows, chosen in ((positions, wide_ND[positions.long()]), (slice(5, 300), wide_ND[5:300])):
        x_BD, sq_norms_B = gather(x_ND, rows, workspace_BD, shift_D, factor_D)
        if shift_D is not None and factor_D is not None:
            chosen = (chosen - shift_D) * factor_D
        assert torch.equal(x_BD, chosen)
        torch.testing.assert_close(
            sq_norms_B, chosen.double().square().sum(dim=1).to(to), rtol=1e-6, atol=0
        )
    assert torch.equal(x_ND, window(stored, n_features))


# Breaks when rows that need nothing are copied all the same.
@pytest.mark.usefixtures("way")
def test_rows_that_lie_ready_are_used_where_they_are() -> None:
    x_ND, workspace_BD = torch.ones((50, 4)), torch.zeros((20, 4))
    x_BD, sq_norms_B = gather(x_ND, slice(10, 25), workspace_BD)
    assert x_BD.data_ptr() == x_ND[10].data_ptr()
    assert sq_norms_B.tolist() == [4.0] * 15
    assert not workspace_BD.any()


# Breaks when a row that is not finite, or whose square overflows, passes for one that is.
@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e30])
def test_what_is_not_finite_shows_in_the_norm(value) -> None:
    x_ND = torch.ones((3, 20))
    x_ND[1, 17] = value
    _, sq_norms_B = gather(x_ND, torch.tensor([2, 1, 0]).int(), torch.empty((3, 20)))
    assert sq_norms_B.isfinite().tolist() == [True, False, True]


# Breaks when positions are passed on unchecked: the extension would read beyond the window.
@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("positions", [[0, 3], [-1, 0], [2**31 - 1]])
def test_positions_outside_the_window_are_refused(positions) -> None:
    with pytest.raises((IndexError, RuntimeError)):
        gather(torch.ones((3, 4)), torch.tensor(positions).int(), torch.empty((2, 4)))


# Breaks (crashes) when a negative position, read without its sign, lies within a long window.
@pytest.mark.usefixtures("way")
def test_no_window_is_so_long_that_it_has_negative_positions() -> None:
    window_ND = torch.empty((2**31 + 1, 1), dtype=torch.uint8)  # Untouched it takes no memory.
    with pytest.raises((IndexError, RuntimeError)):
        gather(window_ND, torch.tensor([-(2**31)]).int(), torch.empty((1, 1)))


# Breaks (crashes) when something is divided by the length of a row.
@pytest.mark.usefixtures("way")
def test_rows_without_features_have_no_length() -> None:
    for rows in (slice(1, 4), torch.tensor([4, 0, 2]).int()):
        _, sq_norms_B = gather(torch.empty((5, 0)), rows, torch.empty((5, 0)))
        assert sq_norms_B.tolist() == [0.0] * 3
