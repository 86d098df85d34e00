"""Columns beside the features: of files, of several files, and in ranges."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest

from streamkm.errors import ReadError
from streamkm.sources import BesideReader, RowRange, beside_of, beside_row_bytes, open_source

N = 100


def table(start: int = 0, **more: pa.Array) -> pa.Table:
    numbers = range(start, start + N)
    return pa.table(
        {
            "id": [f"row {i}" for i in numbers],
            "x": pa.FixedSizeListArray.from_arrays(pa.array(np.arange(2.0 * N)), 2),
            "kind": pa.array(["a", None, "b", "c"] * (N // 4)).dictionary_encode(),
            "tags": [["t"] * (i % 3) for i in numbers],
            **more,
        }
    )


def write(path: Path, rows: pa.Table) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(rows, path, row_group_size=33)
    else:
        with pa.ipc.new_file(path, rows.schema) as file:
            file.write_table(rows, max_chunksize=33)
    return path


def plain(rows: pa.Table) -> dict[str, list[object]]:
    return {name: rows.column(name).to_pylist() for name in rows.schema.names if name != "x"}


# Breaks when ids, or dictionaries, or what stands in lists does not come along.
@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
@pytest.mark.parametrize("ranges", [[(0, 100)], [(0, 1), (1, 34), (40, 41), (70, 100)], [(65, 70)]])
def test_columns_of_a_range(suffix, ranges, tmp_path) -> None:
    path = write(tmp_path / f"x.{suffix}", table())
    source = open_source(path, columns=["x"], id_column="id")
    beside = beside_of(source)
    assert beside is not None
    assert beside.list_column == "x"
    assert beside.schema.names == ["id", "kind", "tags"]
    assert beside.schema.field("kind").type == pa.string()
    assert beside_row_bytes(beside) >= 8
    reader = BesideReader(beside, ranges[0][0], source.name)
    for start, stop in ranges:
        found = reader.read(RowRange(start, stop))
        assert plain(found) == plain(table().slice(start, stop - start))
    source.close()


# Breaks when the columns of one file stand beside the rows of another.
def test_columns_of_several_files(tmp_path) -> None:
    for part in range(3):
        more = {"only one has it": pa.array(range(N))} if part == 1 else {}
        score = pa.array(np.arange(N), pa.int32() if part == 2 else pa.int64())
        write(tmp_path / f"{part}.parquet", table(part * N, score=score, **more))
    source = open_source(tmp_path, columns=["x"])
    beside = beside_of(source)
    assert beside is not None
    assert beside.schema.names == ["id", "kind", "tags"]
    reader = BesideReader(beside, 95, "all")
    ids = reader.read(RowRange(95, 205)).column("id").to_pylist()
    assert ids == [f"row {i}" for i in range(95, 205)]
    ids = reader.read(RowRange(299, 300)).column("id").to_pylist()
    assert ids == ["row 299"]
    with pytest.raises(ReadError, match="columns end at row 300"):
        reader.read(RowRange(300, 301))
    source.close()


def test_columns_that_are_features_each(tmp_path) -> None:
    numbers = pa.table({"b": np.arange(N, dtype=np.float32), "a": np.ones(N, np.float32)})
    rows = numbers.append_column("name", pa.array(["n"] * N))
    source = open_source(write(tmp_path / "x.parquet", rows), columns=["a", "b"])
    beside = beside_of(source)
    assert beside is not None
    assert (beside.list_column, beside.schema.names) == ("", ["name"])
    source.close()


def test_what_is_no_table_has_none(tmp_path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((4, 2)))
    assert beside_of(open_source(tmp_path / "x.npy")) is None
    pq.write_table(table().select(["x"]), tmp_path / "x.parquet")
    beside = beside_of(open_source(tmp_path / "x.parquet"))
    assert beside is not None
    assert not beside.schema.names


def test_a_file_that_changed_is_told(tmp_path) -> None:
    path = write(tmp_path / "x.feather", table())
    source = open_source(path, columns=["x"])
    beside = beside_of(source)
    assert beside is not None
    feather.write_feather(table().slice(3), path)
    with pytest.raises(ReadError, match=r"x\.feather"):
        list(beside.batches())
