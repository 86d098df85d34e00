"""Outputs as Parquet tables: an id of each row, if the source has ids, and its values.

A Parquet file ends with its table of contents, so that nothing can be added to it after a crash. An
unfinished output is a stream of Arrow messages instead, each a chunk of rows and ids: it grows at
its end, and what follows the last durable message is written over. The chunks become the row groups
of the Parquet file when all are there, so that its bytes do not tell where a run was interrupted.
A Parquet file for each chunk was rejected: a table of a billion rows would lie in thousands.
"""

from __future__ import annotations

import json
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from streamkm.errors import ConfigError, ReadError, ResumeError
from streamkm.files import OutputFile, fsync_directory, remove_file
from streamkm.sinks.base import JoiningSink
from streamkm.sinks.growing import GrowingFile
from streamkm.sources.layout import one_line

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from streamkm.sources import IdColumn

__all__ = ["ParquetSink"]

#: The column of values that have no names of their own.
VALUE = "value"
#: Key of what an unfinished output says of itself, in the metadata of its schema.
_ABOUT = b"streamkm"
#: First bytes of a Parquet file.
_MAGIC = b"PAR1"
#: Raised by pyarrow for what is no Arrow stream or Parquet file, or ends too early.
_DAMAGED = (pa.ArrowException, OSError, EOFError, RuntimeError, KeyError, TypeError, ValueError)


