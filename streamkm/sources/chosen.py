"""A view of some rows of a source, which a `Choice` names.

What comes after sees a source of fewer rows and need not know. Its spec says what was chosen, so
that a run records it, and errors give a row the number that it has in the whole source.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from streamkm.errors import Option, SourceError
from streamkm.sources.base import Described, RowRange
from streamkm.sources.choice import Choice
from streamkm.sources.ids import ids_of
from streamkm.sources.layout import check_read
from streamkm.sources.names import in_order
from streamkm.sources.within import would_take

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import pyarrow as pa

    from streamkm.sources.base import ArraySpec, Source
    from streamkm.sources.ids import IdColumn

__all__ = ["ChosenRows", "Span", "choose", "span_of"]

#: The first row and the row after the last, as NumPy takes them in a slice; None for an end.
Span = tuple[int | None, int | None]


def span_of(given: Any) -> Span:
    """The span that ``A:B``, a slice or a pair of numbers names.

    Raises
    ------
    SourceError
        If it is none of these.
    """
    ends: tuple[Any, ...]
    if isinstance(given, str) and (found := re.fullmatch(r"(-?\d+)?:(-?\d+)?", given.strip())):
        ends = tuple(end and int(end) for end in found.groups())
    elif isinstance(given, slice):
        ends = (given.start, given.stop) if given.step in (None, 1) else (given,)
    else:
        ends = tuple(given) if isinstance(given, list | tuple) else (given,)
    are_numbers = all(
        end is None or (isinstance(end, int | np.integer) and not isinstance(end, bool))
        for end in ends
    )
    if len(ends) != 2 or not are_numbers:
        raise SourceError(
            Option("row_range"),
            f" must be A:B, the first row and the row after the last, such as 0:1000000 or -5:, "
            f"not {given!r}",
        )
    start, stop = (None if end is None else int(end) for end in ends)
    return start, stop


def choose(
    source: Source,
    row_range: Span | None = None,
    sample: float | None = None,
    sample_seed: int | None = None,
) -> Source:
    """`source`, or a view of the rows of `row_range` and of a share `sample` of its blocks.

    Raises
    ------
    SourceError
        If there are no rows from the first to the last, or one of them lies beyond an end, or if
        a seed has no sample; `source` is closed then.
    """
    if row_range is None and sample is None and sample_seed is None:
        return source
    spec, share = source.spec, sample or 1.0
    try:
        if spec.choice is not None:
            raise SourceError(f"{source.name}: its rows are chosen already: {spec.choice}")
        if sample is None and sample_seed is not None:
            raise SourceError(
                Option("sample_seed", sample_seed),
                " draws the blocks of a sample: give its share with ",
                Option("sample"),
            )
        start, stop = _resolved(row_range or (None, None), source)
    except SourceError:
        source.close()
        raise
    choice = Choice(spec.n_rows, start, stop, spec.block_rows, share, sample_seed or 0)
    is_whole = stop - start == spec.n_rows and share == 1
    return source if is_whole else ChosenRows(source, choice)


def _resolved(span: Span, source: Source) -> tuple[int, int]:
    """The rows of `span`: numbers below 0 count from the end, as in NumPy."""
    n_rows = source.spec.n_rows
    start, stop = span
    shown = f"{'' if start is None else start}:{'' if stop is None else stop}"
    ends = [
        default if end is None else end + n_rows * (end < 0)
        for end, default in ((start, 0), (stop, n_rows))
    ]
    first, last = ends
    if not all(0 <= end <= n_rows for end in ends):
        raise SourceError(
            f"{source.name}: ",
            Option("row_range", shown),
            f" goes beyond its {n_rows:,} rows; give numbers from 0 to {n_rows}, or from "
            f"-{n_rows} to -1 to count from the end",
        )
    if first >= last:
        raise SourceError(
            f"{source.name}: ",
            Option("row_range", shown),
            f" holds no row of its {n_rows:,}: the first, {first}, must be less than the row after "
            f"the last, {last}",
        )
    return first, last


class ChosenRows(Described):
    """A view of the rows of `source` that `choice` names; closed with it."""

    def __init__(self, source: Source, choice: Choice) -> None:
        self._source, self._choice = source, choice
        spec, n_rows = source.spec, choice.n_rows
        self._spec = replace(
            spec,
            n_rows=n_rows,
            block_rows=min(spec.block_rows, n_rows),
            piece_rows=min(spec.piece_rows, n_rows),
            # A block of rows that have not kept their places lies in two of the source.
            scratch_bytes=spec.scratch_bytes * (1 if choice.is_aligned else 2),
            layout=f"{spec.layout}; {choice}",
            grid=None,
            file="",
            choice=choice,
        )
        self._closed = False

    @property
    def name(self) -> str:
        """Where the rows come from."""
        return self._source.name

    @property
    def spec(self) -> ArraySpec:
        """That of the source, with fewer rows."""
        return self._spec

    def read(self, rows: RowRange, out: np.ndarray) -> None:
        """Fill `out` with `rows`; see `Source.read`."""
        check_read(self.name, self._spec, rows, out, closed=self._closed)
        done = 0
        for start, stop in self._choice.within(rows.start, rows.stop):
            part = RowRange(start, stop)
            self._source.read(part, out[done : done + len(part)])
            done += len(part)

    def ids(self) -> IdColumn | None:
        """The ids of the chosen rows, if the source has any."""
        ids = ids_of(self._source)
        return None if ids is None else _ChosenIds(ids, self._choice)

    def in_order(self, names: tuple[str, ...]) -> Source:
        """A view with the features in the order of `names`."""
        return ChosenRows(in_order(self._source, names, self.name), self._choice)

    def fingerprint(self) -> str:
        """Hex digest of the source's fingerprint and the choice."""
        return hashlib.sha256(f"{self._choice!r} {self._source.fingerprint()}".encode()).hexdigest()

    def would_take(self, path: Path) -> bool:
        """Whether what is written at `path` would become part of the source."""
        return would_take(self._source, path)

    def notes(self) -> list[str]:
        """The notes of the source, and one if blocks are read twice."""
        spec, choice = self._source.spec, self._choice
        notes = self._source.notes()
        if not spec.piece_rows and choice.start % spec.block_rows:
            block = choice.start // spec.block_rows * spec.block_rows
            notes.append(
                f"{self.name}: the first row chosen, {choice.start:,}, begins no block of "
                f"{spec.block_rows:,} rows, so that each is read in two parts; from row {block:,} "
                "on they would be read at once"
            )
        return notes

    def close(self) -> None:
        """Close the source."""
        self._closed = True
        self._source.close()


class _ChosenIds:
    """The ids of chosen rows."""

    def __init__(self, ids: IdColumn, choice: Choice) -> None:
        self.column, self.kind = ids.column, ids.kind
        self._ids, self._choice = ids, choice

    def batches(self, start_row: int = 0) -> Iterator[pa.Array]:
        """See `IdColumn`."""
        for start, stop in self._choice.within(start_row, self._choice.n_rows):
            left = stop - start
            for batch in self._ids.batches(start):
                yield batch[:left]
                left -= min(len(batch), left)
                if not left:
                    break
