"""Which rows of a source are read: those from one number to another, or a sample of its blocks.

A sample is whole blocks, because rows drawn one by one would take as many reads as rows. Whether a
block is in it is a function of the seed and the block's number alone: a greater share of the same
seed holds the smaller, and blocks that are appended change nothing about those before.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Choice"]


@dataclass(frozen=True, slots=True)
class Choice:
    """Which rows of a source were chosen."""

    n_whole: int
    """Rows of the whole source."""
    start: int
    """The first row that may be chosen."""
    stop: int
    """The row after the last one."""
    block_rows: int
    """Rows of a block of the whole source."""
    share: float = 1.0
    """Share of the blocks that are chosen, each with this probability; 1 for all."""
    seed: int = 0
    """Decides which blocks."""

    @property
    def n_rows(self) -> int:
        """Number of chosen rows."""
        return int((ranges := _ranges(self))[1][-1] + ranges[2][-1])

    @property
    def is_aligned(self) -> bool:
        """Whether chosen rows keep their places in blocks."""
        return self.start % self.block_rows == 0

    def whole_row(self, row: int) -> int:
        """The number in the whole source of chosen row number `row`."""
        starts_R, firsts_R, _ = _ranges(self)
        at = int(np.searchsorted(firsts_R, row, side="right")) - 1
        return int(starts_R[at] + row - firsts_R[at])

    def within(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """The ranges of the whole source that chosen rows `start` to `stop` are, in order."""
        starts_R, firsts_R, lengths_R = _ranges(self)
        at = int(np.searchsorted(firsts_R, start, side="right")) - 1
        while start < stop:
            end = min(stop, int(firsts_R[at] + lengths_R[at]))
            offset = int(starts_R[at] - firsts_R[at])
            yield start + offset, end + offset
            start, at = end, at + 1

    def options(self) -> dict[str, Any]:
        """Options of `streamkm.sources.open_source` that choose the same rows."""
        sampled = {"sample": self.share, "sample_seed": self.seed} if self.share < 1 else {}
        span = {"row_range": f"{self.start}:{self.stop}"} if self._is_part else {}
        return span | sampled

    @property
    def _is_part(self) -> bool:
        return self.stop - self.start < self.n_whole

    def __str__(self) -> str:
        parts = []
        if self._is_part:
            parts.append(f"rows {self.start:,} to {self.stop:,} of {self.n_whole:,}")
        if self.share < 1:
            n_blocks = -(-self.stop // self.block_rows) - self.start // self.block_rows
            parts.append(
                f"a sample of {len(_blocks(self)):,} of {n_blocks:,} blocks (share "
                f"{self.share:g}, seed {self.seed}; {self.n_rows:,} of "
                f"{self.stop - self.start:,} rows)"
            )
        return ", ".join(parts)


@lru_cache(maxsize=8)
def _blocks(choice: Choice) -> np.ndarray:
    """Numbers of the blocks that are chosen, at least one."""
    numbers = np.arange(
        choice.start // choice.block_rows, -(-choice.stop // choice.block_rows), dtype=np.uint64
    )
    if choice.share == 1:
        return numbers
    drawn = _mixed(numbers + _mixed(np.array([choice.seed % 2**64], np.uint64)))
    chosen = numbers[drawn / 2.0**64 < choice.share]
    return chosen if len(chosen) else numbers[[drawn.argmin()]]


def _mixed(values: np.ndarray) -> np.ndarray:
    """Each number as one that looks drawn: the mixer of splitmix64 (Steele et al. 2014)."""
    mixed = values + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


@lru_cache(maxsize=8)
def _ranges(choice: Choice) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ranges of chosen rows: first rows in the whole, first rows among the chosen, lengths."""
    blocks = _blocks(choice).astype(np.int64)
    is_first = np.diff(blocks, prepend=-2) > 1
    begins = blocks[is_first] * choice.block_rows
    ends = (blocks[np.append(is_first[1:], True)] + 1) * choice.block_rows
    starts_R = np.maximum(begins, choice.start)
    lengths_R = np.minimum(ends, choice.stop) - starts_R
    return starts_R, np.cumsum(lengths_R) - lengths_R, lengths_R
