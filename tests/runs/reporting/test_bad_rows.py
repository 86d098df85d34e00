"""The error names the first row that is not finite."""

from __future__ import annotations

import numpy as np
import pytest

from streamkm.errors import NonFiniteError
from streamkm.runs.reporting.bad_rows import non_finite_error
from streamkm.sources.base import ArraySpec
from streamkm.sources.memory import MemorySource


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", ">f4"])
@pytest.mark.parametrize("row", [0, 1, 40_000, 99_999])
def test_the_first_row_that_is_not_finite(dtype, row):
    rows = np.ones((100_000, 3), dtype)
    rows[row, 2] = -np.inf
    rows[99_999, 0] = np.nan
    column, value = (0, "nan") if row == 99_999 else (2, "-inf")
    error = non_finite_error(MemorySource(rows, "x"), 5)
    assert isinstance(error, NonFiniteError)
    assert f"x: row {row} holds {value} (feature {column}; 5 such rows so far)" in str(error)


def test_bfloat16_is_read_by_its_bits():
    bits = np.full((50, 2), 0x3F80, np.uint16)  # 1.0
    bits[31, 1] = 0x7F80  # infinity
    source = MemorySource(bits, "x")
    source._spec = ArraySpec(50, 2, "bfloat16", 10, "test")
    assert "row 31 holds inf (feature 1" in str(non_finite_error(source, 1))


def test_a_row_whose_squared_length_overflows_is_named_as_such():
    rows = np.ones((100_000, 3), np.float32)
    rows[70_000] = 1e20
    error = str(non_finite_error(MemorySource(rows, "x"), 1, of_fit=True))
    assert "the squared length of row 70000 overflows float32" in error
    assert "scale='zscore'" in error
