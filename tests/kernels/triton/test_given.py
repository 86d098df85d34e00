"""Rows that the kernels would read wrongly, or be compiled again for."""

from __future__ import annotations

import torch

from streamkm.kernels.triton.given import dense_rows


# Breaks when a window that begins in the middle of 16 bytes compiles kernels in mid-run, or rows
# that lie well are copied.
def test_rows_begin_where_the_kernels_are_made_for() -> None:
    rows_ND = torch.arange(120.0).reshape(40, 3)
    assert dense_rows(rows_ND) is rows_ND
    later = dense_rows(rows_ND[1:])
    assert later.data_ptr() % 16 == 0
    assert torch.equal(later, rows_ND[1:])
    across = dense_rows(rows_ND.T)
    assert across.stride(1) == 1
    assert torch.equal(across, rows_ND.T)
