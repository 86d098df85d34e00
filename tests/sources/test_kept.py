"""Rows that are kept in memory once they were read."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st

from streamkm.sources import open_source
from streamkm.sources.base import RowRange
from streamkm.sources.kept import Homes, KeptRows
from streamkm.sources.memory import MemorySource
from tests.sources.contract import Case, SourceContract, numbers

if TYPE_CHECKING:
    from pathlib import Path

    from streamkm.sources.base import Source


def within(source: Source, limit: int) -> KeptRows:
    """A view of `source` that keeps blocks of `limit` bytes at most."""
    spec = source.spec
    n_blocks = -(-spec.n_rows // spec.block_rows)
    n_kept = n_blocks if limit >= spec.nbytes else limit // (spec.block_rows * spec.row_bytes)
    return KeptRows(source, Homes(spec.n_rows, spec.block_rows, n_kept))


class TestKept(SourceContract):
    @pytest.fixture(params=[((203, 5), "float32"), ((40, 3), "uint8")])
    def case(self, request, tmp_path: Path) -> Case:
        shape, dtype = request.param
        path, array = tmp_path / "x.npy", numbers(shape, dtype)
        np.save(path, array)

        def opened() -> KeptRows:
            return within(open_source(path), 1 << 20)

        return Case(array, dtype, lambda a: np.save(path, a), opened, tmp_path)


def read(source: KeptRows, start: int, stop: int) -> np.ndarray:
    out = np.empty((stop - start, 2), np.float32)
    source.read(RowRange(start, stop), out)
    return out


# Breaks when a block is read again, or a part of it is taken from the wrong place.
def test_what_was_read_is_read_once() -> None:
    array = np.arange(20, dtype=np.float32).reshape(10, 2)
    kept = within(MemorySource(array), 1 << 20)
    for _ in range(2):
        assert np.array_equal(read(kept, 0, 10), array)
    assert np.array_equal(read(kept, 3, 6), array[3:6])
    assert kept.bytes_read == array.nbytes


# Breaks when of blocks read together some are read again, or kept in the wrong place.
def test_of_blocks_together_the_missing_are_read(tmp_path: Path) -> None:
    array = np.arange(40, dtype=np.float32).reshape(20, 2)
    zarr.create_array(tmp_path / "x.zarr", data=array, chunks=(4, 2))
    kept = within(open_source(tmp_path / "x.zarr"), 3 * 4 * 8)  # blocks 1, 3 and 4 have a home
    reads = [RowRange(start, start + 4) for start in (12, 0, 4, 16)]
    for n_new in (16, 4):
        before, out = kept.bytes_read, np.empty((16, 2), np.float32)
        assert kept.read_together(reads, out)
        assert np.array_equal(out, np.concatenate([array[r.start : r.stop] for r in reads]))
        assert kept.bytes_read - before == n_new * 8
    assert np.array_equal(read(kept, 16, 20), array[16:])


# Breaks when rows that came together are read again because those after them must come one by one.
def test_what_came_together_is_not_read_again(tmp_path: Path, monkeypatch) -> None:
    array = np.arange(40, dtype=np.float32).reshape(20, 2)
    zarr.create_array(tmp_path / "x.zarr", data=array, chunks=(4, 2))
    kept = within(open_source(tmp_path / "x.zarr"), 3 * 4 * 8)  # blocks 1, 3 and 4 have a home
    read(kept, 4, 8)
    answers = iter([True, False])

    def together(reads: list[RowRange], out: np.ndarray) -> bool:
        (rows,) = reads
        out[...] = array[rows.start : rows.stop]
        return next(answers)

    monkeypatch.setattr(kept, "_together", together)
    before, out = kept.bytes_read, np.empty((12, 2), np.float32)
    reads = [RowRange(start, start + 4) for start in (0, 4, 8)]
    assert kept.read_together(reads, out)
    assert kept.bytes_read - before == 8 * 8
    assert np.array_equal(out, np.concatenate([array[r.start : r.stop] for r in reads]))


# Breaks when more is kept than there is room for, or what is kept gives way to what comes later.
def test_no_more_is_kept_than_fits(tmp_path: Path) -> None:
    array = np.arange(40, dtype=np.float32).reshape(20, 2)
    zarr.create_array(tmp_path / "x.zarr", data=array, chunks=(4, 2))
    kept = within(open_source(tmp_path / "x.zarr"), 3 * 4 * 8)
    # Of five blocks three have a home, spread evenly. A block is kept, and a part of one is not.
    for start, stop, n_new in (
        (4, 8, 4), (4, 8, 0), (0, 4, 4), (0, 4, 4), (5, 7, 0), (12, 14, 2), (12, 14, 2),
        (13, 14, 1), (16, 20, 4), (16, 20, 0), (3, 9, 6), (9, 10, 1), (9, 10, 1),
    ):  # fmt: skip
        before = kept.bytes_read
        assert np.array_equal(read(kept, start, stop), array[start:stop])
        assert kept.bytes_read - before == n_new * 8


@given(st.integers(1, 60), st.integers(1, 9), st.data())
def test_homes_hold_every_unit_once(n_rows: int, unit_rows: int, data: st.DataObject) -> None:
    """Breaks when two units share a home, one has a home twice, or more rows are kept than said."""
    n_units = -(-n_rows // unit_rows)
    n_there = data.draw(st.integers(0, n_units))
    there = Homes(n_rows, unit_rows, n_there)
    here = Homes(n_rows, unit_rows, data.draw(st.integers(0, n_units - n_there)), there)
    units = [set(np.flatnonzero(homes.table() >= 0)) for homes in (there, here)]
    assert not units[0] & units[1]
    for homes, kept in zip((there, here), units, strict=True):
        assert len(kept) == homes.n_kept
        assert homes.table()[sorted(kept)].tolist() == list(range(len(kept)))
        lengths = [min(unit_rows, n_rows - int(unit) * unit_rows) for unit in kept]
        assert homes.kept_rows == sum(lengths) <= homes.room_rows


# Breaks when blocks of a task come from another home than theirs, or some that are not there, or
# are pieces of blocks, are taken for them.
def test_blocks_that_are_all_there_are_taken_at_once(tmp_path: Path) -> None:
    array = np.arange(44, dtype=np.float32).reshape(22, 2)
    # Of chunks that cut features the source itself reads no blocks together.
    zarr.create_array(tmp_path / "x.zarr", data=array, chunks=(4, 1))
    kept = KeptRows(open_source(tmp_path / "x.zarr"), Homes(22, 8, 2))  # rows 8 to 21
    blocks = [RowRange(start, min(start + 4, 22)) for start in range(0, 22, 4)]
    for block in blocks[:4]:
        read(kept, block.start, block.stop)
    found = np.full((8, 2), np.nan, np.float32)
    assert kept.read_together([blocks[3], blocks[2]], found)
    assert np.array_equal(found, np.concatenate([array[12:16], array[8:12]]))
    for reads in (
        [blocks[0], blocks[2]],  # The first has no home, and the last not come yet.
        [blocks[2], blocks[4]],
    ):
        assert not kept.read_together(reads, found)
    assert kept.read_together([RowRange(8, 10), RowRange(10, 16)], found)  # pieces
    assert np.array_equal(found, array[8:16])
    read(kept, 20, 22)
    assert kept.read_together([blocks[2], blocks[5]], found[:6])  # A short one has no number.
    assert np.array_equal(found[:6], np.concatenate([array[8:12], array[20:]]))
