"""The contract of sources; each format's test class inherits it."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pytest

from streamkm.errors import ReadError
from streamkm.sources import RowRange, Source
from streamkm.sources.base import ReadsTogether

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

#: Ranges as numerators of sevenths of the rows, and some rows more: aligned to nothing.
RANGES = {
    "all": ((0, 0), (7, 0)),
    "nothing at the start": ((0, 0), (0, 0)),
    "nothing at the end": ((7, 0), (7, 0)),
    "first row": ((0, 0), (0, 1)),
    "last row": ((7, -1), (7, 0)),
    "unaligned": ((1, 1), (5, 3)),
    "one row in the middle": ((3, 2), (3, 3)),
    "unaligned to the end": ((5, 1), (7, 0)),
}


@dataclass
class Case:
    """One way to store an array."""

    array: np.ndarray
    """What is stored; its last axis is features. bfloat16 as uint16."""
    dtype: str
    """What the source must call its type."""
    store: Callable[[np.ndarray], None]
    """Write an array of the same shape, over what is there."""
    open: Callable[[], Source]
    """A source of what is stored."""
    folder: Path | None = None
    """Where the files are, if there are any."""

    @property
    def rows(self) -> np.ndarray:
        """The rows that a source must give."""
        flat = np.ascontiguousarray(self.array).reshape(-1, self.array.shape[-1])
        return flat.astype(flat.dtype.newbyteorder("="))

    def age(self) -> None:
        """Move all modification times back: a write that follows at once shows for certain."""
        for path in self.folder.rglob("*") if self.folder else ():
            stat = path.stat()
            os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns - 10**10))


def numbers(shape: tuple[int, ...], dtype: str | np.dtype = "float32") -> np.ndarray:
    """Distinct bytes at every place, of any type: a row or column swapped shows."""
    kind = np.dtype(dtype)
    draws = np.random.default_rng(shape)
    if kind.kind == "f":
        return draws.normal(size=shape).astype(kind)
    info = np.iinfo(kind)
    return draws.integers(info.min, info.max, size=shape, dtype=kind.newbyteorder("=")).astype(kind)


def read(source: Source, start: int, stop: int) -> np.ndarray:
    """Rows in new memory that was filled with other bytes before."""
    out = np.empty((stop - start, source.spec.n_features), source.spec.storage)
    out.view(np.uint8).fill(0xA5)
    source.read(RowRange(start, stop), out)
    return out


def same_bytes(one: np.ndarray, other: np.ndarray) -> bool:
    """Equal in shape, type and every bit, NaN included."""
    alike = one.shape == other.shape and one.dtype == other.dtype
    return alike and one.tobytes() == other.tobytes()


class SourceContract:
    """Subclasses give a fixture `case` -> `Case` that has stored its array."""

    @pytest.fixture
    def source(self, case: Case):
        source = case.open()
        yield source
        source.close()

    # Breaks when a header is misread or the axes are counted wrongly.
    def test_spec_describes_the_array(self, case: Case, source: Source) -> None:
        spec = source.spec
        assert isinstance(source, Source)
        assert (spec.n_rows, spec.n_features) == case.rows.shape
        assert spec.dtype == case.dtype
        assert spec.storage == case.rows.dtype
        assert spec.nbytes == case.rows.nbytes
        assert 1 <= spec.block_rows <= spec.n_rows
        assert spec.scratch_bytes >= 0
        assert spec.layout
        assert source.name
        assert source.spec == spec

    # Breaks when an offset is off, a byte order is missed or a piece is left out.
    def test_reads_any_range(self, case: Case, source: Source) -> None:
        n = source.spec.n_rows
        for name, bounds in RANGES.items():
            start, stop = (min(max(n * part // 7 + more, 0), n) for part, more in bounds)
            assert same_bytes(read(source, start, stop), case.rows[start:stop]), name

    # Breaks when blocks, as a plan cuts them, do not cover the array.
    def test_blocks_make_up_the_array(self, case: Case, source: Source) -> None:
        size = source.spec.block_rows
        blocks = RowRange(0, source.spec.n_rows).split(size)
        whole = np.concatenate([read(source, rows.start, rows.stop) for rows in blocks])
        assert same_bytes(whole, case.rows)

    # Breaks when a decoder writes whole chunks where a part was asked for.
    def test_leaves_memory_around_out_alone(self, case: Case, source: Source) -> None:
        n = source.spec.n_rows
        start, stop = n // 3, n // 3 + max(1, n // 4)
        memory = np.zeros((stop - start + 4, source.spec.n_features), source.spec.storage)
        memory.view(np.uint8).fill(0x5A)
        guard = memory[:2].copy()
        source.read(RowRange(start, stop), memory[2:-2])
        assert same_bytes(memory[2:-2], case.rows[start:stop])
        assert same_bytes(memory[:2], guard)
        assert same_bytes(memory[-2:], guard)

    # Breaks when of several ranges one comes to the place of another, or checks are left out.
    def test_reads_ranges_together(self, case: Case, source: Source) -> None:
        if not isinstance(source, ReadsTogether):
            return
        spec = source.spec
        blocks = list(
            RowRange(0, spec.n_rows).split(max(1, min(spec.block_rows, spec.n_rows // 3)))
        )
        reads = [*blocks[::-1], blocks[0], RowRange(spec.n_rows // 4, spec.n_rows // 2 + 1)]
        out = np.empty((sum(map(len, reads)), spec.n_features), spec.storage)
        if not source.read_together(reads, out):
            return
        assert same_bytes(out, np.concatenate([case.rows[r.start : r.stop] for r in reads]))
        n = spec.n_rows
        with pytest.raises(ReadError, match=f"rows {n - 1}:{n + 1}"):
            source.read_together([RowRange(0, 1), RowRange(n - 1, n + 1)], out[:3])
        with pytest.raises(ValueError, match="out must"):
            source.read_together([RowRange(0, 1), RowRange(0, 1)], out[:1])
        source.close()
        with pytest.raises(ReadError, match="rows 0:1, the source is closed"):
            source.read_together([RowRange(0, 1)], out[:1])

    # Breaks when threads share a file position or a scratch buffer.
    def test_four_threads_read_at_once(self, case: Case, source: Source) -> None:
        n = source.spec.n_rows
        bounds = np.sort(np.random.default_rng(1).integers(0, n + 1, size=(40, 2)), axis=1)

        def right(bound: np.ndarray) -> bool:
            start, stop = (int(row) for row in bound)
            return same_bytes(read(source, start, stop), case.rows[start:stop])

        with ThreadPoolExecutor(4) as pool:
            assert all(pool.map(right, bounds))

    # Breaks when a resumed run would take the same data for other data.
    def test_fingerprint_is_equal_on_reopening(self, case: Case, source: Source) -> None:
        again = case.open()
        assert source.fingerprint() == again.fingerprint() == source.fingerprint()
        again.close()

    # Breaks when a resumed run would go on with other data; sizes stay equal here.
    def test_fingerprint_changes_with_the_content(self, case: Case) -> None:
        found = set()
        for place in (None, 0, -1):
            changed = case.array.copy()
            if place is not None:
                changed.flat[place] = 1 if changed.flat[place] != 1 else 2
            case.store(changed)
            case.age()
            source = case.open()
            found.add(source.fingerprint())
            source.close()
        assert len(found) == 3

    # Breaks when a closed descriptor's number, perhaps another file's by now, is read.
    def test_closed_source_refuses(self, case: Case) -> None:
        source = case.open()
        source.close()
        source.close()
        with pytest.raises(ReadError, match="closed"):
            read(source, 0, 1)

    # Breaks when rows after the end are read as whatever follows.
    def test_refuses_rows_after_the_end(self, source: Source) -> None:
        n = source.spec.n_rows
        with pytest.raises(ReadError, match=f"rows {n - 1}:{n + 1}"):
            read(source, n - 1, n + 1)

    # Breaks when memory of another shape would be filled in part, or a copy of it.
    def test_refuses_memory_that_does_not_fit(self, source: Source) -> None:
        spec = source.spec
        other = np.float64 if spec.storage != np.float64 else np.float32
        wrong = [
            np.empty((2, spec.n_features), spec.storage),
            np.empty((1, spec.n_features + 1), spec.storage),
            np.empty((1, spec.n_features), other),
            np.empty((1, 2 * spec.n_features), spec.storage)[:, ::2],
        ]
        for out in wrong if spec.n_features > 1 else wrong[:3]:
            with pytest.raises(ValueError, match="out must"):
                source.read(RowRange(0, 1), out)

    def test_notes_are_sentences(self, source: Source) -> None:
        assert not any("\n" in note for note in source.notes())
