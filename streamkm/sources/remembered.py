"""Keeps whatever is read of a source in memory, first come first kept, as far as it fits.

For fits side by side that read the same rows: blocks, and the pieces of blocks of a sample. Nothing
is given up for what comes later: passes go round the array, and a cache of the latest rows would
have dropped each row just before it is wanted again. `KeptRows` knows beforehand which blocks stay,
so that whole windows are passed over; pieces are nothing to it.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import numpy as np

from streamkm.sources.base import Described, RowRange
from streamkm.sources.layout import check_read
from streamkm.sources.within import would_take

if TYPE_CHECKING:
    from pathlib import Path

    from streamkm.sources.base import ArraySpec, Source

__all__ = ["BESIDE_BLOCK", "RememberedRows"]

#: Bytes that Python takes for each block that is kept, beside its rows.
BESIDE_BLOCK = 320


class RememberedRows(Described):
    """A view of `source` that reads each block once, up to `limit` bytes of blocks.

    Closing the view frees the rows, and leaves the source open.
    """

    def __init__(self, source: Source, limit: int) -> None:
        self._source, self._left = source, limit
        self._held: dict[RowRange, np.ndarray] = {}
        self._lock = threading.Lock()
        self._fingerprint: str | None = None
        self._closed = False
        self.bytes_read = 0
        """Bytes that were asked of the source."""

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
        # Of a block, or of the piece of one that a sample has read.
        block = self._block_of(rows)
        for whole in (block, rows):
            if whole is not None and (held := self._held.get(whole)) is not None:
                np.copyto(out, held[rows.start - whole.start : rows.stop - whole.start])
                return
        self._source.read(rows, out)
        with self._lock:
            self.bytes_read += out.nbytes
            # Single rows are not worth their own array.
            if rows in self._held or len(rows) == 1 or out.nbytes > self._left:
                return
            self._left -= out.nbytes
        self._held[rows] = out.copy()

    def _block_of(self, rows: RowRange) -> RowRange | None:
        """The block that `rows` lie in; None if they lie in several."""
        n_rows, block_rows = self.spec.n_rows, self.spec.block_rows
        start = rows.start // block_rows * block_rows
        stop = min(start + block_rows, n_rows)
        return RowRange(start, stop) if rows.stop <= stop else None

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
        self._held.clear()
