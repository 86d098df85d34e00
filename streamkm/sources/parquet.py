"""Reads Parquet files: one column of lists of equal length, or several columns of numbers.

Each read opens a reader of its own, because pyarrow does not promise that one reader serves several
threads. The numbers of a list column lie in one buffer, which is copied to the rows at once.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from streamkm.errors import NoRowsError, Option, ReadError, SourceError
from streamkm.sources.base import ArraySpec, Described, RowRange, check_dtype
from streamkm.sources.layout import check_read, one_line
from streamkm.sources.rowfile import row_file, stream_of
from streamkm.text import counted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from streamkm.sources.rowfile import Stored

__all__ = ["ParquetSource"]

#: Columns that an error lists, at most.
NAMES_SHOWN = 8
#: Bytes that reading a group takes beside stored and decoded numbers: pages, dictionaries.
_PAGE_BYTES = 4 << 20
#: Bytes of the levels of one element of a list: definition and repetition, two each.
_LEVEL_BYTES = 4


class ParquetSource(Described):
    """Rows of a Parquet file; a row group is a block.

    `streamkm.sources.arrow` reads Arrow's own files by the same rules, group by group.

    Parameters
    ----------
    path : Path
        The file.
    columns : sequence of str, optional
        One column of lists of numbers, or columns of numbers in the order of the features. By
        default the only column of lists, or else all columns, if all hold numbers of one type.

    Raises
    ------
    SourceError
        If it is no Parquet file, or these columns do not make rows of numbers.
    """

    #: Name of the format, and what it calls a group of rows.
    kind, group = "Parquet", "row group"

    def __init__(self, path: Path | Stored, *, columns: Sequence[str] | None = None) -> None:
        # It only knows whether the file has changed: pyarrow opens the file for each read.
        self._file = row_file(path, keep_open=False)
        try:
            with self._reader() as file:
                self._metadata, schema = file.metadata, file.schema_arrow
                self._columns = _chosen(schema, columns, str(path))
                types = [schema.field(name).type for name in self._columns]
                self._is_list = _is_list(types[0])
                n_features = _n_features(file, self._columns, types[0], str(path))
                sizes, stored = self._group_sizes()
        except (pa.ArrowException, OSError, RuntimeError, UnicodeDecodeError) as error:
            raise SourceError(
                f"{path}: cannot be opened as {self.kind}: {one_line(error)}"
            ) from error
        dtype = _common_dtype(types, self._columns, str(path))
        if min(sizes, default=0) < 0 or stored < 0:
            raise SourceError(f"{path}: its metadata make no sense: {min(sizes)} rows in a group")
        if not sum(sizes):
            raise NoRowsError(f"{path}: the file has no rows")
        self._starts = list(accumulate(sizes[:-1], initial=0))
        row_bytes = n_features * np.dtype(dtype).itemsize
        self._spec = ArraySpec(
            n_rows=sum(sizes),
            n_features=n_features,
            dtype=dtype,
            # One writer makes all groups of one size, except the last.
            block_rows=max(sizes),
            layout=f"{self.kind.lower()}, {counted(len(sizes), self.group)} of up to {max(sizes)}, "
            + (f"column {self._columns[0]}" if self._is_list else f"{n_features} columns"),
            scratch_bytes=self._scratch_bytes(stored, max(sizes), row_bytes, n_features),
            is_remote=self._file.is_remote,
        )

    @property
    def name(self) -> str:
        """Path of the file."""
        return str(self._file.path)

    @property
    def spec(self) -> ArraySpec:
        """Shape, dtype and layout."""
        return self._spec

    def read(self, rows: RowRange, out: np.ndarray) -> None:
        """Fill `out` with `rows`; see `Source.read`."""
        check_read(self.name, self._spec, rows, out, closed=self._file.closed)
        self._file.check_unchanged(rows)
        try:
            with self._reader(self._metadata) as file:
                self._read_groups(file, rows, out)
        except (pa.ArrowException, OSError, RuntimeError, UnicodeDecodeError) as error:
            raise ReadError(
                f"{self.name}: {rows} cannot be read: {one_line(error)}; "
                "the file is corrupt, truncated or unreadable"
            ) from error

    def fingerprint(self) -> str:
        """Hex digest of layout and columns, and the file's size and modification time."""
        return self._file.fingerprint(f"{self._spec.layout} {self._columns}")

    def notes(self) -> list[str]:
        """No notes."""
        return []

    def close(self) -> None:
        """Refuse further reads; no file is held open."""
        self._file.close()

    def _reader(self, metadata: Any = None) -> Any:
        """What reads groups of columns, as `pyarrow.parquet.ParquetFile` does."""
        path = self._file.path
        place = path if isinstance(path, Path) else pa.PythonFile(stream_of(self._file), "r")
        return pq.ParquetFile(place, metadata=metadata, pre_buffer=self._file.is_remote)

    def _read_groups(self, file: pq.ParquetFile, rows: RowRange, out: np.ndarray) -> None:
        done = rows.start
        while done < rows.stop:
            index = bisect_right(self._starts, done) - 1
            table = file.read_row_group(index, columns=self._columns, use_threads=False)
            expected = self._metadata.row_group(index).num_rows
            if table.num_rows != expected:
                raise ReadError(
                    f"{self.name}: {self.group} {index} holds {table.num_rows} rows, the file's "
                    f"metadata say {expected}; the file is corrupt"
                )
            first = self._starts[index]
            stop = min(rows.stop, first + expected)
            part = table.slice(done - first, stop - done)
            self._copy(part, index, out[done - rows.start : stop - rows.start])
            done = stop

    def _copy(self, table: pa.Table, group: int, out: np.ndarray) -> None:
        for position, name in enumerate(self._columns):
            filled = 0
            for chunk in table.column(name).chunks:
                self._check_nulls(chunk, name, group)
                target = out[filled : filled + len(chunk)]
                filled += len(chunk)
                if self._is_list:
                    target[...] = self._list_rows(chunk, name, group)
                else:
                    target[:, position] = chunk.to_numpy(zero_copy_only=True)

    def _list_rows(self, chunk: pa.Array, name: str, group: int) -> np.ndarray:
        """The numbers of a list column as rows, a view of the memory that holds them."""
        n_features = self._spec.n_features
        if pa.types.is_fixed_size_list(chunk.type):
            start = chunk.offset * n_features
        else:
            offsets = chunk.offsets.to_numpy()
            wrong = np.flatnonzero(np.diff(offsets) != n_features)
            if wrong.size:
                length = int(offsets[wrong[0] + 1] - offsets[wrong[0]])
                raise ReadError(
                    f"{self.name}: column {name!r}: a list of {length} elements in {self.group} "
                    f"{group}, the first row has {n_features}; all lists must be of one length"
                )
            start = int(offsets[0])
        child = chunk.values.slice(start, len(chunk) * n_features)
        self._check_nulls(child, name, group)
        rows: np.ndarray = child.to_numpy(zero_copy_only=True).reshape(len(chunk), n_features)
        return rows

    def _check_nulls(self, array: pa.Array, name: str, group: int) -> None:
        if array.null_count:
            raise ReadError(
                f"{self.name}: column {name!r} holds {array.null_count} nulls in {self.group} "
                f"{group}; fill them, or drop their rows first"
            )

    def _group_sizes(self) -> tuple[list[int], int]:
        """Rows of each group, and the bytes of the largest group's pages without compression.

        Stored bytes exceed these by little at most. The sizes of single columns are not asked for:
        to give them, pyarrow parses the columns' statistics, and damaged ones end the process.
        """
        groups = [self._metadata.row_group(i) for i in range(self._metadata.num_row_groups)]
        stored = max((group.total_byte_size for group in groups), default=0)
        return [group.num_rows for group in groups], stored

    def _scratch_bytes(self, stored: int, rows: int, row_bytes: int, n_features: int) -> int:
        """Bytes that reading the largest group takes: stored, decoded, levels and pages."""
        decoded, levels = rows * row_bytes, _LEVEL_BYTES * rows * n_features * self._is_list
        # The chosen columns store no more: a dictionary holds each number at most once more.
        stored = min(stored, 2 * decoded + levels)
        # What comes over a network is held once more before it is parsed.
        stored *= 1 + self._file.is_remote
        return stored + (1 + self._is_list) * decoded + levels + _PAGE_BYTES


