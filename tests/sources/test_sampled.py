"""Rows that are copied while others read them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from streamkm.sources import open_source
from streamkm.sources.base import RowRange
from streamkm.sources.memory import MemorySource
from streamkm.sources.sampled import SampledRows
from tests.sources.contract import Case, SourceContract, numbers

if TYPE_CHECKING:
    from pathlib import Path

    from streamkm.sources.base import Source


class TestSampled(SourceContract):
    @pytest.fixture(params=[((203, 5), "float32"), ((40, 3), "uint8")])
    def case(self, request, tmp_path: Path) -> Case:
        shape, dtype = request.param
        path, array = tmp_path / "x.npy", numbers(shape, dtype)
        np.save(path, array)

        def opened() -> SampledRows:
            return SampledRows(open_source(path), np.arange(0, shape[0], 3))

        return Case(array, dtype, lambda a: np.save(path, a), opened, tmp_path)


class TestSample(SourceContract):
    @pytest.fixture(params=[((203, 5), "float32"), ((40, 3), "uint8")])
    def case(self, request, tmp_path: Path) -> Case:
        shape, dtype = request.param
        path, array = tmp_path / "x.npy", numbers(shape, dtype)

        def store(a: np.ndarray) -> None:
            np.save(path, np.repeat(a, 2, axis=0))

        def opened() -> Source:
            return SampledRows(open_source(path), np.arange(0, 2 * shape[0], 2)).sample()

        store(array)
        return Case(array, dtype, store, opened, tmp_path)


def read(source: Source, start: int, stop: int) -> np.ndarray:
    out = np.empty((stop - start, source.spec.n_features), source.spec.storage)
    source.read(RowRange(start, stop), out)
    return out


# Breaks when a row is copied from the wrong place, or one that was read is read again.
def test_rows_are_copied_as_they_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    array = np.arange(4000, dtype=np.float32).reshape(1000, 4)
    source, rows_S = MemorySource(array), np.array([0, 3, 10, 11, 500, 501, 999])
    found: list[RowRange] = []
    before = source.read

    def counted(rows: RowRange, out: np.ndarray) -> None:
        found.append(rows)
        before(rows, out)

    monkeypatch.setattr(source, "read", counted)
    sampled = SampledRows(source, rows_S)
    assert source.spec.block_rows >= 1000
    for start, stop in ((9, 12), (0, 2), (499, 501)):
        assert np.array_equal(read(sampled, start, stop), array[start:stop])
    found.clear()
    sample = sampled.sample()
    assert found == [RowRange(3, 1000)]
    assert np.array_equal(read(sample, 0, len(rows_S)), array[rows_S])
    found.clear()
    sampled.sample()
    assert not found