class ParquetSink(JoiningSink):
    """A Parquet table, written in whole chunks, which become its row groups.

    Parameters
    ----------
    target, n_rows, dtype, state
        See `Sink`. Each field of a structured dtype is a column; one of several values a row is a
        column of lists of that size.
    chunk_rows : int
        Rows of a chunk; a resumed output keeps its own.
    ids : IdColumn, optional
        Ids of the rows: the first column.
    """

    is_chunked = True

    def __init__(
        self,
        target: Path,
        *,
        n_rows: int,
        dtype: np.dtype[Any],
        state: dict[str, Any] | None,
        chunk_rows: int,
        ids: IdColumn | None = None,
    ) -> None:
        super().__init__(target, n_rows=n_rows, dtype=dtype, state=state)
        if ids is not None and ids.column in (dtype.names or (VALUE,)):
            raise ConfigError(
                f"{target}: the column of ids cannot be named {ids.column!r}, as a column of "
                "values is; rename it in the source"
            )
        self._ids = ids
        self._chunk_rows = min(chunk_rows, n_rows)
        self._file = self._create() if state is None else self._open()
        self._buffer = np.empty(self._chunk_rows, dtype)
        self._filled = 0
        self._stored = self._durable_rows
        self._id_batches: Iterator[pa.Array] | None = None
        self._id_left: pa.Array | None = None

    @classmethod
    def stored_crc32(cls, path: Path, n_rows: int, dtype: np.dtype[Any]) -> int | None:
        """See `Sink`; the checksum is of ids and values."""
        try:
            with pq.ParquetFile(path) as file:
                if file.metadata.num_rows != n_rows:
                    return None
                crc = 0
                for group in range(file.metadata.num_row_groups):
                    table = file.read_row_group(group, use_threads=False).combine_chunks()
                    for batch in table.to_batches():
                        crc = _crc32_of(batch, dtype, crc)
        except _DAMAGED:
            return None
        return crc

    # ---- the unfinished output -----------------------------------------------

    def _schema(self) -> pa.Schema:
        """Columns, and what a resumed run must know of the rows."""
        names = self.dtype.names or (VALUE,)
        kinds = [self.dtype[name] for name in self.dtype.names or ()] or [self.dtype]
        fields = [
            pa.field(name, _column_type(kind)) for name, kind in zip(names, kinds, strict=True)
        ]
        if self._ids is not None:
            fields.insert(0, pa.field(self._ids.column, self._ids.kind))
        about = {"rows": self.n_rows, "dtype": str(self.dtype), "chunk_rows": self._chunk_rows}
        return pa.schema(fields, metadata={_ABOUT: json.dumps(about).encode()})

    def _create(self) -> OutputFile:
        file = OutputFile(self._partial, create=True)
        header = self._schema().serialize()
        file.write(0, memoryview(header))
        file.sync()
        fsync_directory(self._partial.parent)
        self._end = header.size
        return file

    def _open(self) -> OutputFile:
        """Open the unfinished output, if it is this one and its durable rows are intact."""
        file = OutputFile(self._partial)
        try:
            if file.read(0, len(_MAGIC)) == _MAGIC and self._durable_rows == self.n_rows:
                self._check_joined()
                return file
            if self._check_stream():
                return file
        except BaseException:
            file.close()
            raise
        # A crash came before the schema was on disk, so there is nothing to lose.
        file.close()
        remove_file(self._partial)
        return self._create()

    def _check_joined(self) -> None:
        """Check the Parquet file of an interrupted commit."""
        if self.stored_crc32(self._partial, self.n_rows, self.dtype) != self._crc:
            raise self._damaged("its checksum differs")
        self._is_joined = True

    def _check_stream(self) -> bool:
        """Whether the stream has a schema; finds its end after the durable rows."""
        with pa.OSFile(str(self._partial)) as file:
            try:
                schema = pa.ipc.read_schema(file)
                about = json.loads(schema.metadata[_ABOUT])
                rows, dtype = about["rows"], about["dtype"]
                chunk_rows = int(about["chunk_rows"])
            except _DAMAGED as error:
                if self._durable_rows == 0:
                    return False
                raise self._damaged(one_line(error)) from error
            if (rows, dtype) != (self.n_rows, str(self.dtype)):
                raise self._mismatch(rows, dtype)
            self._chunk_rows = chunk_rows
            if not schema.equals(self._schema()):
                raise ResumeError(
                    f"{self._partial}: was begun with other columns ({', '.join(schema.names)}) "
                    f"than this run writes ({', '.join(self._schema().names)}), or other types; "
                    "start again without resuming"
                )
            crc = 0
            for batch in self._batches(file, schema, self._durable_rows):
                crc = _crc32_of(batch, self.dtype, crc)
            self._end = file.tell()
        if crc != self._crc:
            raise self._damaged("their checksum differs")
        return True

    def _batches(self, file: pa.NativeFile, schema: pa.Schema, n_rows: int) -> Iterator[Any]:
        """The chunks of the first `n_rows`; `file` stands after the schema."""
        done = 0
        while done < n_rows:
            try:
                batch = pa.ipc.read_record_batch(pa.ipc.read_message(file), schema)
                batch.validate()
            except _DAMAGED as error:
                raise self._damaged(one_line(error)) from error
            done += len(batch)
            if not len(batch) or done > n_rows:
                raise self._damaged(f"a chunk ends at row {done}")
            yield batch

    def _damaged(self, why: str) -> ResumeError:
        return ResumeError(
            f"{self._partial}: the {self._durable_rows:,} rows in it are not those that were "
            f"written ({why}); check the disk, and start again without resuming"
        )

    # ---- the finished output -------------------------------------------------

    def _join(self) -> None:
        """See `JoiningSink`: turn the stream of chunks into the Parquet file, a chunk at a time."""
        file = OutputFile(self._joined, create=True)
        try:
            with pa.OSFile(str(self._partial)) as stream:
                schema = pa.ipc.read_schema(stream)
                out = pa.PythonFile(GrowingFile(file), mode="w")
                with pq.ParquetWriter(out, schema.remove_metadata()) as writer:
                    for batch in self._batches(stream, schema, self.n_rows):
                        writer.write_batch(batch, row_group_size=self._chunk_rows)
            file.sync()
        finally:
            file.close()

    # ---- rows that come -----------------------------------------------------------

    def _put(self, values: np.ndarray) -> None:
        while values.size:
            taken = values[: self._chunk_rows - self._filled]
            self._buffer[self._filled : self._filled + len(taken)] = taken
            self._filled += len(taken)
            values = values[len(taken) :]
            if self._filled == self._chunk_rows or self._stored + self._filled == self.n_rows:
                self._store(self._buffer[: self._filled])
                self._filled = 0

    def _store(self, values_C: np.ndarray) -> None:
        """Write one chunk."""
        names = self.dtype.names
        columns = [values_C[name] for name in names] if names else [values_C]
        arrays = [_as_column(np.ascontiguousarray(column)) for column in columns]
        if self._ids is not None:
            arrays.insert(0, self._next_ids(len(values_C)))
        batch = pa.RecordBatch.from_arrays(arrays, schema=self._schema())
        message = batch.serialize()
        self._file.write(self._end, memoryview(message))
        self._end += message.size
        self._crc = _crc32_of(batch, self.dtype, self._crc)
        self._stored += len(values_C)

    def _next_ids(self, n_rows: int) -> pa.Array:
        """The ids of the next `n_rows` rows."""
        assert self._ids is not None
        if self._id_batches is None:
            self._id_batches = self._ids.batches(self._stored)
        found: list[pa.Array] = []
        missing = n_rows
        while missing:
            batch = self._id_left if self._id_left is not None else next(self._id_batches, None)
            if batch is None:
                raise ReadError(
                    f"{self.path}: the column of ids {self._ids.column!r} ends {missing} rows "
                    "before the source does; the file is corrupt"
                )
            found.append(batch[:missing])
            self._id_left = batch[missing:] if len(batch) > missing else None
            missing -= len(found[-1])
        return pa.concat_arrays(found)

    def _sync(self) -> int:
        self._file.sync()
        return self._stored

    def _release(self) -> None:
        self._file.close()


