"""Columns beside the features: what a table says of its rows, for outputs that carry it along.

Like ids they are read in order, a batch at a time, and never lie in memory as a whole.
"""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from streamkm.errors import ReadError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import pyarrow as pa

    from streamkm.sources.base import RowRange, Source

__all__ = ["BesideColumns", "BesideReader", "JoinedBeside", "beside_of", "beside_row_bytes"]


class BesideColumns(Protocol):
    """The columns of a table that are no features."""

    schema: pa.Schema
    """Their names and types, in the order of the table; no dictionaries."""
    list_column: str
    """The column of lists that the features are; empty if each is a column."""

    def batches(self, start_row: int = 0) -> Iterator[pa.RecordBatch]:
        """Their rows from `start_row` on.

        Raises
        ------
        ReadError
            If they cannot be read.
        """


@runtime_checkable
class _WithBeside(Protocol):
    """A source that may be a table."""

    def beside(self) -> BesideColumns | None:
        """Its columns that are no features, if it is a table."""


def beside_of(source: Source) -> BesideColumns | None:
    """The columns of `source` that are no features; None if it is no table."""
    return source.beside() if isinstance(source, _WithBeside) else None


class JoinedBeside:
    """The columns of several tables, one after the other: those that all have, of one type."""

    def __init__(self, parts: Sequence[tuple[BesideColumns, int, int]]) -> None:
        """`parts` are the columns of each, the number of its first row and how many it has."""
        import pyarrow as pa

        self._parts = parts
        first = parts[0][0]
        self.list_column = first.list_column
        fields = [
            field.remove_metadata()
            for field in first.schema
            if all(
                field.name in each.schema.names and each.schema.field(field.name).type == field.type
                for each, _, _ in parts
            )
        ]
        self.schema = pa.schema([field.with_nullable(True) for field in fields])  # noqa: FBT003

    def batches(self, start_row: int = 0) -> Iterator[pa.RecordBatch]:
        """See `BesideColumns`."""
        found = chain.from_iterable(
            each.batches(max(start_row - first, 0))
            for each, first, n_rows in self._parts
            if start_row < first + n_rows
        )
        return (batch.select(self.schema.names) for batch in found)


class BesideReader:
    """Reads columns for ranges of rows that follow each other, with gaps or without."""

    def __init__(self, columns: BesideColumns, start_row: int, name: str) -> None:
        """`name` is the source's, for errors."""
        self._columns, self._name = columns, name
        self._batches = columns.batches(start_row)
        self._left: pa.RecordBatch | None = None
        self._at = start_row

    def read(self, rows: RowRange) -> pa.Table:
        """The columns of `rows`, which begin where the last ones ended, or later."""
        import pyarrow as pa

        found: list[pa.RecordBatch] = []
        while self._at < rows.stop:
            batch = self._left if self._left is not None else next(self._batches, None)
            if batch is None:
                raise ReadError(
                    f"{self._name}: its columns end at row {self._at:,}, its features later; the "
                    "file is corrupt"
                )
            count = min(len(batch), rows.stop - self._at)
            skipped = min(max(rows.start - self._at, 0), count)
            found.append(batch[skipped:count])
            self._left = batch[count:] if len(batch) > count else None
            self._at += count
        bare = self._columns.schema.remove_metadata()
        arrays = [
            pa.chunked_array([batch.column(i) for batch in found], field.type)
            for i, field in enumerate(bare)
        ]
        return pa.Table.from_arrays(arrays, schema=bare)


def beside_row_bytes(columns: BesideColumns) -> int:
    """Bytes that the columns of one row take in memory, by the first batch."""
    first = next(columns.batches())
    return -(-int(first.nbytes) // max(len(first), 1))
