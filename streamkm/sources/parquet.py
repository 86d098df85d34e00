"""Reads Parquet files: one column of lists of equal length, or several columns of numbers.

Columns are known by their names: `ParquetSource.in_order` reads them in another order than they
are stored in, and columns that hold the index of a data frame are no features.

Each read opens a reader of its own, because pyarrow does not promise that one reader serves several
threads. The numbers of a list column lie in one buffer, which is copied to the rows at once.

A null is read as NaN, and a null list as a row of NaN, so that a run treats such rows as any others
with NaN. Columns of integers become floats that hold them without rounding, if their file says that
there are nulls.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from copy import copy
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from streamkm.errors import NoRowsError, ReadError, SourceError
from streamkm.sources.base import ArraySpec, Described, RowRange
from streamkm.sources.ids import ID_BATCH_ROWS
from streamkm.sources.layout import check_read, one_line
from streamkm.sources.names import shown
from streamkm.sources.parquet_columns import (
    chosen_columns,
    common_dtype,
    features_of,
    index_columns,
    is_list,
)
from streamkm.sources.parquet_footer import null_counts
from streamkm.sources.parquet_ids import ParquetBeside, ParquetIds, id_field
from streamkm.sources.rowfile import row_file, stream_of
from streamkm.text import counted

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from streamkm.sources.rowfile import Stored

__all__ = ["ParquetSource"]

#: Bytes of a footer whose counts of nulls are read, at most: for columns of integers, whose type
#: they decide, in 0.1 s; and for a note on other columns, of which there may be a thousand files.
FOOTER_BYTES, FOOTER_BYTES_FOR_NOTES = 256 << 10, 32 << 10
#: Integers below this are exact in float64; the next one becomes this very number.
EXACT_IN_FLOAT64 = 1 << 53
#: Bytes that reading a group takes beside stored and decoded numbers: pages, dictionaries.
_PAGE_BYTES = 4 << 20
#: Bytes of one read of ids: a page or a few, so that no column chunk lies in memory as a whole.
_ID_READ_BYTES = 1 << 20
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
        default the only column of lists, or else all columns, if all hold numbers of one type. A
        column that holds the index of a data frame is taken only if it is named.
    id_column : str, optional
        A column that names the rows. It is no feature.

    Raises
    ------
    SourceError
        If it is no Parquet file, or these columns do not make rows of numbers.
    """

    #: Name of the format, and what it calls a group of rows.
    kind, group = "Parquet", "row group"

    def __init__(
        self,
        path: Path | Stored,
        *,
        columns: Sequence[str] | None = None,
        id_column: str | None = None,
    ) -> None:
        # It only knows whether the file has changed: pyarrow opens the file for each read.
        self._file = row_file(path, keep_open=False)
        try:
            with self._reader() as file:
                self._metadata, schema = file.metadata, file.schema_arrow
                self._schema = schema
                if not self._metadata.num_rows:
                    raise NoRowsError(f"{path}: the file has no rows")
                self._id_field = id_field(schema, columns, id_column, str(path))
                schema = _without(schema, self._id_field)
                index = index_columns(schema)
                self._columns = chosen_columns(
                    schema, columns, str(path), index, has_ids=self._id_field is not None
                )
                types = [schema.field(name).type for name in self._columns]
                self._is_list = is_list(types[0])
                n_features = features_of(file, self._columns, types[0], str(path))
                sizes, stored = self._group_sizes()
                dtype = common_dtype(types, self._columns, str(path))
                nulls = self._known_nulls(is_whole=np.dtype(dtype).kind in "iu")
        except (pa.ArrowException, OSError, RuntimeError, UnicodeDecodeError) as error:
            raise SourceError(
                f"{path}: cannot be opened as {self.kind}: {one_line(error)}"
            ) from error
        # Integers of 64 bits that are read as float64.
        self._may_round = False
        if min(sizes, default=0) < 0 or stored < 0:
            raise SourceError(f"{path}: its metadata make no sense: {min(sizes)} rows in a group")
        self._starts = list(accumulate(sizes[:-1], initial=0))
        self._remarks: list[str] = []
        if columns is None and index:
            self._remarks.append(
                f"{path}: {shown(index)} is the index of a data frame, and no feature; choose it "
                "by name if it is meant"
            )
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
            feature_names=() if self._is_list else tuple(self._columns),
            member=self._columns[0] if self._is_list and columns is None else "",
            is_remote=self._file.is_remote,
        )
        if nulls:
            self._make_room_for(nulls)

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

    def in_order(self, names: tuple[str, ...]) -> ParquetSource:
        """A view with the columns in the order of `names`; closed with this source."""
        view = copy(self)
        vars(view).update(_columns=list(names), _spec=replace(self._spec, feature_names=names))
        return view

    def with_room_for_nulls(self) -> ParquetSource:
        """A view whose numbers are floats, which hold the integers; closed with this source."""
        spec, may_round = _widened(self._spec)
        view = copy(self)
        vars(view).update(_spec=spec, _may_round=self._may_round or may_round)
        return view

    def fingerprint(self) -> str:
        """Hex digest of layout and columns, and the file's size and modification time."""
        return self._file.fingerprint(f"{self._spec.layout} {self._columns}")

    def ids(self) -> ParquetIds | None:
        """The ids of the rows, if a column of them was named."""
        if self._id_field is None:
            return None
        return ParquetIds(self._id_field, self._file, self._sizes(), self._batches_of)

    def beside(self) -> ParquetBeside:
        """The columns that are no features."""
        counts = Counter(self._schema.names)
        fields = [
            field
            for field in self._schema
            if field.name not in self._columns and counts[field.name] == 1
        ]
        list_column = self._columns[0] if self._is_list else ""
        return ParquetBeside(fields, list_column, self._file, self._sizes(), self._batches_of)

    def _sizes(self) -> list[int]:
        """Rows of each group."""
        n_groups = self._metadata.num_row_groups
        return [self._metadata.row_group(i).num_rows for i in range(n_groups)]

    def notes(self) -> list[str]:
        """A note on columns that are left out, and one on nulls that the file tells of."""
        return list(self._remarks)

    def close(self) -> None:
        """Refuse further reads; no file is held open."""
        self._file.close()

    def _reader(self, metadata: Any = None) -> Any:
        """What reads groups of columns, as `pyarrow.parquet.ParquetFile` does."""
        return pq.ParquetFile(self._place(), metadata=metadata, pre_buffer=self._file.is_remote)

    def _place(self) -> Any:
        """The file, as pyarrow takes it."""
        path = self._file.path
        return path if isinstance(path, Path) else pa.PythonFile(stream_of(self._file), "r")

    def _batches_of(self, groups: range, columns: list[str]) -> Iterator[pa.RecordBatch]:
        """Columns of `groups`, `ID_BATCH_ROWS` at most at a time."""
        with pq.ParquetFile(
            self._place(), metadata=self._metadata, buffer_size=_ID_READ_BYTES
        ) as file:
            yield from file.iter_batches(ID_BATCH_ROWS, list(groups), columns, use_threads=False)

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
        self._copy_columns(table, group, out)
        # Nulls are NaN by now, and no NaN is larger than anything.
        if self._may_round and (np.abs(out) >= EXACT_IN_FLOAT64).any():
            raise ReadError(
                f"{self.name}: {self.group} {group} holds {np.nanmax(np.abs(out)):.0f}: beside "
                "nulls, or shards of floats, integers are read as float64, which is exact "
                "below 2^53; fill the nulls, or store the columns as floats"
            )

    def _copy_columns(self, table: pa.Table, group: int, out: np.ndarray) -> None:
        for position, name in enumerate(self._columns):
            filled = 0
            for chunk in table.column(name).chunks:
                target = out[filled : filled + len(chunk)]
                filled += len(chunk)
                if self._is_list:
                    self._copy_lists(chunk, name, group, target)
                else:
                    target[:, position] = _stored(chunk)
                    if chunk.null_count:
                        self._check_can_hold_nulls(chunk.null_count, name, group)
                        target[_nulls(chunk), position] = np.nan

    def _copy_lists(self, chunk: pa.Array, name: str, group: int, out: np.ndarray) -> None:
        """Copy a list column: a list a row, a null a row of NaN."""
        n_features = self._spec.n_features
        has_list = ~_nulls(chunk)
        if pa.types.is_fixed_size_list(chunk.type):
            # A null takes the space of a list, and its elements are nulls.
            start, is_stored = chunk.offset * n_features, np.ones(len(chunk), bool)
        else:
            offsets = chunk.offsets.to_numpy()
            lengths = np.diff(offsets)
            wrong = np.flatnonzero(lengths != np.where(has_list, n_features, 0))
            if wrong.size:
                raise ReadError(
                    f"{self.name}: column {name!r}: a list of {lengths[wrong[0]]} elements in "
                    f"{self.group} {group}, the first list has {n_features}; all lists must be of "
                    "one length"
                )
            start, is_stored = int(offsets[0]), has_list
        child = chunk.values.slice(start, np.count_nonzero(is_stored) * n_features)
        numbers = _stored(child).reshape(-1, n_features)
        n_nulls = chunk.null_count + child.null_count
        if not n_nulls:
            out[...] = numbers
            return
        self._check_can_hold_nulls(n_nulls, name, group)
        out[is_stored] = numbers
        is_null = np.ones(out.shape, bool)
        is_null[is_stored] = _nulls(child).reshape(-1, n_features)
        is_null[~has_list] = True
        out[is_null] = np.nan

    def _check_can_hold_nulls(self, n_nulls: int, name: str, group: int) -> None:
        """Refuse nulls among rows of integers, none of which stands for no value."""
        if self._spec.storage.kind != "f":
            raise ReadError(
                f"{self.name}: column {name!r} holds {counted(n_nulls, 'null')} in {self.group} "
                f"{group}, and {self._spec.dtype} has no number that stands for a null; fill them, "
                "or store the column as floats"
            )

    def _known_nulls(self, *, is_whole: bool) -> dict[str, int]:
        """The nulls of the columns that have some, as the footer tells; `is_whole`: of integers."""
        most_bytes = FOOTER_BYTES if is_whole else FOOTER_BYTES_FOR_NOTES
        with stream_of(self._file) as file:
            counts = null_counts(file, most_bytes=most_bytes)
        return {name: counts[name] for name in self._columns if counts.get(name)}

    def _make_room_for(self, nulls: dict[str, int]) -> None:
        """Read integers as floats, which have NaN for the `nulls` of columns, and say so."""
        dtype = self._spec.dtype
        self._spec, self._may_round = _widened(self._spec)
        read_as = "" if dtype == self._spec.dtype else f"; {dtype} is read as {self._spec.dtype}"
        self._remarks.append(
            f"{self.name}: {counted(sum(nulls.values()), 'null')} in {shown(list(nulls))}: "
            "a row that holds one counts as a row with NaN, an error unless such rows are "
            f"dropped{read_as}"
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


def _without(schema: pa.Schema, field: pa.Field | None) -> pa.Schema:
    return schema if field is None else pa.schema([f for f in schema if f.name != field.name])


def _widened(spec: ArraySpec) -> tuple[ArraySpec, bool]:
    """`spec` with floats in place of integers, and whether these may round the largest of them."""
    stored = spec.storage
    wide = stored if stored.kind == "f" else np.result_type(stored, np.float32)
    return replace(spec, dtype=wide.name), stored.kind != "f" and stored.itemsize == 8


def _stored(array: pa.Array) -> np.ndarray:
    """The numbers of `array`, a view of the memory that holds them; any number for a null."""
    without_nulls = [None, array.buffers()[1]]
    known = pa.Array.from_buffers(array.type, len(array), without_nulls, 0, array.offset)
    numbers: np.ndarray = known.to_numpy(zero_copy_only=True)
    return numbers


def _nulls(array: pa.Array) -> np.ndarray:
    """For each element of `array` whether it is null."""
    is_null: np.ndarray = array.is_null().to_numpy(zero_copy_only=False)
    return is_null
