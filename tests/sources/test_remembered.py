"""Rows that are kept in memory once they were read."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from streamkm.sources import open_source
from streamkm.sources.base import RowRange
from streamkm.sources.memory import MemorySource
from streamkm.sources.remembered import RememberedRows
from tests.sources.contract import Case, SourceContract, numbers

if TYPE_CHECKING:
    from pathlib import Path


class TestKept(SourceContract):
    @pytest.fixture(params=[((203, 5), "float32"), ((40, 3), "uint8")])
    def case(self, request, tmp_path: Path) -> Case:
        shape, dtype = request.param
        path, array = tmp_path / "x.npy", numbers(shape, dtype)
        np.save(path, array)

        def opened() -> RememberedRows:
            return RememberedRows(open_source(path), 1 << 20)

        return Case(array, dtype, lambda a: np.save(path, a), opened, tmp_path)


def read(source: RememberedRows, start: int, stop: int) -> np.ndarray:
    out = np.empty((stop - start, 2), np.float32)
    source.read(RowRange(start, stop), out)
    return out


# Breaks when a block is read again, or a part of it is taken from the wrong place.
def test_what_was_read_is_read_once() -> None:
    array = np.arange(20, dtype=np.float32).reshape(10, 2)
    kept = RememberedRows(MemorySource(array), 1 << 20)
    for _ in range(2):
        assert np.array_equal(read(kept, 0, 10), array)
    assert np.array_equal(read(kept, 3, 6), array[3:6])
    assert kept.bytes_read == array.nbytes


# Breaks when more is kept than there is room for, or what is kept gives way to what comes later.
def test_no_more_is_kept_than_fits() -> None:
    array = np.arange(20, dtype=np.float32).reshape(10, 2)
    kept = RememberedRows(MemorySource(array), 5 * 8)
    for start, stop, n_new in ((0, 4, 4), (4, 8, 4), (0, 4, 0), (4, 8, 4), (9, 10, 1), (9, 10, 1)):
        before = kept.bytes_read
        assert np.array_equal(read(kept, start, stop), array[start:stop])
        assert kept.bytes_read - before == n_new * 8
