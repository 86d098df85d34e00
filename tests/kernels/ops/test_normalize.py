"""Rows divided by their lengths."""

from __future__ import annotations

import pytest
import torch

from streamkm.kernels import normalize_, normalized


def test_normalized_keeps_zero_rows_and_its_input() -> None:
    x_BD = torch.tensor([[0.0, 0.0], [0.0, 2.0]])
    assert normalized(x_BD).tolist() == [[0.0, 0.0], [0.0, 1.0]]
    assert x_BD.tolist() == [[0.0, 0.0], [0.0, 2.0]]


# Breaks when a length is taken of squares that vanish, or that leave the range of the dtype.
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("share", [-0.9, 0.9], ids=["tiny", "huge"])
def test_rows_of_any_length_have_a_direction(dtype: torch.dtype, share: float) -> None:
    exponent = int(share * {torch.float32: 127, torch.float64: 1023}[dtype])
    x_BD = torch.tensor([[3.0, -4.0], [0.0, 1.0]], dtype=dtype) * 2.0**exponent
    normalize_(x_BD)
    torch.testing.assert_close(x_BD, torch.tensor([[0.6, -0.8], [0.0, 1.0]], dtype=dtype))