def _column_type(dtype: np.dtype[Any]) -> pa.DataType:
    """The type of a column of values of `dtype`."""
    kind = pa.from_numpy_dtype(dtype.base)
    return pa.list_(kind, dtype.shape[0]) if dtype.shape else kind


def _as_column(values: np.ndarray) -> pa.Array:
    """A column of numbers, or of lists of them if rows have several values."""
    column = pa.array(values.reshape(-1))
    if values.ndim == 1:
        return column
    return pa.FixedSizeListArray.from_arrays(column, values.shape[1])


def _crc32_of(batch: pa.RecordBatch, dtype: np.dtype[Any], crc: int) -> int:
    """Checksum of a chunk, ids first, after that of the chunks before."""
    names = dtype.names or (VALUE,)
    others = [name for name in batch.schema.names if name not in names]
    for part in _id_parts(batch.column(others[0])) if others else ():
        crc = zlib.crc32(part.data, crc)
    values = np.empty(len(batch), dtype)
    for name in names:
        column, target = batch.column(name), values[name] if dtype.names else values
        if column.type != _column_type(np.dtype((target.dtype, target.shape[1:]))):
            raise TypeError(f"column {name!r} holds {column.type}")
        flat = column.flatten() if target.ndim > 1 else column
        target[...] = flat.to_numpy(zero_copy_only=True).reshape(target.shape)
    return zlib.crc32(values.view(np.uint8).data, crc)


def _id_parts(ids: pa.Array) -> Iterator[np.ndarray]:
    """Bytes that equal ids have in common, whatever memory they lie in."""
    stored = ids.storage if isinstance(ids, pa.ExtensionArray) else ids
    is_valid = stored.is_valid().to_numpy(zero_copy_only=False)
    yield is_valid.view(np.uint8)
    if pa.types.is_primitive(stored.type) or pa.types.is_decimal(stored.type):
        width, start = stored.type.bit_width // 8, stored.offset
        data = np.frombuffer(stored.buffers()[1], np.uint8)
        values = data[start * width : (start + len(stored)) * width].reshape(-1, width).copy()
        values[~is_valid] = 0  # What lies there has no meaning.
        yield values.reshape(-1)
    else:
        texts = stored.cast(pa.large_binary()).fill_null(b"")
        offsets = np.frombuffer(texts.buffers()[1], np.int64)[texts.offset :][: len(texts) + 1]
        yield np.diff(offsets).view(np.uint8)
        data = texts.buffers()[2]
        yield np.frombuffer(data or b"", np.uint8)[offsets[0] : offsets[-1]]
