"""The reading plan: which rows are read, in which order, and how they are cut into batches.

The plan is pure: the order is a function of the seed, the epoch and the array's
shape and blocks, never of threads, memory or speed. To resume is to ask for the
same order from a later batch on, so a resumed run equals an uninterrupted one.

Rows are read by *block*: what the source reads best at once, such as a chunk.
Each block is read once an epoch. A *window* is the blocks that lie in memory
together; a *batch* is a slice of a window. The rows of one file are often
sorted. In training, therefore, the blocks of a window are drawn at random from
the whole array, and its rows are dealt to its batches: of B neighbours, where
the window has B batches, each batch gets one at random. Such a batch is as
varied as its window, more so than one drawn without regard to where rows lie,
and its rows keep their order in memory.

Several processes share an epoch by blocks. In training every batch has rows of
all of them, each from its own blocks of the window. Where rows are read in
sequence a batch belongs to one process: it is made of whole blocks, or is a part
of one. So a batch is the same rows on any number of processes.

Two other ways were rejected. Reading random rows would decode every chunk many
times. A running shuffle buffer depends on everything read before, so a resumed
run could not seek to its place.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from streamkm.sources.base import ArraySpec, RowRange

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "WINDOW_BYTES",
    "Place",
    "ReadingPlan",
    "Window",
    "draws",
    "plan_reading",
]

#: Bytes of stored rows in a window, about: many small blocks, or at least one large block.
WINDOW_BYTES = 64 << 20

#: The kind of a draw is part of its seed, so that no two kinds draw the same numbers.
_BLOCK_ORDER, _ROW_ORDER = range(2)


@dataclass(frozen=True, slots=True)
class Window:
    """Blocks that are read into one host slot together, and the batches cut from them."""

    epoch: int
    """Pass over the data, from 0."""
    reads: tuple[RowRange, ...]
    """Rows that are read, in the order in which they lie in the slot."""
    first_batch: int
    """Number of this window's first batch within the epoch."""
    batch_edges: tuple[int, ...]
    """Batch i is ``order[batch_edges[i]:batch_edges[i + 1]]``."""
    last: bool
    """Whether the epoch ends with this window."""
    order_seed: tuple[int, ...] | None = None
    """Seed that deals or picks the slot's rows; None keeps the order of reading."""
    picks: tuple[int, ...] | None = None
    """Rows of each read that are kept, drawn at random; None keeps all."""
    first_block: int = 0
    """Number of the window's first block in the order of the epoch."""
    unit_blocks: int = 1
    """Blocks that are read by one process: as many as make a batch, where rows are read in
    sequence."""
    part: Part | None = field(default=None, compare=False)
    """Of which window this is a process's share, and which part; None for a whole window."""
    positions: np.ndarray | None = field(default=None, compare=False)
    """The order itself, int32, in a share that is `dealt`; else None."""
    numbers: np.ndarray | None = field(default=None, compare=False)
    """In a share that is `dealt`, the number of each row within its whole batch, int32, in the
    order of use; else None."""

    @property
    def n_rows(self) -> int:
        """Rows that are read."""
        return sum([rows.stop - rows.start for rows in self.reads])

    @property
    def one_read(self) -> RowRange | None:
        """The rows that are read, if they follow one another in the array; else None."""
        if not self.reads or any(a.stop != b.start for a, b in pairwise(self.reads)):
            return None
        return RowRange(self.reads[0].start, self.reads[-1].stop)

    @property
    def n_batches(self) -> int:
        """Batches that are cut from the window."""
        return len(self.batch_edges) - 1

    def order(self) -> np.ndarray | None:
        """Positions in the slot in the order of use, int32; None for the order of reading.

        Of a share only once it is `dealt`.
        """
        if self.part is not None:
            return self.positions
        if self.order_seed is None or (self.picks is None and self.n_batches == 1):
            return None
        rng = draws(*self.order_seed)
        if self.picks is None:
            return _dealt(self.n_rows, self.n_batches, rng)
        chosen, offset = [], 0
        for rows, n_picked in zip(self.reads, self.picks, strict=True):
            chosen.append(offset + np.sort(rng.choice(len(rows), n_picked, replace=False)))
            offset += len(rows)
        return np.concatenate(chosen).astype(np.int32)

    def share(self, rank: int, n_processes: int) -> Window:
        """The part of this window that process `rank` of `n_processes` reads and uses.

        The processes take the units of an epoch in turn. Which rows belong to which batch is worked
        out by `dealt`.
        """
        units = (self.first_block + np.arange(len(self.reads))) // self.unit_blocks
        is_own = units % n_processes == rank
        reads = tuple(rows for rows, own in zip(self.reads, is_own, strict=True) if own)
        return replace(self, reads=reads, part=Part(self, is_own))

    def dealt(self) -> Window:
        """The window itself; of a share the one that knows its batches and their order.

        A batch of a share holds the rows of the same batch of the whole window that lie in the
        blocks of the process: on any number of processes a step is made of the same rows. Batches
        may be empty, and so may `reads`.
        """
        if self.part is None or self.numbers is not None:
            return self
        whole, is_own = self.part
        lengths = [len(rows) for rows in whole.reads]
        own = np.repeat(is_own, lengths)
        order = whole.order()
        batch_rows = np.diff(whole.batch_edges)
        numbers = np.arange(whole.n_rows, dtype=np.int32)
        numbers -= np.repeat(np.array(whole.batch_edges[:-1], np.int32), batch_rows)
        used = own if order is None else own[order]
        ends = np.concatenate(([0], np.cumsum(used)))
        positions = None  # Of rows in the order of reading, those of a share are in order too.
        if order is not None:
            # Blocks that other processes read are not in the slot: later blocks move up by them.
            place = np.cumsum(own, dtype=np.int32) - np.int32(1)
            positions = place[order[used]]
        return replace(
            self,
            batch_edges=tuple(ends[list(whole.batch_edges)].tolist()),
            positions=positions,
            numbers=numbers[used],
        )

    @property
    def whole(self) -> Window:
        """The window that this is a share of, or the window itself."""
        return self if self.part is None else self.part.whole

    def whole_rows(self, index: int) -> int:
        """Rows of batch `index` of the window in all shares."""
        edges = self.whole.batch_edges
        return edges[index + 1] - edges[index]


