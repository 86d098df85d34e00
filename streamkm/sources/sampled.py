"""Copies chosen rows of a source while others read it, so that they need no read of their own."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from streamkm.sources.base import Described, RowRange
from streamkm.sources.layout import check_read
from streamkm.sources.within import would_take

if TYPE_CHECKING:
    from pathlib import Path

    from streamkm.sources.base import ArraySpec, Source

__all__ = ["SampledRows"]


class SampledRows(Described):
    """A view of `source` that copies some of its rows when they are first read.

    Closing the view leaves the source open, and the copies to whoever asked for them.
    """

    def __init__(self, source: Source, rows_S: np.ndarray) -> None:
        """`rows_S` are numbers of rows, ascending, none twice."""
        self._source, self._rows_S, self._closed = source, rows_S, False
        self._x_SD = np.empty((len(rows_S), source.spec.n_features), source.spec.storage)
        self._is_there_S = np.zeros(len(rows_S), bool)

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
        self._source.read(rows, out)
        chosen = slice(*np.searchsorted(self._rows_S, (rows.start, rows.stop)).tolist())
        # Several threads may read the same rows: each copies the same numbers.
        if not self._is_there_S[chosen].all():
            self._x_SD[chosen] = out[self._rows_S[chosen] - rows.start]
            self._is_there_S[chosen] = True

    def copied(self) -> tuple[np.ndarray, np.ndarray]:
        """Places in the sample of the rows that were read, and these rows."""
        places = np.flatnonzero(self._is_there_S)
        return places, self._x_SD[places]

    def take_(self, places: np.ndarray, rows: np.ndarray) -> None:
        """Take rows of the sample that another process has `copied`."""
        self._x_SD[places] = rows
        self._is_there_S[places] = True

    def sample(self) -> Source:
        """The chosen rows as a source of their own; reads those that nobody has read."""
        missing_S = self._rows_S[~self._is_there_S]
        block_rows = self.spec.block_rows
        for block in np.unique(missing_S // block_rows):
            of_block = missing_S[missing_S // block_rows == block]
            span = RowRange(int(of_block[0]), int(of_block[-1]) + 1)
            out = np.empty((len(span), self.spec.n_features), self.spec.storage)
            self.read(span, out)
        return _Copies(self._source, self._x_SD)

    def fingerprint(self) -> str:
        """That of the source."""
        return self._source.fingerprint()

    def would_take(self, path: Path) -> bool:
        """Whether what is written at `path` would become part of the source."""
        return would_take(self._source, path)

    def notes(self) -> list[str]:
        """The notes of the source."""
        return self._source.notes()

    def close(self) -> None:
        """See `Source.close`; the source stays open."""
        self._closed = True


class _Copies(Described):
    """Copies of rows of a source, as a source that reads as it does."""

    def __init__(self, source: Source, x_SD: np.ndarray) -> None:
        self._x_SD, self._source, self._closed = x_SD, source, False
        self.name = f"{len(x_SD):,} rows of {source.name}"
        self.spec = replace(
            source.spec, n_rows=len(x_SD), block_rows=min(source.spec.block_rows, len(x_SD)),
            layout="rows in memory", scratch_bytes=0, piece_rows=0, is_remote=False, grid=None,
            file="",
        )  # fmt: skip

    def read(self, rows: RowRange, out: np.ndarray) -> None:
        """Fill `out` with `rows`; see `Source.read`."""
        check_read(self.name, self.spec, rows, out, closed=self._closed)
        np.copyto(out, self._x_SD[rows.start : rows.stop])

    def fingerprint(self) -> str:
        """That of the source."""
        return self._source.fingerprint()

    def notes(self) -> list[str]:
        """None."""
        return []

    def close(self) -> None:
        """See `Source.close`."""
        self._closed = True
