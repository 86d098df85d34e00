"""Moves records to their places in an output, in bounded memory and in large pieces.

Records come in the order of the rows. They are gathered in memory, sorted by group, and the share
of each group is written at once. There are three ways, and `plan_distribution` chooses:

- all records fit in memory: they are written once, from the first place to the last;
- the groups are clusters, few enough that a cluster's share of what is gathered is a large piece:
  each share is written to its final place;
- else the groups are buckets, of as many places as memory holds. They lie on disk for a while, and
  then each is sorted in memory and written (an external distribution sort, Knuth volume 3, 5.4.9).

Buckets hold equal numbers of places, whichever clusters these are of, so a cluster of any size is
no special case. Reading the source in the order of the output was rejected: it is a seek a row.
"""

from __future__ import annotations

from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Protocol

import numpy as np

from streamkm.files import remove_file
from streamkm.runs.partitioning.flat import open_flat
from streamkm.runs.partitioning.placing import SCAN_ROWS, ByKey, stable_argsort
from streamkm.sources.base import RowRange
from streamkm.stream.stages import StageTimes

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator
    from pathlib import Path

    from streamkm.files import OutputFile
    from streamkm.runs.partitioning.placing import Placing
    from streamkm.runs.partitioning.work import Work

__all__ = ["DistributionPlan", "Output", "distribute", "plan_distribution"]

#: Bytes of a write of several, at most: they are put in order in memory that the cache holds.
PIECE_BYTES = 4 << 20
#: Bytes of a cluster's share of what is gathered, on average, from which on it is written to its
#: final place at once: below, writes are too small, and buckets are faster.
DIRECT_BYTES = 32 << 10
#: Bytes that a gathered record takes beside itself: its group and its place, and the sort.
BESIDE_RECORD = 48
#: Bytes of a place.
_PLACE_BYTES = 8


class Output(Protocol):
    """Where records go."""

    align_rows: int
    """Each `put` but the last is of a multiple of these rows, where buckets can be: chunks."""

    def put(self, start: int, rows: np.ndarray) -> None:
        """Write `rows`, uint8 of shape (n, bytes of a record), from place `start` on."""

    def sync(self) -> int:
        """Bring what was put to disk; the place up to which all is there, if put in order."""


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


def distribute(
    step: str,
    plan: DistributionPlan,
    placing: Placing,
    stream: Callable[[int], Generator[tuple[RowRange, np.ndarray]]],
    output: Output,
    work: Work,
    reached: tuple[str, int],
    times: StageTimes | None = None,
) -> None:
    """Put each record that `stream` yields at its place in `output`.

    Parameters
    ----------
    step : str
        Its name, for the cursor and the progress.
    plan, placing
        How, and where to; a `ByKey` if the plan is direct.
    stream : callable
        Takes a row and yields, from there on, ranges of rows in order and their records, uint8 of
        shape (n, plan.width). Rows without a place may be left out.
    output : Output
        Synced at the end. A place that no record comes to holds bytes of ones (-1).
    work : Work
        Where the cursor is, and buckets are for a while.
    reached : tuple of str and int
        What `Work.begin` says of the step.
    times : StageTimes, optional
        Those of `stream`.
    """
    if not plan.n_places:
        return
    stage, done = reached
    how, times = asdict(plan), times or StageTimes()
    with ExitStack() as stack:
        is_resumed = bool(stage) and not plan.is_in_memory
        gathered = _Gathered(step, plan, output, work.folder, resumed=is_resumed)
        stack.callback(gathered.close)
        if stage != "write" or plan.is_in_memory:
            first = 0 if plan.is_in_memory else done
            gathered.begin(placing, first)
            records = stack.enter_context(closing(stream(first)))
            work.progress.begin(step, placing.n_rows, times, done=first)
            at = first
            for rows, found in records:
                work.progress.advance(rows.stop - at)
                at = rows.stop
                _gather(gathered, placing, rows, found)

                def save(at: int = at) -> None:
                    if not plan.is_in_memory:
                        gathered.sync()
                        work.save(step, how, "gather", at)

                work.after_batch(save)
                if work.progress.is_due():
                    work.progress.report({})
            records.close()
            gathered.flush()
            if gathered.n_buckets > 1:
                gathered.sync()
                work.save(step, how, "write", 0)
        if not plan.is_direct:
            _write(step, gathered, output, work, done if stage == "write" else 0)
        output.sync()
    gathered.discard()


