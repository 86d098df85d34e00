"""Reads Arrow's own files: ``.arrow`` and ``.feather``, in the file or the stream format.

A stream is a row of messages: the schema, then record batches, each behind a header that says how
long it is and how many rows it holds. A file also has a footer, which holds the schema and says
where the batches lie. The headers are read once. A read takes the bytes of one batch by position
and has pyarrow decode the chosen columns, compressed by LZ4, Zstandard or not.

pyarrow's reader of files was rejected for rows: it tells the rows of a batch only after it has read
all of it, and it does not take the stream format, in which Hugging Face's datasets are stored. So
was a memory map, which ends the process where a file is truncated under it
(`streamkm.sources.rowfile`). Walking the messages of a file was rejected too: polars writes files
without a message for the schema.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from itertools import islice, zip_longest
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa

from streamkm.sources.base import RowRange
from streamkm.sources.ids import ID_BATCH_ROWS
from streamkm.sources.parquet import ParquetSource
from streamkm.sources.rowfile import stream_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from streamkm.sources.rowfile import ByteFile

__all__ = ["ArrowSource"]

#: Begins a file, padded to 8 bytes, and ends it. The stream format has neither.
MAGIC = b"ARROW1"
#: Begins a file of the format before: Feather 1.
FEATHER_1 = b"FEA1"
#: Before the header of a message: a mark and the length of the header. 0 ends the messages.
_PREFIX = struct.Struct("<Ii")
_MARK = 0xFFFFFFFF
#: Bytes of a header, at most: more than the schema of a million columns takes.
MAX_HEADER_BYTES = 256 << 20
#: Ends a file: the length of the footer before it, and `MAGIC`.
_END = struct.Struct("<i6s")
#: Where a message of a file lies: its offset, the bytes of mark and header, those of the body.
_BLOCK = struct.Struct("<qi4xq")
#: The length of an array and its nulls.
_FIELD_NODE = struct.Struct("<qq")
#: Kinds of lists: what recognizes one, and what makes one of a field.
_LISTS = {
    pa.types.is_list: pa.list_,
    pa.types.is_large_list: pa.large_list,
    pa.types.is_list_view: pa.list_view,
    pa.types.is_large_list_view: pa.large_list_view,
}
#: Kinds of message that matter here, by their number in the header.
_SCHEMA, _BATCH = 1, 3


class ArrowSource(ParquetSource):
    """Rows of an Arrow file; a record batch is a block. Parameters as for `ParquetSource`."""

    kind, group = "Arrow", "record batch"

    def _reader(self, metadata: _Index | None = None) -> _Reader:
        return _Reader(self._file, metadata or _index(self._file))

    def _batches_of(self, groups: range, columns: list[str]) -> Iterator[pa.RecordBatch]:
        index: _Index = self._metadata
        if any(pa.types.is_dictionary(index.schema.field(column).type) for column in columns):
            tables = _decoded(self._file, index, groups, columns)
        else:
            file = self._reader(index)
            tables = (file.read_row_group(group, columns=columns) for group in groups)
        for table in tables:
            yield from table.to_batches(max_chunksize=ID_BATCH_ROWS)

    def _known_nulls(self, *, is_whole: bool) -> dict[str, int]:  # noqa: ARG002  no cost to save
        """The nulls of the columns that have some; every batch counts them."""
        counts = {name: self._metadata.nulls_of(name) for name in self._columns}
        return {name: count for name, count in counts.items() if count}

    def _scratch_bytes(self, stored: int, rows: int, row_bytes: int, n_features: int) -> int:
        """Bytes that reading the largest batch takes: all columns, and the chosen decoded."""
        return super()._scratch_bytes(0, rows, row_bytes, n_features) + stored


class _Batch(NamedTuple):
    """Where a record batch lies."""

    offset: int
    """Of the mark before its header."""
    total_byte_size: int
    """Bytes of mark, header and body."""
    num_rows: int


@dataclass(frozen=True)
class _Index:
    """All batches of a file, under the names of Parquet's metadata."""

    schema: pa.Schema
    batches: tuple[_Batch, ...]
    nulls: tuple[int, ...]
    """The nulls of each array in all batches: a column, the arrays within it, the next column."""
    is_stream: bool
    """Whether the file is in the stream format."""

    @property
    def num_rows(self) -> int:
        return sum(batch.num_rows for batch in self.batches)

    def nulls_of(self, name: str) -> int:
        """The nulls of a column, and of the lists in it."""
        at = 0
        for field in self.schema:
            size = _n_arrays(field.type)
            if field.name == name:
                outer, *inner = self.nulls[at : at + size] or (0,)
                if pa.types.is_fixed_size_list(field.type):
                    # A null takes the space of a list, whose elements are nulls, too.
                    inner = [max(0, sum(inner) - outer * field.type.list_size)]
                return outer + sum(inner)
            at += size
        return 0

    @property
    def num_row_groups(self) -> int:
        return len(self.batches)

    def row_group(self, index: int) -> _Batch:
        return self.batches[index]


