"""Outputs that are Parquet tables: a stream of chunks until they are complete."""

from __future__ import annotations

import datetime as dt
import decimal
import errno
import os
import uuid
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from streamkm.errors import ConfigError, ResumeError
from streamkm.sinks import open_sink
from streamkm.sinks.base import commit_together
from streamkm.sinks.parquet import ParquetSink
from streamkm.sinks.registry import stored_crc32
from tests.sinks.contract import CHUNK_ROWS, N, SinkContract, labels, partial_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TABLE = np.dtype([("cluster", np.int32), ("distance", np.float32)])


class TestParquetSink(SinkContract):
    sink = ParquetSink
    suffix = ".parquet"
    durable_of_130 = 128
    synced = ("out.parquet.partial",)

    def load(self, path: Path) -> np.ndarray:
        column = pq.read_table(path)["value"].combine_chunks()
        if not pa.types.is_fixed_size_list(column.type):
            return np.asarray(column)
        return np.asarray(column.flatten()).reshape(len(column), column.type.list_size)

    def leave_a_beginning(self, partial: Path) -> None:
        partial.write_bytes(b"\xff\xff\xff\xff\x20")

    def lose_rows(self, partial: Path) -> None:
        os.truncate(partial, partial.stat().st_size - 300)


class Ids:
    """Ids in memory, read by 100."""

    column = "id"

    def __init__(self, values: list[Any], kind: pa.DataType) -> None:
        self.kind = kind
        self._values = pa.array(values, kind)

    def batches(self, start_row: int = 0) -> Iterator[pa.Array]:
        for start in range(start_row, len(self._values), 100):
            yield self._values[start : start + 100]


def table(n: int = N) -> np.ndarray:
    rows = np.empty(n, TABLE)
    rows["cluster"], rows["distance"] = labels(n), labels(n) / 7
    return rows


def texts(n: int = N) -> Ids:
    return Ids([None if i % 97 == 5 else f"row {i}" * (i % 3) for i in range(n)], pa.string())


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "out.parquet"


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (pa.string(), str),
        (pa.large_string(), str),
        (pa.binary(), lambda i: str(i).encode()),
        (pa.binary(16), lambda i: uuid.UUID(int=i).bytes),
        (pa.uuid(), lambda i: uuid.UUID(int=i).bytes),
        (pa.int64(), lambda i: i - (1 << 62)),
        (pa.uint8(), lambda i: i % 256),
        (pa.date32(), lambda i: dt.date.fromordinal(i + 1)),
        (pa.decimal128(20, 2), lambda i: decimal.Decimal(i) / 4),
    ],
    # Not of functions, whose addresses differ between the workers of pytest-xdist.
    ids=lambda given: str(given) if isinstance(given, pa.DataType) else "",
)
def test_ids_of_every_type(target: Path, kind: pa.DataType, value: Any) -> None:
    """Breaks when ids change, move by a row, or lose their type."""
    given = [None if i % 7 == 3 else value(i) for i in range(N)]
    ids = Ids(given, kind)
    with open_sink(target, n_rows=N, dtype=TABLE, chunk_rows=CHUNK_ROWS, ids=ids) as sink:
        sink.write(0, table())
        sink.commit()
        assert stored_crc32(target, n_rows=N, dtype=TABLE) == sink.crc32
    found = pq.read_table(target)
    assert found.schema.names == ["id", "cluster", "distance"]
    assert found.schema.field("id").type == kind
    assert found["id"].combine_chunks().equals(pa.array(given, kind))
    assert (np.asarray(found["cluster"]) == table()["cluster"]).all()
    assert (np.asarray(found["distance"]) == table()["distance"]).all()


