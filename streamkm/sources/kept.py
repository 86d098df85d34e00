"""Keeps rows of a source in memory once they were read, as far as they fit.

For a run that reads the same rows several times. Which rows are kept follows from the array and
the room alone: units of rows, spread evenly over the array, each with a home of its own. So a run
can say beforehand what will stay, every pass finds about the same share of its rows in memory
wherever it is, and nothing is given up for what comes later: passes go round the array, and a cache
of the latest rows would have dropped each row just before it is wanted again.
"""

from __future__ import annotations

import logging
import threading
from array import array
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np

from streamkm.sources.base import Described, ReadsTogether, RowRange
from streamkm.sources.layout import check_read, check_reads
from streamkm.sources.memory import MemorySource
from streamkm.sources.within import would_take

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from streamkm.sources.base import ArraySpec, Source

__all__ = ["BESIDE_BLOCK", "Homes", "KeptRows", "Places", "held_rows"]

logger = logging.getLogger("streamkm")

#: Bytes that are taken for each block of the array, beside the rows that are kept, at most.
BESIDE_BLOCK = 5


@dataclass(frozen=True, slots=True)
class Homes:
    """Where rows stay: which units of an array have a home, and at which row of the memory.

    The units that are kept are spread evenly over those that `others` leave.
    """

    n_rows: int
    """Rows of the array."""
    unit_rows: int
    """Rows of a unit, a whole number of blocks; the last may be short."""
    n_kept: int
    """Units that are kept."""
    others: Homes | None = None
    """The homes elsewhere, whose units get none here."""

    @property
    def n_units(self) -> int:
        """Units of the array."""
        return -(-self.n_rows // self.unit_rows)

    @property
    def room_rows(self) -> int:
        """Rows of the memory that has all homes."""
        return min(self.n_kept * self.unit_rows, self.n_rows)

    @property
    def kept_rows(self) -> int:
        """Rows that have a home."""
        short = -self.n_rows % self.unit_rows
        return self.n_kept * self.unit_rows - short * bool(self.table()[-1] >= 0)

    def table(self) -> np.ndarray:
        """The number of each unit's home, int32; -1 for units without one."""
        is_left = np.ones(self.n_units, bool) if self.others is None else self.others.table() < 0
        n_before = np.cumsum(is_left)
        n_left = max(int(n_before[-1]), 1)
        # Spread evenly: the number of homes up to a unit is its share of them, rounded down.
        ranks = n_before * self.n_kept // n_left
        is_kept = np.diff(ranks, prepend=0) > 0
        return np.where(is_kept, ranks - 1, -1).astype(np.int32)


class Places:
    """Which blocks have come to their homes."""

    def __init__(self, homes: Homes, block_rows: int) -> None:
        self._n_rows, self._unit_rows, self.block_rows = homes.n_rows, homes.unit_rows, block_rows
        self._table = homes.table()
        # Of an array, an element is had in a third of the time.
        self._homes = array("i", self._table.tobytes())
        self._there = bytearray(-(-homes.n_rows // block_rows))

    def find(self, rows: RowRange) -> int | None:
        """Where `rows` lie, if they are all there, in one piece; else None."""
        place = self._home(rows) if len(rows) else None
        if place is None:
            return None
        first, last = rows.start // self.block_rows, (rows.stop - 1) // self.block_rows
        return place if self._there.find(0, first, last + 1) < 0 else None

    def find_blocks(self, starts: np.ndarray) -> np.ndarray | None:
        """Where the whole blocks lie that begin at these rows, if they are all there; else None."""
        there = np.frombuffer(self._there, np.uint8)
        if not there[starts // self.block_rows].all():
            return None
        units = starts // self._unit_rows
        found: np.ndarray = starts + (self._table[units] - units) * self._unit_rows
        return found

    def missing(self, rows: RowRange) -> list[tuple[RowRange, int]]:
        """The parts of `rows`, one of each block, that have a home and are not there; with that."""
        block_rows, found = self.block_rows, []
        for number in range(rows.start // block_rows, -(-rows.stop // block_rows)):
            start, stop = number * block_rows, (number + 1) * block_rows
            part = RowRange(max(start, rows.start), min(stop, rows.stop))
            place = None if self._there[number] else self._home(part)
            if place is not None:
                found.append((part, place))
        return found

    def room(self, rows: RowRange) -> int | None:
        """Where `rows` have their homes in one piece, if they are whole blocks; else None."""
        is_whole = rows.stop % self.block_rows == 0 or rows.stop == self._n_rows
        return self._home(rows) if is_whole and rows.start % self.block_rows == 0 else None

    def _home(self, rows: RowRange) -> int | None:
        """Where the home of `rows` begins; None unless all of them have one, in one piece."""
        unit_rows = self._unit_rows
        first, last = rows.start // unit_rows, (rows.stop - 1) // unit_rows
        home = self._homes[first]
        # Homes are in the order of the units, so those between lie there too.
        if home < 0 or (last > first and self._homes[last] - home != last - first):
            return None
        return rows.start + (home - first) * unit_rows

    def is_block(self, rows: RowRange) -> bool:
        """Whether `rows` are a whole block."""
        stop = min(rows.start + self.block_rows, self._n_rows)
        return rows.start % self.block_rows == 0 and rows.stop == stop

    def note(self, block: RowRange) -> None:
        """Remember that `block` is there from now on."""
        self._there[block.start // self.block_rows] = 1


class KeptRows(Described):
    """A view of `source` that reads each row once, if it has a home.

    Closing the view frees the rows, and leaves the source open.

    Parameters
    ----------
    source : Source
        N rows by D features.
    homes : Homes
        The rows that are kept. Their memory is taken as they come, page by page.
    """

    def __init__(self, source: Source, homes: Homes) -> None:
        self._source, spec = source, source.spec
        self._places = Places(homes, spec.block_rows)
        self._together = source.read_together if isinstance(source, ReadsTogether) else None
        self._lock = threading.Lock()
        self._fingerprint: str | None = None
        self._closed = False
        self.bytes_read = 0
        """Bytes that were asked of the source."""
        try:
            self._kept_ND = np.empty((homes.room_rows, spec.n_features), spec.storage)
        except MemoryError:
            logger.warning(
                "%d bytes to keep rows in are refused: every pass reads them again",
                homes.room_rows * spec.row_bytes,
            )
            self._keep_none()

    @property
    def name(self) -> str:
        """Where the rows come from."""
        return self._source.name

    @property
    def spec(self) -> ArraySpec:
        """That of the source."""
        return self._source.spec

    def read(self, rows: RowRange, out: np.ndarray) -> None:
        """Fill `out` with `rows`; see `Source.read`."""
        check_read(self.name, self.spec, rows, out, closed=self._closed)
        if (held := self.held(rows)) is not None:
            np.copyto(out, held)
            return
        self._source.read(rows, out)
        with self._lock:
            self.bytes_read += out.nbytes
        self._keep(rows, out)

    def held(self, rows: RowRange) -> np.ndarray | None:
        """`rows` where they lie in memory, one after the other, if they are all there."""
        place = self._places.find(rows)
        return None if place is None else self._kept_ND[place : place + len(rows)]

    def room(self, rows: RowRange) -> np.ndarray | None:
        """Where `rows`, which are whole blocks, will stay one after the other; else None.

        To be given to `read` for `out`, so that they come there without a copy. Nobody else may
        read the same rows meanwhile.
        """
        place = self._places.room(rows)
        return None if place is None else self._kept_ND[place : place + len(rows)]

    def read_together(self, reads: Sequence[RowRange], out: np.ndarray) -> bool:
        """Fill `out` with `reads`, if all are here or the source can; see `ReadsTogether`."""
        check_reads(self.name, self.spec, reads, out, closed=self._closed)
        if self._take(reads, out):
            return True
        if self._together is None:
            return False
        at, have_come = 0, False
        for is_here, run in groupby(reads, lambda rows: self._places.find(rows) is not None):
            some = list(run)
            end = at + sum(map(len, some))
            if not is_here and self._together(some, out[at:end]):
                have_come = True
                with self._lock:
                    self.bytes_read += out[at:end].nbytes
                for rows, part in _parts(some, out[at:end]):
                    self._keep(rows, part)
            elif is_here or have_come:  # What has come already must not be read again.
                for rows, part in _parts(some, out[at:end]):
                    self.read(rows, part)
            else:
                return False
            at = end
        return True

    def _take(self, reads: Sequence[RowRange], out: np.ndarray) -> bool:
        """Fill `out` with `reads`, one after the other, if they are whole blocks that are all here.

        One native call, which holds no lock: of blocks of 64 KiB, `read` takes longer to find one
        than to copy it. False, with `out` as it was, if any must be read.
        """
        block_rows = self.spec.block_rows
        starts = np.fromiter((rows.start for rows in reads), np.int64, len(reads))
        stops = np.fromiter((rows.stop for rows in reads), np.int64, len(reads))
        are_whole = (starts % block_rows == 0) & (stops - starts == block_rows)
        if len(out) != len(reads) * block_rows or not are_whole.all():
            return False
        places = self._places.find_blocks(starts)
        if places is None:
            return False
        n_whole = len(self._kept_ND) // block_rows
        blocks = self._kept_ND[: n_whole * block_rows].reshape(n_whole, -1)
        # "clip" only because "raise" goes through a buffer.
        blocks.take(places // block_rows, 0, out.reshape(len(reads), -1), "clip")
        return True

    def _keep(self, rows: RowRange, read: np.ndarray) -> None:
        """Copy rows that were read to their home, if they have one.

        Several threads may come with the same rows: they write the same bytes.
        """
        for part, place in self._places.missing(rows):
            # Parts of blocks, such as a sample reads, are read once.
            if self._places.is_block(part):
                within = read[part.start - rows.start : part.stop - rows.start]
                home = self._kept_ND[place : place + len(part)]
                if not np.may_share_memory(home, within):  # else it was read into its `room`
                    np.copyto(home, within)
                self._places.note(part)

    def _keep_none(self) -> None:
        spec = self.spec
        self._places = Places(Homes(spec.n_rows, spec.block_rows, 0), spec.n_rows)
        self._kept_ND = np.empty((0, spec.n_features), spec.storage)

    def fingerprint(self) -> str:
        """That of the source, worked out once."""
        if self._fingerprint is None:
            self._fingerprint = self._source.fingerprint()
        return self._fingerprint

    def would_take(self, path: Path) -> bool:
        """Whether what is written at `path` would become part of the source."""
        return would_take(self._source, path)

    def notes(self) -> list[str]:
        """The notes of the source."""
        return self._source.notes()

    def close(self) -> None:
        """Free the rows."""
        self._closed = True
        self._keep_none()


def _parts(reads: list[RowRange], out: np.ndarray) -> Iterator[tuple[RowRange, np.ndarray]]:
    """Each of `reads` with its place in `out`, where they come one after the other."""
    at = 0
    for rows in reads:
        yield rows, out[at : at + len(rows)]
        at += len(rows)


def held_rows(source: Source, rows: RowRange) -> np.ndarray | None:
    """`rows` of `source` where they lie in host memory, if they do; they must not be changed."""
    if isinstance(source, KeptRows):
        return source.held(rows)
    rows_ND = source.rows_there if isinstance(source, MemorySource) else None
    return None if rows_ND is None else rows_ND[rows.start : rows.stop]