class _Reader:
    """Reads batches of an Arrow file, under the names of `pyarrow.parquet.ParquetFile`."""

    def __init__(self, file: ByteFile, index: _Index) -> None:
        self._file = file
        self.metadata = index
        self.schema_arrow = index.schema

    def __enter__(self) -> _Reader:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def read_row_group(
        self, index: int, *, columns: Sequence[str], use_threads: bool = False
    ) -> pa.Table:
        """The chosen columns of a batch."""
        batch = self.metadata.batches[index]
        schema = pa.schema([field.with_type(_stored(field.type)) for field in self.schema_arrow])
        head = np.frombuffer(schema.serialize(), np.uint8)
        whole = np.empty(len(head) + batch.total_byte_size, np.uint8)
        whole[: len(head)] = head
        self._file.read_into(whole[len(head) :], batch.offset, RowRange(0, 0))
        options = pa.ipc.IpcReadOptions(
            included_fields=[schema.get_field_index(name) for name in columns],
            use_threads=use_threads,
        )
        with pa.ipc.open_stream(pa.py_buffer(whole), options=options) as stream:
            table = stream.read_all()
        # A damaged batch may hold offsets that lead outside of it.
        table.validate(full=True)
        return table

    def iter_batches(
        self, *, batch_size: int, columns: Sequence[str], use_threads: bool = False
    ) -> Iterator[pa.Table]:
        """All rows, at most `batch_size` at a time."""
        for index, batch in enumerate(self.metadata.batches):
            table = self.read_row_group(index, columns=columns, use_threads=use_threads)
            for start in range(0, batch.num_rows, batch_size):
                yield table.slice(start, batch_size)


def _decoded(
    file: ByteFile, index: _Index, groups: range, columns: list[str]
) -> Iterator[pa.Table]:
    """Columns of `groups` with their dictionaries, which lie in messages of their own."""
    options = pa.ipc.IpcReadOptions(
        included_fields=[index.schema.get_field_index(column) for column in columns],
        use_threads=False,
    )
    place = pa.PythonFile(stream_of(file), "r")
    if index.is_stream:
        # A stream may replace a dictionary between two batches: the batches before `groups` are
        # read, too.
        with pa.ipc.open_stream(place, options=options) as stream:
            for batch in islice(stream, groups.start, groups.stop):
                yield _validated(batch)
    else:
        with pa.ipc.open_file(place, options=options) as reader:
            for group in groups:
                yield _validated(reader.get_batch(group))


def _validated(batch: pa.RecordBatch) -> pa.Table:
    # A damaged batch may hold offsets, or numbers of entries, that lead outside of it.
    batch.validate(full=True)
    return pa.Table.from_batches([batch])


def _stored(kind: pa.DataType) -> pa.DataType:
    """The type of what a batch itself stores: of a dictionary, the numbers of its entries."""
    if pa.types.is_dictionary(kind):
        return kind.index_type
    if isinstance(kind, pa.BaseExtensionType):
        return _stored(kind.storage_type)
    inner = [kind.field(i).with_type(_stored(kind.field(i).type)) for i in range(kind.num_fields)]
    if pa.types.is_struct(kind):
        return pa.struct(inner)
    if pa.types.is_map(kind):
        # What a map stores is a list of pairs.
        return pa.list_(inner[0])
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(inner[0], kind.list_size)
    for test, new in _LISTS.items():
        if test(kind):
            return new(inner[0])
    return kind


def _n_arrays(kind: pa.DataType) -> int:
    """Arrays that a column of this type is stored in, one within the other."""
    if isinstance(kind, pa.BaseExtensionType):
        return _n_arrays(kind.storage_type)
    return 1 + sum(_n_arrays(kind.field(i).type) for i in range(kind.num_fields))


def _index(file: ByteFile) -> _Index:
    """Read the headers of all messages."""
    head = _bytes(file, 0, min(8, file.size))
    if head[:4] == FEATHER_1:
        raise pa.ArrowInvalid(
            "it is of Feather's first version; read it by pandas.read_feather, write it again"
        )
    is_stream = head[:6] != MAGIC
    schema: pa.Schema | None = None
    batches: list[_Batch] = []
    nulls: list[int] = []
    try:
        if is_stream:
            messages = _messages(file)
        else:
            footer = _footer(file)
            schema, messages = _schema(footer), _listed(file, footer)
        for offset, size, header in messages:
            kind = header.number("B", header.root, 1)
            if kind == _SCHEMA and schema is None:
                schema = pa.ipc.read_schema(pa.py_buffer(_bytes(file, offset, size)))
            elif kind == _BATCH:
                table = header.table(header.root, 2)
                batches.append(_Batch(offset, size, header.number("q", table, 0)))
                counts = [nulls for _, nulls in header.structs(_FIELD_NODE, table, 1)]
                nulls = [sum(both) for both in zip_longest(nulls, counts, fillvalue=0)]
    except struct.error as error:
        raise pa.ArrowInvalid(f"the header of a message is damaged: {error}") from error
    if schema is None:
        raise pa.ArrowInvalid("it has no schema, so it is no Arrow file")
    return _Index(schema, tuple(batches), tuple(nulls), is_stream)


