"""Ids: a column of a source that names its rows, and is no feature.

Row numbers are lost as soon as somebody sorts or filters, and a table of ids and clusters is what
people join. Ids are read in order, a batch at a time, beside the rows; they never lie in memory
as a whole.
"""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from streamkm.errors import SourceError
from streamkm.text import counted, format_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import pyarrow as pa

    from streamkm.sources.base import Source

__all__ = ["ID_BATCH_ROWS", "IdColumn", "JoinedIds", "id_notes", "id_row_bytes", "ids_of"]

#: Ids that are read at once, at most.
ID_BATCH_ROWS = 1 << 16
#: Bytes of ids that are held to find out whether some repeat. The table of distinct ones takes
#: about twice as much beside them.
CHECKED_BYTES = 128 << 20


class IdColumn(Protocol):
    """The ids of all rows of a source."""

    column: str
    """Name of the column."""
    kind: pa.DataType
    """Type of the ids; no dictionary."""

    def batches(self, start_row: int = 0) -> Iterator[pa.Array]:
        """The ids from `start_row` on, in arrays of `ID_BATCH_ROWS` at most.

        Raises
        ------
        ReadError
            If they cannot be read.
        """


@runtime_checkable
class _WithIds(Protocol):
    """A source that may have ids."""

    def ids(self) -> IdColumn | None:
        """Its ids, if a column of them was named."""


def ids_of(source: Source) -> IdColumn | None:
    """The ids of `source`; None if none were asked for when it was opened."""
    return source.ids() if isinstance(source, _WithIds) else None


class JoinedIds:
    """The ids of several sources, one after the other.

    Raises
    ------
    SourceError
        If their types differ.
    """

    def __init__(self, parts: Sequence[tuple[Source, int]]) -> None:
        """`parts` are the sources that have ids, each with the number of its first row."""
        self._parts = [(source, first, _ids(source)) for source, first in parts]
        source, _, ids = self._parts[0]
        self.column, self.kind = ids.column, ids.kind
        for other, _, more in self._parts[1:]:
            if more.kind == self.kind:
                continue
            if _widest(more.kind) != _widest(self.kind):
                raise SourceError(
                    f"shards must agree in the type of their ids: {source.name} has {self.kind}, "
                    f"{other.name} has {more.kind}; convert one of them"
                )
            self.kind = _widest(self.kind)

    def batches(self, start_row: int = 0) -> Iterator[pa.Array]:
        """See `IdColumn`."""
        arrays = chain.from_iterable(
            ids.batches(max(start_row - first, 0))
            for source, first, ids in self._parts
            if start_row < first + source.spec.n_rows
        )
        return (ids if ids.type == self.kind else ids.cast(self.kind) for ids in arrays)


def _widest(kind: pa.DataType) -> pa.DataType:
    """The type that holds all texts, or all bytes, if `kind` is one for some; else `kind`.

    Texts are of one type in pyarrow and of another in pandas 3 and polars.
    """
    import pyarrow as pa

    return {pa.string(): pa.large_string(), pa.binary(): pa.large_binary()}.get(kind, kind)


def _ids(source: Source) -> IdColumn:
    ids = ids_of(source)
    if ids is None:
        raise SourceError(f"{source.name}: has no ids, other shards have; take it out")
    return ids


def id_row_bytes(ids: IdColumn) -> int:
    """Bytes that one id takes in memory, by the first batch."""
    first = next(ids.batches())
    return -(-int(first.nbytes) // len(first))


def id_notes(ids: IdColumn, max_bytes: int | None = None) -> list[str]:
    """Notes on ids that are null or repeat, after all have been read once.

    Parameters
    ----------
    ids : IdColumn
        The ids of a source.
    max_bytes : int, optional
        Memory for the check, if it must be less than it takes by itself.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    limit = CHECKED_BYTES if max_bytes is None else min(CHECKED_BYTES, max_bytes // 3)
    n_nulls, n_bytes = 0, 0
    held: list[pa.Array] = []
    for batch in ids.batches():
        stored = batch.storage if isinstance(batch, pa.ExtensionArray) else batch
        n_nulls += stored.null_count
        n_bytes += stored.nbytes
        if n_bytes <= limit:
            held.append(stored)
        else:
            held.clear()
    notes = []
    if n_nulls:
        notes.append(f"{counted(n_nulls, 'row')} with a null id in column {ids.column!r}, kept so")
    if n_bytes > limit:
        notes.append(
            f"whether ids of column {ids.column!r} repeat was not checked: they take "
            f"{format_bytes(n_bytes)}, {format_bytes(limit)} are checked"
        )
    elif n_repeats := _n_valid(held) - pc.count_distinct(pa.chunked_array(held)).as_py():
        notes.append(
            f"{counted(n_repeats, 'row')} with an id in column {ids.column!r} that an earlier row "
            "has: a join by it will not be one to one"
        )
    return notes


def _n_valid(arrays: Sequence[pa.Array]) -> int:
    return sum(len(array) - array.null_count for array in arrays)
