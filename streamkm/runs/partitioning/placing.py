"""Places: which position of the output each row goes to.

Rows of one key stand together, in the order in which they come. Keys are labels, or digits of what
is sorted by.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch

from streamkm.distributed.world import ALONE
from streamkm.sources.base import RowRange

if TYPE_CHECKING:
    from collections.abc import Callable

    from streamkm.distributed.world import World
    from streamkm.sources.base import Source

__all__ = ["SCAN_ROWS", "ByKey", "Placing", "Stored", "offsets_of", "stable_argsort"]

#: Rows whose keys or places are worked out at a time.
SCAN_ROWS = 1 << 17
#: Bits of a digit: NumPy sorts numbers of 16 bits by radix, in linear time.
_DIGIT_BITS = 16


class Placing(Protocol):
    """The place of every row; -1 for one that is not in the output."""

    n_rows: int
    """Rows that are placed."""

    def places(self, rows: RowRange) -> np.ndarray:
        """The places of `rows`, int64; the first call begins at row 0, each next where one ended.

        Rows without a place may be passed over.
        """


class ByKey:
    """Places by key: the first row of key k goes to ``starts_K[k]``, each next one behind it."""

    def __init__(
        self, n_rows: int, keys: Callable[[RowRange], np.ndarray], starts_K: np.ndarray
    ) -> None:
        """`keys` gives those of a range, -1 for a row that is left out."""
        self.n_rows, self.keys = n_rows, keys
        self._next_K = starts_K.copy()

    def places(self, rows: RowRange) -> np.ndarray:
        """See `Placing`."""
        keys_B = self.keys(rows)
        places_B = np.full(len(keys_B), -1, np.int64)
        if int(keys_B.min(initial=0)) >= 0:
            kept = stable_argsort(keys_B)
        else:
            kept = np.flatnonzero(keys_B >= 0)
            kept = kept[stable_argsort(keys_B[kept])]
        sorted_B = keys_B[kept]
        firsts = np.flatnonzero(np.diff(sorted_B, prepend=-1))
        counts = np.diff(firsts, append=len(sorted_B))
        keys_U = sorted_B[firsts]
        places_B[kept] = np.arange(len(kept)) + np.repeat(self._next_K[keys_U] - firsts, counts)
        self._next_K[keys_U] += counts
        return places_B

    def after(self, passed: RowRange) -> np.ndarray:
        """Where the next row of each key goes after `passed`, which begins where one ended.

        Who takes rows of these places adds them to what is returned, in place of `places`.
        """
        for rows in passed.split(SCAN_ROWS):
            keys_B = self.keys(rows)
            self._next_K += np.bincount(keys_B[keys_B >= 0], minlength=len(self._next_K))
        return self._next_K


class Stored:
    """Places that a file lists."""

    def __init__(self, source: Source) -> None:
        """`source` has N rows of one int64."""
        self.n_rows, self._source = source.spec.n_rows, source

    def places(self, rows: RowRange) -> np.ndarray:
        """See `Placing`."""
        places_B1 = np.empty((len(rows), 1), np.int64)
        self._source.read(rows, places_B1)
        return places_B1[:, 0]


def offsets_of(
    n_rows: int, keys: Callable[[RowRange], np.ndarray], n_keys: int, world: World = ALONE
) -> np.ndarray:
    """Where the rows of each key begin, and after the last where they end; int64, K + 1 numbers.

    Each process of `world` counts a part of the rows: a collective.
    """
    offsets = np.zeros(n_keys + 1, np.int64)
    mine = world.part(n_rows)
    for rows in RowRange(mine.start, mine.stop).split(SCAN_ROWS):
        keys_B = keys(rows)
        offsets[1:] += np.bincount(keys_B[keys_B >= 0], minlength=n_keys)
    world.meet()  # To count may take a while.
    world.sum_(torch.from_numpy(offsets))
    np.cumsum(offsets, out=offsets)
    return offsets


def stable_argsort(keys_B: np.ndarray) -> np.ndarray:
    """The order that sorts whole numbers from 0 on; equal ones keep theirs."""
    most = int(keys_B.max(initial=0))
    order = np.argsort(keys_B.astype(np.uint16), kind="stable")
    for shift in range(_DIGIT_BITS, most.bit_length(), _DIGIT_BITS):
        digits = (keys_B >> shift).astype(np.uint16)
        order = order[np.argsort(digits[order], kind="stable")]
    return order