class Part(NamedTuple):
    """The part of a window that a process reads."""

    whole: Window
    is_own: np.ndarray
    """Whether the process reads each of its blocks, bool."""


class Place(NamedTuple):
    """Where a batch lies in an array that several processes read in sequence."""

    start_row: int
    n_rows: int
    owner: int
    """Rank of the process that reads it."""
    ends_round: bool
    """Whether each process has come to the end of its unit of blocks, as far as there are some; for
    one process always."""


@dataclass(frozen=True, slots=True)
class ReadingPlan:
    """The order of every epoch over one array."""

    n_rows: int
    block_rows: int
    window_blocks: int
    """Blocks of a window, at most."""
    batch_rows: int
    """Rows of a batch, at most; batches of one window, or in sequence of one unit of blocks, differ
    by one row at most."""
    seed: int | None
    """Seed of the order; None reads from the first row to the last."""

    @property
    def n_blocks(self) -> int:
        """Blocks of the array; the last may be short."""
        return -(-self.n_rows // self.block_rows)

    @property
    def unit_blocks(self) -> int:
        """Blocks that one process reads: in sequence those of a batch, if they are whole in it."""
        return 1 if self.seed is not None else max(self.batch_rows // self.block_rows, 1)

    @property
    def unit_batches(self) -> int:
        """Batches of a unit of blocks, where rows are read in sequence; fewer of the last."""
        return -(-min(self.unit_blocks * self.block_rows, self.n_rows) // self.batch_rows)

    @property
    def window_rows(self) -> int:
        """Rows of a window, at most."""
        return min(self.window_blocks * self.block_rows, self.n_rows)

    @property
    def n_windows(self) -> int:
        """Windows of an epoch."""
        return -(-self.n_blocks // self.window_blocks)

    @property
    def order_bytes(self) -> int:
        """Bytes that making the order of an epoch takes, at most."""
        return 40 * self.n_blocks + 40 * self.n_windows

    def windows(
        self, epoch: int, start: int = 0, *, rank: int = 0, n_processes: int = 1
    ) -> Iterator[Window]:
        """Windows of `epoch` from the one that holds batch number `start` on.

        The first window is whole even if `start` lies within it: the caller passes
        over the batches before `start`. With several processes each window is the
        share of process `rank` (see `Window.share`).
        """
        whole = self._windows(epoch, start)
        if n_processes == 1:
            return whole
        return (window.share(rank, n_processes) for window in whole)

    def _windows(self, epoch: int, start: int) -> Iterator[Window]:
        blocks, window_rows, first_batches = self._layout(epoch)
        first = self._window_of(start, first_batches)
        for index in range(first, self.n_windows):
            chosen = blocks[index * self.window_blocks : (index + 1) * self.window_blocks]
            starts = chosen * self.block_rows
            stops = np.minimum(starts + self.block_rows, self.n_rows)
            yield Window(
                epoch=epoch,
                reads=tuple(map(RowRange, starts.tolist(), stops.tolist())),
                first_batch=int(first_batches[index]),
                batch_edges=self._edges(int(window_rows[index])),
                last=index == self.n_windows - 1,
                first_block=index * self.window_blocks,
                unit_blocks=self.unit_blocks,
                order_seed=None if self.seed is None else (self.seed, _ROW_ORDER, epoch, index),
            )

    def n_batches(self, epoch: int) -> int:
        """Batches of `epoch`; the number varies with the window that the short last block is in."""
        return int(self._layout(epoch)[2][-1])

    def rows_before(self, epoch: int, batch: int) -> int:
        """Rows of `epoch` in the batches before number `batch`."""
        if batch == 0:
            return 0
        _, window_rows, first_batches = self._layout(epoch)
        index = self._window_of(batch, first_batches)
        if index == self.n_windows:
            return self.n_rows
        edges = self._edges(int(window_rows[index]))
        return int(window_rows[:index].sum()) + edges[batch - int(first_batches[index])]

    def batch_at(self, row: int) -> int:
        """Number of the batch that holds `row` when rows are read in sequence."""
        if row == 0:
            return 0
        index, within = divmod(row, self.window_blocks * self.block_rows)
        _, window_rows, first_batches = self._layout(0)
        edges = self._edges(int(window_rows[index]))
        return int(first_batches[index]) + int(np.searchsorted(edges, within, side="right")) - 1

    def places(self, start: int = 0, *, n_processes: int = 1) -> Iterator[Place]:
        """Where each batch lies, from number `start` on, when rows are read in sequence."""
        unit_batches = self.unit_batches
        for window in self._windows(0, start):
            first_unit = window.first_block // self.unit_blocks
            for i in range(max(start - window.first_batch, 0), window.n_batches):
                owner = (first_unit + i // unit_batches) % n_processes
                is_last = i + 1 == window.n_batches
                ends_unit = is_last or (i + 1) % unit_batches == 0
                ends_round = ends_unit and owner + 1 == n_processes
                ends_round |= n_processes == 1 or (is_last and window.last)
                start_row = window.reads[0].start + window.batch_edges[i]
                yield Place(start_row, window.whole_rows(i), owner, ends_round)

    def ends_round(self, n_done: int, n_processes: int) -> bool:
        """Whether after `n_done` batches each process has come to the end of a unit of blocks.

        Where an epoch ends, some may have had none. For one process always, and in training, where
        all take part in every batch.
        """
        if n_processes == 1 or self.seed is not None:
            return True
        is_round = n_done % (self.unit_batches * n_processes) == 0
        return is_round or n_done == self._n_batches(np.array(self.n_rows))

    def _window_of(self, batch: int, first_batches: np.ndarray) -> int:
        """Index of the window that holds `batch`; at the epoch's end the number of windows."""
        if not 0 <= batch <= first_batches[-1]:
            raise ValueError(f"batch {batch} is not one of the epoch's {first_batches[-1]}")
        if batch == 0:
            return 0
        return int(np.searchsorted(first_batches, batch, side="right")) - 1

    def block(self, index: int) -> RowRange:
        """Rows of block number `index`."""
        start = index * self.block_rows
        return RowRange(start, min(start + self.block_rows, self.n_rows))

    def _layout(self, epoch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Blocks in order of use; rows of each window; first batch of each, and the total."""
        if self.n_blocks == 1:  # as in most arrays in memory; what follows takes ten times as long
            n_all = -(-self.n_rows // self.batch_rows)
            return np.array([0]), np.array([self.n_rows]), np.array([0, n_all])
        blocks = np.arange(self.n_blocks)
        if self.seed is not None and self.n_blocks > 1:
            blocks = draws(self.seed, _BLOCK_ORDER, epoch).permutation(blocks)
        lengths = np.minimum(self.block_rows, self.n_rows - blocks * self.block_rows)
        window_starts = np.arange(0, self.n_blocks, self.window_blocks)
        window_rows = np.add.reduceat(lengths, window_starts)
        n_batches = self._n_batches(window_rows)
        return blocks, window_rows, np.concatenate(([0], np.cumsum(n_batches)))

    def _n_batches(self, window_rows: np.ndarray) -> np.ndarray:
        """Batches of windows of these rows."""
        if self.seed is not None:
            return -(-window_rows // self.batch_rows)
        unit_rows = self.unit_blocks * self.block_rows
        n_units, rest = np.divmod(window_rows, unit_rows)
        n_batches: np.ndarray = n_units * -(-unit_rows // self.batch_rows)
        n_batches += -(-rest // self.batch_rows)
        return n_batches

    def _edges(self, window_rows: int) -> tuple[int, ...]:
        """Edges of the batches of a window: equal in training, else equal in every unit."""
        unit_rows = window_rows if self.seed is not None else self.unit_blocks * self.block_rows
        edges = [0]
        for start in range(0, window_rows, unit_rows):
            n_rows = min(unit_rows, window_rows - start)
            n_batches = -(-n_rows // self.batch_rows)
            edges += [start + edge for edge in _edges(n_rows, n_batches)[1:]]
        return tuple(edges)

    def in_sequence(self) -> ReadingPlan:
        """The plan that reads from the first row to the last, of windows no longer than these."""
        plan = replace(self, seed=None)
        n_units = max(self.window_blocks // plan.unit_blocks, 1)
        return replace(plan, window_blocks=n_units * plan.unit_blocks)


def plan_reading(spec: ArraySpec, *, batch_rows: int, seed: int | None) -> ReadingPlan:
    """The reading plan for `spec`: in a random order from `seed`, in sequence if it is None."""
    block_rows = min(spec.block_rows, spec.n_rows)
    fitting = WINDOW_BYTES // (block_rows * spec.row_bytes)
    n_blocks = -(-spec.n_rows // block_rows)
    window_blocks = min(max(fitting, -(-batch_rows // block_rows), 1), n_blocks)
    plan = ReadingPlan(
        n_rows=spec.n_rows,
        block_rows=block_rows,
        window_blocks=window_blocks,
        batch_rows=batch_rows,
        seed=seed,
    )
    return plan.in_sequence() if seed is None else plan


def _edges(n_rows: int, n_batches: int) -> tuple[int, ...]:
    """Edges of `n_batches` equal batches; the rows left over go to the first ones, one each."""
    length, n_longer = divmod(n_rows, n_batches)
    return tuple(i * length + min(i, n_longer) for i in range(n_batches + 1))


def _dealt(n_rows: int, n_batches: int, rng: np.random.Generator) -> np.ndarray:
    """Positions of all rows, batch after batch: each has one of every `n_batches` neighbours.

    The neighbour that goes to the first batch is drawn; the other batches follow in turn.
    """
    starts_H = np.arange(0, n_rows, n_batches, dtype=np.int32)
    turn_H = rng.integers(n_batches, size=len(starts_H), dtype=np.int32)
    if n_rows % n_batches:
        turn_H[-1] = 0  # The last rows, fewer than the batches, go to the first, longer batches.
    place_BH = np.add.outer(np.arange(n_batches, dtype=np.int32), turn_H)
    place_BH -= np.int32(n_batches) * (place_BH >= n_batches)
    place_BH += starts_H
    return place_BH[place_BH < n_rows]


def draws(*entropy: int) -> np.random.Generator:
    """A generator of the draws that these numbers name: the seed and then the kind of draw."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(entropy)))
