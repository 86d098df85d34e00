"""Rows as Parquet files, a folder a cluster: ``centroid=17/part-0.parquet``.

This layout (Hive's) is read by pyarrow, DuckDB, Spark and polars, which make ``centroid`` a column.
A part has at most `PART_BYTES` of rows, and its row groups `GROUP_BYTES`, by the length of a row
alone: the files are the same in whatever memory they were written.

Rows travel as Arrow tables, because columns beside the features may be of any type and length. In
buckets they are Arrow messages, one for each share of what was gathered.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from streamkm.errors import ConfigError, ReadError
from streamkm.files import (
    OutputFile,
    fsync_directory,
    fsync_file,
    make_directory,
    remove_file,
    remove_tree,
    rename_durably,
)
from streamkm.runs.partitioning.gathered import PIECE_BYTES, Gathered, discard_buckets
from streamkm.sinks import GrowingFile

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from streamkm.runs.partitioning.placing import Placing
    from streamkm.sources import BesideColumns, RowRange
    from streamkm.sources.base import ArraySpec

__all__ = ["GatheredTables", "ParquetRows", "TableRows"]

#: Bytes of the features of a part, and of a row group, at most.
PART_BYTES, GROUP_BYTES = 256 << 20, 8 << 20
#: The column that folders are named by, the one of row numbers, and the one of features if they
#: have no names.
CENTROID, ROW, FEATURES = "centroid", "row", "features"
#: The place of a row, in buckets.
_PLACE = "streamkm:place"


class TableRows:
    """Makes tables of rows: columns beside the features, the row number, the features.

    Parameters
    ----------
    spec : ArraySpec
        Of the source.
    beside : BesideColumns, optional
        The columns of a table that are no features.
    name : str
        The source, for errors.

    Raises
    ------
    ConfigError
        If a column is named as the folders are.
    """

    def __init__(self, spec: ArraySpec, beside: BesideColumns | None, name: str) -> None:
        self._kind = pa.from_numpy_dtype(spec.storage)
        self._n_features = spec.n_features
        self.is_list = beside is None or bool(beside.list_column)
        fields = [] if beside is None else list(beside.schema.remove_metadata())
        if self.is_list:
            column = beside.list_column if beside is not None else FEATURES
            features = [pa.field(column, pa.list_(self._kind, spec.n_features))]
        else:
            features = [pa.field(each, self._kind) for each in spec.feature_names]
        taken = {field.name for field in (*fields, *features)}
        if CENTROID in taken:
            raise ConfigError(
                f"{name}: has a column {CENTROID!r}, which is the name of the clusters' folders; "
                "rename it"
            )
        self._has_numbers = ROW not in taken
        numbers = [pa.field(ROW, pa.int64())] if self._has_numbers else []
        self.schema = pa.schema([*fields, *numbers, *features])

    def table(self, rows: RowRange, features_BD: np.ndarray, beside: pa.Table | None) -> pa.Table:
        """The table of `rows`."""
        columns: list[Any] = [] if beside is None else list(beside.columns)
        if self._has_numbers:
            columns.append(pa.array(np.arange(rows.start, rows.stop)))
        if self.is_list:
            # A copy: the slot is used again.
            values = pa.array(features_BD.reshape(-1).copy())
            columns.append(pa.FixedSizeListArray.from_arrays(values, self._n_features))
        else:
            columns += [pa.array(column.copy()) for column in features_BD.T]
        return pa.Table.from_arrays(columns, schema=self.schema)


class GatheredTables(Gathered):
    """Gathered rows as tables, and buckets of Arrow messages."""

    def _open(self, *, resumed: bool) -> None:
        self._tables: list[pa.Table] = []
        self._ends = [0] * self.n_buckets
        name = self._beside.name
        self._paths = [self._beside.with_name(f"{name}.bucket-{i}") for i in range(self.n_buckets)]
        self._unsynced: set[int] = set()
        if not resumed:
            discard_buckets(self._beside.parent, name)

    def skip(self, placing: Placing, passed: RowRange) -> None:
        """See `Gathered`; what follows the claimed rows of a bucket is written over."""
        super().skip(placing, passed)
        for bucket, path in enumerate(self._paths):
            count = int(self._next[bucket]) - bucket * self.plan.bucket_rows
            for _, end in self._stored(path, count):
                self._ends[bucket] = end

    def _take_in(self, records: pa.Table, chosen: slice | np.ndarray, to: slice) -> None:
        del to
        if isinstance(chosen, slice):
            self._tables.append(records[chosen])
        else:
            self._tables.append(records.take(pa.array(chosen)))

    def _write_shares(self, shares: Iterator[tuple[int, np.ndarray]]) -> None:
        whole = pa.concat_tables(self._tables)
        self._tables.clear()
        for bucket, share in shares:
            places = pa.array(self._places[share])
            table = whole.take(pa.array(share)).append_column(_PLACE, places).combine_chunks()
            path = self._paths[bucket]
            file = OutputFile(path, create=not path.exists())
            try:
                if not self._ends[bucket]:
                    header = table.schema.serialize()
                    file.write(0, memoryview(header))
                    self._ends[bucket] = header.size
                for batch in table.to_batches():
                    message = batch.serialize()
                    file.write(self._ends[bucket], memoryview(message))
                    self._ends[bucket] += message.size
            finally:
                file.close()
            self._unsynced.add(bucket)

    def sync(self) -> None:
        """See `Gathered`."""
        self.flush()
        for bucket in sorted(self._unsynced):
            fsync_file(self._paths[bucket])
            fsync_directory(self._paths[bucket].parent)
        self._unsynced.clear()

    def bucket(self, index: int, done: int) -> Iterator[tuple[int, Any]]:
        """See `Gathered`."""
        first, stop = self._edges(index)
        if self.n_buckets == 1:
            whole, places = pa.concat_tables(self._tables), self._places[: self._filled]
        else:
            tables = [table for table, _ in self._stored(self._paths[index], stop - first)]
            whole = pa.concat_tables(tables)
            places = whole.column(_PLACE).to_numpy()
            whole = whole.drop_columns([_PLACE])
        order = np.empty(stop - first, np.int64)
        order[places - first] = np.arange(len(places))
        step = max(PIECE_BYTES * len(whole) // max(whole.nbytes, 1), 1)
        for start in range(max(done, first), stop, step):
            numbers = order[start - first : start - first + step]
            yield start, whole.take(pa.array(numbers))

    @staticmethod
    def _stored(path: Path, n_rows: int) -> Iterator[tuple[pa.Table, int]]:
        """The messages of the first `n_rows` of a bucket, each with the position of its end."""
        if not n_rows:
            return
        done = 0
        with pa.OSFile(str(path)) as file:
            try:
                schema = pa.ipc.read_schema(file)
                while done < n_rows:
                    batch = pa.ipc.read_record_batch(pa.ipc.read_message(file), schema)
                    done += len(batch)
                    yield pa.Table.from_batches([batch]), file.tell()
            except (pa.ArrowException, EOFError) as error:
                raise ReadError(
                    f"{path}: is damaged: {error}; check the disk, and start again elsewhere"
                ) from error

    def close(self) -> None:
        """No file is held open."""


class ParquetRows:
    """Parquet files in the order of the places, which `publish` gives their folder's name.

    Parameters
    ----------
    path : Path
        The unfinished folder.
    schema : pa.Schema
        Of the rows.
    row_bytes : int
        Bytes of the features of a row.
    offsets : ndarray of int64
        Where each cluster begins, and after the last where it ends.
    resumed : bool
        Whether an earlier attempt has begun the folder.
    """

    align_rows = 1

    def __init__(
        self, path: Path, schema: pa.Schema, row_bytes: int, offsets: np.ndarray, *, resumed: bool
    ) -> None:
        self._path, self._schema, self._offsets = path, schema, offsets
        self._part_rows = max(PART_BYTES // row_bytes, 1)
        self._group_rows = max(min(GROUP_BYTES // row_bytes, self._part_rows), 1)
        self._file: OutputFile | None = None
        self._writer: pq.ParquetWriter | None = None
        self._held: list[pa.Table] = []
        self._part_start = self._end = 0
        self._unsynced: list[Path] = []
        if not resumed:
            remove_tree(path)
        make_directory(path)

    def put(self, start: int, rows: Any) -> None:
        """Write a table of the rows from place `start` on."""
        done = 0
        while done < len(rows):
            at = start + done
            cluster = int(np.searchsorted(self._offsets, at, side="right")) - 1
            first, stop = int(self._offsets[cluster]), int(self._offsets[cluster + 1])
            part, within = divmod(at - first, self._part_rows)
            if self._writer is None:
                self._begin(cluster, part, at)
            group_end = at + self._group_rows - within % self._group_rows
            part_end = min(first + (part + 1) * self._part_rows, stop)
            taken = rows.slice(done, min(group_end, part_end) - at)
            self._held.append(taken)
            done += len(taken)
            self._end = start + done
            if self._end in (group_end, part_end):
                self._write_group()
            if self._end == part_end:
                self._finish_part()

    def _begin(self, cluster: int, part: int, at: int) -> None:
        folder = self._path / f"{CENTROID}={cluster}"
        make_directory(folder)
        path = folder / f"part-{part}.parquet"
        remove_file(path)
        self._file = OutputFile(path, create=True)
        out = pa.PythonFile(GrowingFile(self._file), mode="w")
        self._writer = pq.ParquetWriter(out, self._schema)
        self._unsynced.append(path)
        self._part_start = at

    def _write_group(self) -> None:
        assert self._writer is not None
        # One chunk, wherever the rows were cut: else the pages might differ.
        table = pa.concat_tables(self._held).combine_chunks()
        self._held.clear()
        self._writer.write_table(table, row_group_size=self._group_rows)

    def _finish_part(self) -> None:
        assert self._writer is not None
        assert self._file is not None
        self._writer.close()
        self._file.close()
        self._writer = self._file = None

    def sync(self) -> int:
        """Bring complete parts to disk; the place after the last of them."""
        complete = self._unsynced[:-1] if self._writer is not None else self._unsynced
        for path in complete:
            fsync_file(path)
        for folder in sorted({path.parent for path in complete}):
            fsync_directory(folder)
        self._unsynced = self._unsynced[len(complete) :]
        return self._end if self._writer is None else self._part_start

    def publish(self, target: Path) -> None:
        """Give the complete folder its name."""
        self.sync()
        rename_durably(self._path, target)

    def close(self) -> None:
        """Release the file of a part that is not complete, which is written anew."""
        if self._writer is not None and self._file is not None:
            self._writer.close()
            self._file.close()