def _footer(file: ByteFile) -> bytes:
    """What lies before the end of a file: its schema, and where the messages lie."""
    if file.size < 2 * 8 + _END.size:
        raise pa.ArrowInvalid("the file is truncated: its end is missing")
    length, magic = _END.unpack(_bytes(file, file.size - _END.size, _END.size))
    if magic != MAGIC:
        raise pa.ArrowInvalid("the file is truncated: its end is missing")
    if not 0 < length <= min(MAX_HEADER_BYTES, file.size - 8 - _END.size):
        raise pa.ArrowInvalid(f"the footer takes {length} bytes")
    return _bytes(file, file.size - _END.size - length, length)


def _schema(footer: bytes) -> pa.Schema:
    """The schema in a footer, by pyarrow's reader: of a file that holds nothing else."""
    whole = MAGIC.ljust(8, b"\0") + footer + _END.pack(len(footer), MAGIC)
    return pa.ipc.open_file(pa.py_buffer(whole)).schema


def _listed(file: ByteFile, footer: bytes) -> Iterator[tuple[int, int, _Header]]:
    """Offset, bytes with the body, and header of each batch that a footer lists."""
    fields = _Header(footer)
    for offset, head_bytes, body_bytes in fields.structs(_BLOCK, fields.root, 3):
        size = head_bytes + body_bytes
        if (
            not _PREFIX.size < head_bytes <= MAX_HEADER_BYTES
            or min(offset, body_bytes) < 0
            or offset + size > file.size
        ):
            raise pa.ArrowInvalid(
                f"the footer has a batch of {size} bytes at byte {offset} of {file.size}"
            )
        head = _bytes(file, offset, head_bytes)
        if _PREFIX.unpack_from(head)[0] != _MARK:
            raise pa.ArrowInvalid(f"there is no message at byte {offset}")
        yield offset, size, _Header(head[_PREFIX.size :])


def _messages(file: ByteFile) -> Iterator[tuple[int, int, _Header]]:
    """Offset, bytes with the body, and header of each message of a stream."""
    at, end = 0, file.size
    while at + _PREFIX.size <= end:
        mark, length = _PREFIX.unpack(_bytes(file, at, _PREFIX.size))
        if mark != _MARK:
            raise pa.ArrowInvalid(f"there is no message at byte {at}")
        if length == 0:
            return
        if not 0 < length <= min(MAX_HEADER_BYTES, end - at - _PREFIX.size):
            raise pa.ArrowInvalid(f"the message at byte {at} has a header of {length} bytes")
        header = _Header(_bytes(file, at + _PREFIX.size, length))
        body = header.number("q", header.root, 3)
        size = _PREFIX.size + length + body
        if body < 0 or at + size > end:
            raise pa.ArrowInvalid(
                f"the file is truncated: the message at byte {at} takes {size} bytes"
            )
        yield at, size, header
        at += size
    if 0 < at < end:
        raise pa.ArrowInvalid(f"the file is truncated at byte {end}")


class _Header:
    """The header of a message, a flatbuffer: tables of fields at offsets that a table lists."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self.root = self._get("I", 0)

    def number(self, form: str, table: int, index: int) -> int:
        """Field `index` of the table at `table`, of a type of `struct`; 0 if it is left out."""
        at = self._field(table, index)
        return self._get(form, at) if at else 0

    def table(self, table: int, index: int) -> int:
        """Position of the table that field `index` of the table at `table` leads to."""
        at = self._field(table, index)
        if not at:
            raise struct.error("a table is left out")
        return at + self._get("I", at)

    def structs(self, form: struct.Struct, table: int, index: int) -> list[tuple[int, ...]]:
        """The structs that field `index` of the table lists, each of the numbers of `form`."""
        at = self._field(table, index)
        if not at:
            return []
        start = at + self._get("I", at)
        count = self._get("I", start)
        content = self._content[start + 4 : start + 4 + form.size * count]
        if len(content) < form.size * count:
            raise struct.error("a list ends after the header")
        return list(form.iter_unpack(content))

    def _field(self, table: int, index: int) -> int:
        listing = table - self._get("i", table)
        slot = 4 + 2 * index
        place = self._get("H", listing + slot) if slot < self._get("H", listing) else 0
        return table + place if place else 0

    def _get(self, form: str, at: int) -> int:
        if at < 0:
            raise struct.error("a position before the header")
        value: Any = struct.unpack_from(f"<{form}", self._content, at)[0]
        return int(value)


def _bytes(file: ByteFile, offset: int, size: int) -> bytes:
    out = np.empty(size, np.uint8)
    file.read_into(out, offset, RowRange(0, 0))
    return out.tobytes()
