"""Columns of a Parquet or Arrow file that are no features: the one that names its rows, others."""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from streamkm.errors import Option, ReadError, SourceError
from streamkm.sources.base import RowRange
from streamkm.sources.layout import one_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from streamkm.sources.rowfile import ByteFile

__all__ = ["NAMES_SHOWN", "ParquetBeside", "ParquetIds", "id_field", "listed"]

#: Columns that an error lists, at most.
NAMES_SHOWN = 8


class _InOrder:
    """Columns of a Parquet or Arrow file that are read from the first row to the last."""

    def __init__(
        self,
        file: ByteFile,
        sizes: Sequence[int],
        read: Callable[[range, list[str]], Iterator[pa.RecordBatch]],
    ) -> None:
        """`sizes` are the rows of the groups, `read` reads columns of some of them."""
        self._file, self._sizes, self._read = file, sizes, read

    def _batches(self, schema: pa.Schema, start_row: int) -> Iterator[pa.RecordBatch]:
        """The columns of `schema` from `start_row` on, as its types."""
        ends = list(accumulate(self._sizes))
        first = bisect_right(ends, start_row)
        skipped = start_row - (ends[first] - self._sizes[first])
        rows = RowRange(start_row, ends[-1])
        self._file.check_unchanged(rows)
        try:
            for batch in self._read(range(first, len(ends)), schema.names):
                found = batch[skipped:]
                skipped = max(skipped - len(batch), 0)
                if len(found):
                    arrays = [_cast(found.column(field.name), field.type) for field in schema]
                    yield pa.RecordBatch.from_arrays(arrays, schema=schema)
        except (pa.ArrowException, OSError, RuntimeError, UnicodeDecodeError) as error:
            raise ReadError(
                f"{self._file.path}: {', '.join(schema.names)} of {rows} cannot be read: "
                f"{one_line(error)}; the file is corrupt, truncated or unreadable"
            ) from error


class ParquetIds(_InOrder):
    """The column of a Parquet or Arrow file that names its rows; see `IdColumn`."""

    def __init__(self, field: pa.Field, *reading: Any) -> None:
        """`reading` are the parameters of `_InOrder`."""
        super().__init__(*reading)
        self.column = field.name
        self.kind = _plain(field.type)

    def batches(self, start_row: int = 0) -> Iterator[pa.Array]:
        """See `IdColumn`."""
        schema = pa.schema([pa.field(self.column, self.kind)])
        return (batch.column(0) for batch in self._batches(schema, start_row))


class ParquetBeside(_InOrder):
    """The columns of a Parquet or Arrow file that are no features; see `BesideColumns`."""

    def __init__(self, fields: Sequence[pa.Field], list_column: str, *reading: Any) -> None:
        """`reading` are the parameters of `_InOrder`."""
        super().__init__(*reading)
        self.schema = pa.schema([pa.field(field.name, _plain(field.type)) for field in fields])
        self.list_column = list_column

    def batches(self, start_row: int = 0) -> Iterator[pa.RecordBatch]:
        """See `BesideColumns`."""
        return self._batches(self.schema, start_row)


def _cast(ids: pa.Array, kind: pa.DataType) -> pa.Array:
    if ids.type == kind:
        return ids
    if pa.types.is_dictionary(ids.type):
        ids = pa.DictionaryArray.from_arrays(ids.indices, _cast(ids.dictionary, kind))
    return ids.cast(kind)


def id_field(
    schema: pa.Schema, columns: Sequence[str] | None, id_column: str | None, name: str
) -> pa.Field | None:
    """The field of `id_column`; `SourceError` if it can hold no ids, or is a feature too."""
    if id_column is None:
        return None
    found = [field for field in schema if field.name == id_column]
    if not found:
        raise SourceError(f"{name}: there is no column {id_column!r}; {listed(schema)}")
    if columns is not None and id_column in columns:
        raise SourceError(
            f"{name}: column {id_column!r} cannot be both ",
            Option("id_column"),
            " and one of ",
            Option("columns"),
            "; leave one of them out",
        )
    kind = found[0].type
    plain = _plain(kind)
    if not _can_name(plain.storage_type if isinstance(plain, pa.BaseExtensionType) else plain):
        raise SourceError(
            f"{name}: column {id_column!r} holds {kind}, ids are texts, bytes, integers or times; "
            f"choose another; {listed(schema)}"
        )
    return found[0]


def _plain(kind: pa.DataType) -> pa.DataType:
    """The type that ids are read as: of a dictionary's entries, and no views.

    Few functions of pyarrow take views, which polars stores, and a slice of them counts the bytes
    of all.
    """
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    if pa.types.is_string_view(kind):
        return pa.large_string()
    return pa.large_binary() if pa.types.is_binary_view(kind) else kind


def _can_name(kind: pa.DataType) -> bool:
    tests = (
        pa.types.is_integer, pa.types.is_string, pa.types.is_large_string,
        pa.types.is_binary, pa.types.is_large_binary,
        pa.types.is_fixed_size_binary, pa.types.is_temporal, pa.types.is_decimal,
    )  # fmt: skip
    return any(test(kind) for test in tests) and not pa.types.is_interval(kind)


def listed(schema: pa.Schema) -> str:
    """A phrase that lists the columns of `schema`, the first few of many."""
    columns = [f"{field.name} {field.type}" for field in schema]
    more = ", ..." if len(columns) > NAMES_SHOWN else ""
    return "there are " + ", ".join(columns[:NAMES_SHOWN]) + more
