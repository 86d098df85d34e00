"""What is gathered of the records before they are written, and the buckets that they wait in.

`streamkm.runs.partitioning.distribution` says how they are used.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from threading import Lock
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from streamkm.errors import ResumeError
from streamkm.files import names_in, remove_file
from streamkm.machine import n_cores
from streamkm.runs.partitioning.flat import open_flat
from streamkm.runs.partitioning.placing import SCAN_ROWS, ByKey, stable_argsort

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from streamkm.files import OutputFile
    from streamkm.runs.partitioning.placing import Placing
    from streamkm.sources.base import RowRange

__all__ = [
    "BESIDE_RECORD",
    "DIRECT_BYTES",
    "MOST_WRITERS",
    "PIECE_BYTES",
    "DistributionPlan",
    "Gathered",
    "GatheredBytes",
    "Output",
    "discard_buckets",
    "plan_distribution",
]

#: Bytes of a write of several records, at most: they are put in order in memory that the cache
#: holds; and threads that do so side by side, at most.
PIECE_BYTES, MOST_WRITERS = 1 << 20, 4
#: Bytes of a cluster's share of what is gathered, on average, from which on it is written to its
#: final place at once, by halves: below, writes are too small, and buckets are faster.
DIRECT_BYTES = 64 << 10
#: Bytes that a gathered record takes beside itself: its group and its place, and the sort.
BESIDE_RECORD = 48
#: Bytes of a place.
_PLACE_BYTES = 8


class Output(Protocol):
    """Where records go."""

    align_rows: int
    """Each `put` but the last is of a multiple of these rows, where buckets can be: chunks."""

    def put(self, start: int, rows: Any) -> None:
        """Write `rows`, uint8 of shape (n, bytes of a record), from place `start` on."""

    def sync(self) -> int:
        """Bring what was put to disk; the place up to which all is there, if put in order."""

    def publish(self, target: Path) -> None:
        """Give the complete output its name."""


@dataclass(frozen=True)
class DistributionPlan:
    """How records are moved."""

    n_places: int
    """Records of the output."""
    width: int
    """Bytes of a record."""
    gather_rows: int
    """Records that are gathered before they are written."""
    bucket_rows: int
    """Places of a bucket; 0 if each cluster's share goes to its final place."""

    @property
    def is_direct(self) -> bool:
        """Whether each cluster's share goes to its final place."""
        return self.bucket_rows == 0

    @property
    def is_in_memory(self) -> bool:
        """Whether all records are gathered in memory."""
        return not self.is_direct and self.bucket_rows >= self.n_places

    @property
    def n_buckets(self) -> int:
        """Buckets; the last may be short."""
        return 0 if self.is_direct else -(-self.n_places // self.bucket_rows)

    @property
    def scratch_bytes(self) -> int:
        """Bytes that the buckets take on disk."""
        is_on_disk = self.n_buckets > 1
        return self.n_places * (self.width + _PLACE_BYTES) if is_on_disk else 0


def plan_distribution(
    n_places: int, width: int, memory: int, *, n_clusters: int = 0, align_rows: int = 1
) -> DistributionPlan:
    """The plan for `n_places` records of `width` bytes in `memory` bytes.

    `n_clusters` are the groups that may be written to their final places; 0 if the places within a
    cluster have another order than the rows, or the output is written in order. A bucket is a
    multiple of `align_rows`.
    """
    rows = max(memory // (width + BESIDE_RECORD), align_rows)
    if rows >= n_places:
        return DistributionPlan(n_places, width, n_places, n_places)
    is_direct = n_clusters > 0 and rows * width // n_clusters >= DIRECT_BYTES
    bucket_rows = 0 if is_direct else rows // align_rows * align_rows
    return DistributionPlan(n_places, width, rows, bucket_rows)


class Gathered(ABC):
    """Records in memory, and the buckets that they are written to.

    Parameters
    ----------
    step : str
        Its name, for the files of buckets.
    plan : DistributionPlan
        How many are gathered, and where they go.
    output : Output
        Where the shares of clusters go, if the plan is direct.
    folder : Path
        Where the files of buckets are.
    resumed : bool
        Whether an earlier attempt has begun them, and its cursor claims what is in them.
    """

    def __init__(
        self, step: str, plan: DistributionPlan, output: Output, folder: Path, *, resumed: bool
    ) -> None:
        self._beside = folder / step
        self.plan, self.n_buckets, self._output = plan, plan.n_buckets, output
        # One part of the memory is filled while another is written.
        n_parts = 1 if self.n_buckets == 1 else self._n_parts()
        self._part_rows = max(plan.gather_rows // n_parts, 1)
        self._first = self._filled = 0
        self._groups = np.empty(plan.gather_rows, np.int64)
        self._places = np.empty(0 if plan.is_direct else plan.gather_rows, np.int64)
        self._next: np.ndarray = np.arange(self.n_buckets) * plan.bucket_rows
        self._open(resumed=resumed)

    def skip(self, placing: Placing, passed: RowRange) -> None:
        """Find where the next record of each group goes after `passed`, and what came before."""
        self.flush()
        if self.plan.is_direct:
            assert isinstance(placing, ByKey)
            self._next = placing.after(passed)
            return
        for rows in passed.split(SCAN_ROWS):
            places_B = placing.places(rows)
            groups_B = places_B[places_B >= 0] // self.plan.bucket_rows
            self._next += np.bincount(groups_B, minlength=self.n_buckets)

    def add(self, groups_B: np.ndarray, places_B: np.ndarray | None, records: Any) -> None:
        """Gather the records whose group is not negative."""
        kept: np.ndarray | None = None
        if int(groups_B.min(initial=0)) < 0:
            kept = np.flatnonzero(groups_B >= 0)
            groups_B = groups_B[kept]
            places_B = None if places_B is None else places_B[kept]
        start = 0
        while start < len(groups_B):
            if self._filled == self._part_rows:
                self.flush()
            part = slice(start, start + self._part_rows - self._filled)
            some_B = groups_B[part]
            begin = self._first + self._filled
            to = slice(begin, begin + len(some_B))
            start, self._filled = start + len(some_B), self._filled + len(some_B)
            # A copy of what stands together is several times as fast as one of chosen records.
            chosen = slice(part.start, start) if kept is None else kept[part]
            self._take_in(records, chosen, to)
            self._groups[to] = some_B
            if places_B is not None:
                self._places[to] = places_B[part]

    def flush(self) -> None:
        """Begin to write each group's share of what is gathered: of a single bucket nothing."""
        if self.n_buckets == 1 or not self._filled:
            return
        order = stable_argsort(self._groups[self._first : self._first + self._filled]) + self._first
        groups = self._groups[order]
        edges = [0, *(np.flatnonzero(np.diff(groups)) + 1).tolist(), self._filled]
        self._write_shares((int(groups[begin]), order[begin:end]) for begin, end in pairwise(edges))
        next_ = self._first + self._part_rows
        self._first = next_ if next_ + self._part_rows <= self.plan.gather_rows else 0
        self._filled = 0

    def _edges(self, bucket: int) -> tuple[int, int]:
        """The first place of a bucket, and the one after its last."""
        first = bucket * self.plan.bucket_rows
        return first, min(first + self.plan.bucket_rows, self.plan.n_places)

    def _n_parts(self) -> int:
        """Parts of the memory; 1 if nothing is gathered while something is written."""
        return 1

    @abstractmethod
    def _open(self, *, resumed: bool) -> None:
        """Make what holds records and buckets."""

    @abstractmethod
    def _take_in(self, records: Any, chosen: slice | np.ndarray, to: slice) -> None:
        """Hold the `chosen` records as those of `to`."""

    @abstractmethod
    def _write_shares(self, shares: Iterator[tuple[int, np.ndarray]]) -> None:
        """Begin to write each group's share, given as numbers of what is gathered.

        What was begun before is written when it returns.
        """

    @abstractmethod
    def sync(self) -> None:
        """Bring all that was added to disk."""

    @abstractmethod
    def bucket(self, index: int, done: int) -> Iterator[tuple[int, Any]]:
        """The records of a bucket from place `done` on, sorted: (place of the first, records)."""

    @abstractmethod
    def close(self) -> None:
        """Release files."""


def discard_buckets(folder: Path, step: str) -> None:
    """Delete the files of the buckets of `step`."""
    for name in names_in(folder):
        if name.startswith((f"{step}.bucket", f"{step}.place")):
            remove_file(folder / name)


class GatheredBytes(Gathered):
    """Gathered records of equal length, and buckets in one file of theirs and one of places.

    Threads write one half of the memory while rows are read into the other.
    """

    def _n_parts(self) -> int:
        """See `Gathered`."""
        return 2 if _n_writers() > 1 else 1

    def _open(self, *, resumed: bool) -> None:
        plan = self.plan
        self._n_writers = _n_writers()
        self._pool = ThreadPoolExecutor(self._n_writers)
        self._writing: list[Future[None]] = []
        # The file system lets one write at a time into a file: the others would wait spinning.
        self._turn = Lock()
        self._records = np.empty((plan.gather_rows, plan.width), np.uint8)
        name = self._beside.name
        self._paths = [self._beside.with_name(f"{name}.{what}") for what in ("bucket", "place")]
        self._files: list[OutputFile] = []
        if plan.scratch_bytes:
            for path, width in zip(self._paths, (plan.width, _PLACE_BYTES), strict=True):
                self._files.append(open_flat(path, plan.n_places * width, resumed=resumed))

    def _take_in(self, records: np.ndarray, chosen: slice | np.ndarray, to: slice) -> None:
        if isinstance(chosen, slice):
            self._records[to] = records[chosen]
        else:
            np.take(records, chosen, axis=0, out=self._records[to], mode="clip")

    def _write_shares(self, shares: Iterator[tuple[int, np.ndarray]]) -> None:
        found = [(group, int(self._next[group]), share) for group, share in shares]
        for group, _, share in found:
            self._next[group] += len(share)
        self._wait()
        # They put pieces in order and write them side by side: neither holds the interpreter.
        n = self._n_writers
        self._writing = [self._pool.submit(self._write, found[i::n]) for i in range(n)]
        if self._part_rows == self.plan.gather_rows:  # There is no other to fill.
            self._wait()

    def _wait(self) -> None:
        """Wait for what is being written."""
        while self._writing:
            self._writing.pop().result()

    def _write(self, found: list[tuple[int, int, np.ndarray]]) -> None:
        """Write some shares, each from its position on."""
        memory = self._piece_memory()
        for _, at, share in found:
            for start, rows in self._pieces(share, at, memory):
                with self._turn:
                    if self.plan.is_direct:
                        self._output.put(start, rows)
                    else:
                        self._files[0].write(start * self.plan.width, rows.reshape(-1).data)
            if not self.plan.is_direct:
                # A place that was never written holds 0.
                places = (self._places[share] + 1).view(np.uint8)
                self._files[1].write(at * _PLACE_BYTES, places.data)

    def sync(self) -> None:
        """See `Gathered`."""
        self.flush()
        self._wait()
        for file in self._files:
            file.sync()
        if self.plan.is_direct:
            self._output.sync()

    def bucket(self, index: int, done: int) -> Iterator[tuple[int, np.ndarray]]:
        """See `Gathered`."""
        first, stop = self._edges(index)
        count = self._load(first, stop) if self._files else self._filled
        order = np.full(stop - first, -1, np.int64)
        order[self._places[:count] - first] = np.arange(count)
        start = max(done, first)
        yield from self._pieces(order[start - first :], start, self._piece_memory())

    def _load(self, first: int, stop: int) -> int:
        """Read the bucket of these places from disk; the number of its records."""
        places = self._places[: stop - first]
        _read_into(self._files[1], first * _PLACE_BYTES, places)
        count = int(np.count_nonzero(places))
        places -= 1
        records = self._records[:count]
        _read_into(self._files[0], first * self.plan.width, records)
        return count

    def _piece_memory(self) -> np.ndarray:
        rows = min(max(PIECE_BYTES // self.plan.width, 1), self.plan.gather_rows)
        return np.empty((rows, self.plan.width), np.uint8)

    def _pieces(
        self, share: np.ndarray, start: int, memory: np.ndarray
    ) -> Iterator[tuple[int, np.ndarray]]:
        """The gathered records that `share` names, in large pieces of `memory`."""
        for begin in range(0, len(share), len(memory)):
            numbers = share[begin : begin + len(memory)]
            rows = memory[: len(numbers)]
            np.take(self._records, numbers, axis=0, out=rows, mode="clip")
            if int(numbers.min()) < 0:
                rows[numbers < 0] = 0xFF
            yield start + begin, rows

    def close(self) -> None:
        """Release files and threads."""
        self._pool.shutdown()
        for file in self._files:
            file.close()


def _n_writers() -> int:
    return min(n_cores(), MOST_WRITERS)


def _read_into(file: OutputFile, position: int, out: np.ndarray) -> None:
    """Fill `out` with the bytes from `position` on."""
    memory, done = out.reshape(-1).view(np.uint8), 0
    while done < memory.size:
        piece = file.read(position + done, min(memory.size - done, PIECE_BYTES))
        if not piece:
            raise ResumeError("a file of buckets was cut short; remove the partition, start again")
        memory[done : done + len(piece)] = np.frombuffer(piece, np.uint8)
        done += len(piece)