def _gather(gathered: _Gathered, placing: Placing, rows: RowRange, records: np.ndarray) -> None:
    for part in rows.split(SCAN_ROWS):
        found = records[part.start - rows.start : part.stop - rows.start]
        if gathered.plan.is_direct:
            assert isinstance(placing, ByKey)
            gathered.add(placing.keys(part), None, found)
        else:
            places_B = placing.places(part)
            gathered.add(places_B // gathered.plan.bucket_rows, places_B, found)


def _write(step: str, gathered: _Gathered, output: Output, work: Work, done: int) -> None:
    """Write the buckets, each sorted, from place `done` on."""
    plan = gathered.plan
    work.progress.begin(f"{step}: sorting", plan.n_places, StageTimes(), done=done)
    for bucket in range(done // plan.bucket_rows, plan.n_buckets):
        for start, rows in gathered.bucket(bucket, done):
            output.put(start, rows)
            work.progress.advance(len(rows))

            def save() -> None:
                work.save(step, asdict(plan), "write", output.sync())

            work.after_batch(save)
            if work.progress.is_due():
                work.progress.report({})


class _Gathered:
    """Records in memory, and the buckets that they are written to."""

    def __init__(
        self, step: str, plan: DistributionPlan, output: Output, folder: Path, *, resumed: bool
    ) -> None:
        self.plan, self.n_buckets, self._output = plan, plan.n_buckets, output
        n_rows, self._filled = plan.gather_rows, 0
        self._records = np.empty((n_rows, plan.width), np.uint8)
        self._groups = np.empty(n_rows, np.int64)
        self._places = np.empty(0 if plan.is_direct else n_rows, np.int64)
        piece_rows = max(PIECE_BYTES // plan.width, 1)
        self._piece = np.empty((min(piece_rows, n_rows), plan.width), np.uint8)
        self._paths = [folder / f"{step}.bucket", folder / f"{step}.place"]
        self._files: list[OutputFile] = []
        self._next: np.ndarray = np.arange(self.n_buckets) * plan.bucket_rows
        if plan.scratch_bytes:
            for path, width in zip(self._paths, (plan.width, _PLACE_BYTES), strict=True):
                self._files.append(open_flat(path, plan.n_places * width, resumed=resumed))

    def begin(self, placing: Placing, row: int) -> None:
        """Go on from `row`: find where the next record of each group goes."""
        if self.plan.is_direct:
            assert isinstance(placing, ByKey)
            self._next = placing.after(row)
            return
        for rows in RowRange(0, row).split(SCAN_ROWS):
            places_B = placing.places(rows)
            groups_B = places_B[places_B >= 0] // self.plan.bucket_rows
            self._next += np.bincount(groups_B, minlength=self.n_buckets)

    def add(self, groups_B: np.ndarray, places_B: np.ndarray | None, records: np.ndarray) -> None:
        """Gather the records whose group is not negative."""
        kept = np.flatnonzero(groups_B >= 0)
        while len(kept):
            if self._filled == len(self._groups):
                self.flush()
            taken = kept[: len(self._groups) - self._filled]
            kept = kept[len(taken) :]
            to = slice(self._filled, self._filled + len(taken))
            np.take(records, taken, axis=0, out=self._records[to], mode="clip")
            self._groups[to] = groups_B[taken]
            if places_B is not None:
                self._places[to] = places_B[taken]
            self._filled = to.stop

    def flush(self) -> None:
        """Write each group's share of what is gathered: of a single bucket nothing."""
        if self.n_buckets == 1 or not self._filled:
            return
        order = stable_argsort(self._groups[: self._filled])
        groups = self._groups[order]
        edges = [0, *(np.flatnonzero(np.diff(groups)) + 1).tolist(), self._filled]
        for begin, end in pairwise(edges):
            group, share = groups[begin], order[begin:end]
            at = int(self._next[group])
            if self.plan.is_direct:
                for start, rows in self._pieces(share, at):
                    self._output.put(start, rows)
            else:
                for start, rows in self._pieces(share, at):
                    self._files[0].write(start * self.plan.width, rows.reshape(-1).data)
                # A place that was never written holds 0.
                places = (self._places[share] + 1).view(np.uint8)
                self._files[1].write(at * _PLACE_BYTES, places.data)
            self._next[group] += len(share)
        self._filled = 0

    def sync(self) -> None:
        """Bring all that was added to disk."""
        self.flush()
        for file in self._files:
            file.sync()
        if self.plan.is_direct:
            self._output.sync()

    def bucket(self, index: int, done: int) -> Iterator[tuple[int, np.ndarray]]:
        """The records of a bucket from place `done` on, sorted: (place of the first, records)."""
        first = index * self.plan.bucket_rows
        stop = min(first + self.plan.bucket_rows, self.plan.n_places)
        count = self._load(first, stop) if self._files else self._filled
        order = np.full(stop - first, -1, np.int64)
        order[self._places[:count] - first] = np.arange(count)
        start = max(done, first)
        yield from self._pieces(order[start - first :], start)

    def _load(self, first: int, stop: int) -> int:
        """Read the bucket of these places from disk; the number of its records."""
        places = self._places[: stop - first]
        _read_into(self._files[1], first * _PLACE_BYTES, places)
        count = int(np.count_nonzero(places))
        places -= 1
        records = self._records[:count]
        _read_into(self._files[0], first * self.plan.width, records)
        return count

    def _pieces(self, share: np.ndarray, start: int) -> Iterator[tuple[int, np.ndarray]]:
        """The gathered records that `share` names, in large pieces of memory that is used again."""
        for begin in range(0, len(share), len(self._piece)):
            numbers = share[begin : begin + len(self._piece)]
            rows = self._piece[: len(numbers)]
            np.take(self._records, numbers, axis=0, out=rows, mode="clip")
            rows[numbers < 0] = 0xFF
            yield start + begin, rows

    def close(self) -> None:
        """Release files."""
        for file in self._files:
            file.close()

    def discard(self) -> None:
        """Delete the buckets."""
        for path in self._paths:
            remove_file(path)


def _read_into(file: OutputFile, position: int, out: np.ndarray) -> None:
    """Fill `out` with the bytes from `position` on."""
    memory, done = out.reshape(-1).view(np.uint8), 0
    while done < memory.size:
        piece = file.read(position + done, min(memory.size - done, PIECE_BYTES))
        memory[done : done + len(piece)] = np.frombuffer(piece, np.uint8)
        done += len(piece)