def _is_list(kind: pa.DataType) -> bool:
    tests = (pa.types.is_fixed_size_list, pa.types.is_list, pa.types.is_large_list)
    return any(test(kind) for test in tests)


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def _chosen(schema: pa.Schema, columns: Sequence[str] | None, name: str) -> list[str]:
    """The names of the columns to read, in the order of the features."""
    fields = {field.name: field.type for field in schema}
    listed = [f"{field} {kind}" for field, kind in fields.items()]
    there_are = "there are " + ", ".join(listed[:NAMES_SHOWN])
    there_are += ", ..." if len(listed) > NAMES_SHOWN else ""
    if len(fields) < len(schema):
        raise SourceError(f"{name}: two columns have the same name; {there_are}")
    if columns is None:
        lists = [field for field, kind in fields.items() if _is_list(kind)]
        if len(lists) == 1:
            return _chosen(schema, lists, name)
        if lists or not fields or len(set(fields.values())) > 1:
            raise SourceError(
                f"{name}: which columns are meant is not clear{_odd_ones(fields)}, choose by ",
                Option("columns"),
                f"; {there_are}",
            )
        return _chosen(schema, list(fields), name)
    chosen = list(columns)
    for column in chosen:
        if column not in fields:
            raise SourceError(f"{name}: there is no column {column!r}; {there_are}")
        kind = fields[column]
        if not _is_number(kind.value_type if _is_list(kind) else kind):
            raise SourceError(f"{name}: column {column!r} holds no numbers but {kind}; {there_are}")
        if _is_list(kind) and len(chosen) > 1:
            raise SourceError(
                f"{name}: column {column!r} holds lists, which are whole rows; choose it alone"
            )
    if len(set(chosen)) < len(chosen) or not chosen:
        raise SourceError(f"{name}: columns must be chosen once each, not {', '.join(chosen)}")
    return chosen