# Breaks when the place of an interruption shows in the file, or ids go on from another row.
@pytest.mark.parametrize("written", [0, 63, 64, 500, 999, 1000])
def test_a_resumed_table_has_the_same_bytes(target: Path, tmp_path: Path, written: int) -> None:
    with open_sink(target, n_rows=N, dtype=TABLE, chunk_rows=CHUNK_ROWS, ids=texts()) as sink:
        sink.write(0, table())
        sink.commit()
    again = tmp_path / "again.parquet"
    with open_sink(again, n_rows=N, dtype=TABLE, chunk_rows=CHUNK_ROWS, ids=texts()) as sink:
        sink.write(0, table()[:written])
        sink.write_cursor({})
        sink.write(sink.next_row, table()[sink.next_row :][:200])  # No cursor claims these.
    with open_sink(again, n_rows=N, dtype=TABLE, resume=True, ids=texts()) as sink:
        assert (
            sink.next_row == sink.durable_rows == (written if written == N else written // 64 * 64)
        )
        sink.write(sink.next_row, table()[sink.next_row :])
        sink.commit()
    assert again.read_bytes() == target.read_bytes()
    assert pq.ParquetFile(target).metadata.num_row_groups == -(-N // CHUNK_ROWS)


# Breaks when a crash while the stream becomes a Parquet file, or right after, cannot be resumed.
@pytest.mark.parametrize("crash", ["rename_durably", "Sink.publish"])
def test_a_crash_during_the_commit(
    target: Path, monkeypatch: pytest.MonkeyPatch, crash: str
) -> None:
    class Crash(BaseException):
        pass

    def end(*_: object) -> None:
        raise Crash

    sink = open_sink(target, n_rows=N, dtype=TABLE, chunk_rows=CHUNK_ROWS, ids=texts())
    sink.write(0, table())
    with monkeypatch.context() as patch:
        patch.setattr(f"streamkm.sinks.base.{crash}", end)
        with pytest.raises(Crash):
            sink.commit()
    sink.close()
    assert not target.exists()
    with open_sink(target, n_rows=N, dtype=TABLE, resume=True, ids=texts()) as sink:
        assert sink.next_row == N
        sink.commit()
    assert pq.read_table(target)["id"].combine_chunks().equals(next_all(texts()))
    assert [path.name for path in target.parent.iterdir()] == ["out.parquet"]


# Breaks when the half of a Parquet file keeps the disk full, or rows are lost with it.
def test_a_disk_that_has_no_room_for_the_parquet_file(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    sink = open_sink(target, n_rows=N, dtype=TABLE, chunk_rows=CHUNK_ROWS, ids=texts())
    sink.write(0, table())
    with monkeypatch.context() as patch:
        patch.setattr("pyarrow.parquet.ParquetWriter.write_batch", full)
        with pytest.raises(OSError, match="No space left"):
            sink.commit()
    sink.close()
    assert not list(target.parent.glob("*.joined"))
    with open_sink(target, n_rows=N, dtype=TABLE, resume=True, ids=texts()) as sink:
        assert sink.next_row == N
        sink.commit()
    assert [path.name for path in target.parent.iterdir()] == ["out.parquet"]


def next_all(ids: Ids) -> pa.Array:
    return pa.concat_arrays(list(ids.batches()))


# Breaks when rows of another table are taken over, or an id that has changed on disk is.
def test_resume_of_other_ids(target: Path) -> None:
    with open_sink(target, n_rows=N, dtype=TABLE, chunk_rows=CHUNK_ROWS, ids=texts()) as sink:
        sink.write(0, table()[:200])
        sink.write_cursor({})
    for other in (None, Ids(list(range(N)), pa.int64())):
        with pytest.raises(ResumeError, match="other columns"):
            open_sink(target, n_rows=N, dtype=TABLE, resume=True, ids=other)
    content = partial_of(target).read_bytes()
    assert content.count(b"row 70") == 1
    partial_of(target).write_bytes(content.replace(b"row 70", b"row 07"))
    with pytest.raises(ResumeError, match="checksum differs"):
        open_sink(target, n_rows=N, dtype=TABLE, resume=True, ids=texts())


def test_two_tables_commit_together(tmp_path: Path) -> None:
    sinks = [
        open_sink(tmp_path / name, n_rows=10, dtype=TABLE, ids=texts(10))
        for name in ("a.parquet", "b.parquet")
    ]
    for sink in sinks:
        sink.write(0, table(10))
    commit_together(sinks)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.parquet", "b.parquet"]


def test_column_of_ids_with_the_name_of_values(target: Path) -> None:
    ids = texts()
    ids.column = "cluster"
    with pytest.raises(ConfigError, match=r"'cluster'.*rename"):
        open_sink(target, n_rows=N, dtype=TABLE, ids=ids)
    assert not list(target.parent.iterdir())


# Breaks when a table is put into a file that has no columns.
def test_columns_are_for_tables_only(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="integers or floats"):
        open_sink(tmp_path / "x.npy", n_rows=N, dtype=TABLE)


def test_pyarrow_that_is_not_installed(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamkm.sinks.registry.find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"needs pyarrow.*streamkm\[parquet\]"):
        open_sink(target, n_rows=N, dtype=TABLE)