def _odd_ones(fields: dict[str, pa.DataType]) -> str:
    """A phrase that names the columns of another type, if most are numbers of one type."""
    counts = Counter(fields.values())
    if not counts:
        return ""
    usual, n_usual = counts.most_common(1)[0]
    odd = [f"{field} {kind}" for field, kind in fields.items() if kind != usual]
    if not _is_number(usual) or n_usual <= len(odd):
        return ""
    shown = ", ".join(odd[:NAMES_SHOWN]) + (", ..." if len(odd) > NAMES_SHOWN else "")
    return f" (most are {usual}, but not {shown})"


def _n_features(file: pq.ParquetFile, columns: Sequence[str], kind: pa.DataType, name: str) -> int:
    """Features of a row: the length of the first list, or the number of columns."""
    if not _is_list(kind):
        return len(columns)
    if pa.types.is_fixed_size_list(kind):
        n_features = kind.list_size
    else:
        first = next(file.iter_batches(batch_size=1, columns=columns), None)
        value = first.column(0)[0].as_py() if first is not None and len(first) else None
        n_features = len(value or ())
    if n_features < 1:
        raise SourceError(f"{name}: column {columns[0]!r} holds empty lists, or nulls")
    return int(n_features)


def _common_dtype(types: Sequence[pa.DataType], columns: Sequence[str], name: str) -> str:
    """The key of `DTYPES` whose type holds the numbers of all columns without rounding."""
    dtypes = [
        np.dtype((kind.value_type if _is_list(kind) else kind).to_pandas_dtype()) for kind in types
    ]
    common = np.result_type(*dtypes)
    # NumPy calls it safe to turn 64-bit integers into float64, which rounds large ones.
    rounded = [d for d in dtypes if d.kind in "iu" and d.itemsize == 8 and common.kind == "f"]
    if rounded:
        column = columns[dtypes.index(rounded[0])]
        raise SourceError(
            f"{name}: column {column!r} holds {rounded[0]}, others floats, which would round it; "
            "choose by ",
            Option("columns"),
            ", or convert it",
        )
    return check_dtype(common, name)
