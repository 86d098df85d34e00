"""Parquet files: lists of equal length, and columns of numbers."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from streamkm.errors import ReadError, SourceError
from streamkm.sources import RowRange, open_source
from tests.sources.contract import Case, SourceContract, numbers, read, same_bytes

ROOT = Path(__file__).resolve().parents[2]


def as_table(array: np.ndarray, kind: str) -> pa.Table:
    """`array` as one column of lists, or as columns."""
    if kind == "columns":
        return pa.table({f"f{i}": array[:, i] for i in range(array.shape[1])})
    child = pa.array(array.reshape(-1))
    if kind == "fixed":
        return pa.table({"x": pa.FixedSizeListArray.from_arrays(child, array.shape[1])})
    step, offset_type = array.shape[1], pa.int64() if kind == "large" else pa.int32()
    offsets = pa.array(np.arange(0, array.size + 1, step), offset_type)
    lists = pa.LargeListArray if kind == "large" else pa.ListArray
    return pa.table({"x": lists.from_arrays(offsets, child)})


KINDS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "fixed": ("fixed", "f4", {}),
    "fixed, one group": ("fixed", "f4", {"row_group_size": 1000}),
    "fixed, float16, no dictionary": ("fixed", "f2", {"use_dictionary": False}),
    "list": ("list", "f8", {}),
    "large list, zstd": ("large", "u1", {"compression": "zstd"}),
    "columns": ("columns", "f4", {}),
    "columns, int16, uncompressed": ("columns", "i2", {"compression": "none"}),
}


class TestParquet(SourceContract):
    @pytest.fixture(params=KINDS)
    def case(self, request, tmp_path: Path) -> Case:
        kind, dtype, options = KINDS[request.param]
        path = tmp_path / "x.parquet"
        array = numbers((203, 5), dtype)

        def store(changed: np.ndarray) -> None:
            pq.write_table(as_table(changed, kind), path, **{"row_group_size": 50, **options})

        store(array)
        return Case(array, array.dtype.name, store, lambda: open_source(path), tmp_path)


class TestFolderOfParquet(SourceContract):
    @pytest.fixture
    def case(self, tmp_path: Path) -> Case:
        array = numbers((200, 5))

        def store(changed: np.ndarray) -> None:
            for index, part in enumerate(np.split(changed, 4)):
                pq.write_table(as_table(part, "fixed"), tmp_path / f"{index}.parquet")

        store(array)
        return Case(array, "float32", store, lambda: open_source(tmp_path), tmp_path)


# Breaks when a whole file, or a second copy of a group, is held beside what the spec says.
@pytest.mark.parametrize("kind", ["fixed", "list", "columns"])
def test_scratch_is_what_the_spec_says(tmp_path: Path, kind: str) -> None:
    array = numbers((200_000, 32))
    path = tmp_path / "x.parquet"
    pq.write_table(as_table(array, kind), path, row_group_size=50_000)
    source = open_source(path)
    assert source.spec.block_rows == 50_000
    out = np.empty((50_000, 32), np.float32)
    before, least = pa.total_allocated_bytes(), pa.default_memory_pool().max_memory()
    for rows in RowRange(0, 200_000).split(50_000):
        source.read(rows, out)
        assert same_bytes(out, array[rows.start : rows.stop])
        # A thread of Arrow's may hold what it read for a moment longer.
        end = time.monotonic() + 60
        while pa.total_allocated_bytes() > before + 1000 and time.monotonic() < end:
            time.sleep(0.001)
    peak = pa.default_memory_pool().max_memory()
    assert peak <= max(least, before + source.spec.scratch_bytes)
    assert source.spec.scratch_bytes < 5 * out.nbytes
    assert pa.total_allocated_bytes() <= before + 1000


def refused(path: Path, match: str, **options: Any) -> None:
    with pytest.raises(SourceError, match=match) as caught:
        open_source(path, **options)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_chosen_columns(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    x, y = numbers((30, 3)), numbers((30, 2), "i2")
    pq.write_table(
        pa.table(
            {
                "id": [f"row {i}" for i in range(30)],
                "key": np.arange(30),
                "x": as_table(x, "fixed")["x"],
                "other": as_table(x[:, :2].copy(), "list")["x"],
                **{f"y{i}": y[:, i] for i in range(2)},
                "z": x[:, 0].astype("f8"),
            }
        ),
        path,
    )
    assert same_bytes(read(open_source(path, columns=["x"]), 0, 30), x)
    assert same_bytes(read(open_source(path, columns="other"), 3, 9), x[3:9, :2])
    assert same_bytes(read(open_source(path, columns=["y1", "y0"]), 0, 30), y[:, ::-1].copy())
    wide = np.stack([x[:, 0].astype("f8"), y[:, 0].astype("f8")], axis=1)
    assert same_bytes(read(open_source(path, columns=["z", "y0"]), 0, 30), wide)
    assert open_source(path, columns=["y0"]).fingerprint() != (
        open_source(path, columns=["y1"]).fingerprint()
    )
    refused(path, "not clear, choose by columns, and ids by id_column='id'; there are id string")
    refused(path, "there is no column 'w'", columns=["w"])
    refused(path, "column 'id' holds no numbers but string", columns=["id"])
    refused(path, "'x' holds lists, which are whole rows", columns=["x", "y0"])
    refused(path, "once each, not y0, y0", columns=["y0", "y0"])
    refused(path, "once each", columns=[])
    refused(path, "'key' holds int64, others floats, which would round it", columns=["key", "z"])
    refused(path, "dataset is for .zarr .h5", dataset="x")
    refused(path, "offset is for raw files", columns=["x"], offset=8)


# Breaks when the numbers of the rows are clustered beside what the rows hold.
@pytest.mark.parametrize("index_name", [None, "key"])
def test_the_index_of_a_data_frame_is_no_feature(tmp_path: Path, index_name) -> None:
    path = tmp_path / "x.parquet"
    x = numbers((30, 3), "i8")
    index = pd.Index(range(5, 35)).append(pd.Index([]))[np.argsort(x[:, 0])]
    frame = pd.DataFrame(x, columns=list("abc"), index=pd.Index(index, name=index_name))
    frame.to_parquet(path)
    stored = index_name or "__index_level_0__"
    assert stored in pq.read_schema(path).names
    source = open_source(path)
    assert source.spec.feature_names == ("a", "b", "c")
    assert same_bytes(read(source, 0, 30), x)
    (note,) = source.notes()
    assert note.startswith(f"{path}: {stored} is the index of a data frame, and no feature")
    chosen = open_source(path, columns=["a", stored])
    assert same_bytes(read(chosen, 0, 30)[:, 1].copy(), index.to_numpy())
    assert chosen.notes() == []


def test_an_index_is_known_by_its_name_or_by_whole_metadata(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    table = pa.table({"a": [1.0], "__index_level_0__": [2.0], "k": [3.0]})
    for metadata, names in (
        (None, ("a", "k")),
        (b'{"index_columns": ["k"]}', ("a",)),
        (b'{"index_columns": [{"kind": "range", "start": 0, "stop": 1}]}', ("a", "k")),
        (b"{", ("a", "k")),
        (b"[]", ("a", "k")),
        (b'{"index_columns": null}', ("a", "k")),
    ):
        changed = table.replace_schema_metadata({"pandas": metadata} if metadata else None)
        pq.write_table(changed, path)
        assert open_source(path).spec.feature_names == names
    pq.write_table(pa.table({"__index_level_0__": [2.0]}), path)
    refused(path, "not clear, choose by columns; there are __index_level_0__ double")


def test_a_name_that_appears_twice(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    table = pa.Table.from_arrays([pa.array([1.0])] * 3, names=["a", "b", "b"])
    pq.write_table(table, path)
    refused(path, "two columns have the same name, 'b'; rename one; there are a double, b double")
    refused(path, "two columns have the same name, 'b'", columns=["a"])


def nullable(values: list[Any], kind: pa.DataType, path: Path, **options: Any) -> None:
    pq.write_table(pa.table({"x": pa.array(values, kind)}), path, row_group_size=10, **options)


#: Kinds of lists of two elements, by the type of an element.
LISTS = {
    "fixed": lambda kind: pa.list_(kind, 2),
    "list": pa.list_,
    "large": pa.large_list,
}


# Breaks when a null passes for 0, whatever part of a row it is, or takes another row's place.
@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "i1", "u2", "i4", "i8"])
@pytest.mark.parametrize("kind", [*LISTS, "columns"])
def test_nulls_are_nan(tmp_path: Path, kind: str, dtype: str) -> None:
    path = tmp_path / "x.parquet"
    element = pa.from_numpy_dtype(np.dtype(dtype))
    whole = np.arange(60).reshape(30, 2).astype(dtype)
    rows: list[Any] = whole.tolist()
    rows[4], rows[13], rows[29] = [8, None], None, [None, None]
    wide = {"i1": "f4", "u2": "f4", "i4": "f8", "i8": "f8"}.get(dtype, dtype)
    expected = whole.astype(wide)
    expected[4, 1] = expected[13] = expected[29] = np.nan
    if kind == "columns":
        pairs = [(None, None) if row is None else row for row in rows]
        one, other = (pa.array(list(column), element) for column in zip(*pairs, strict=True))
        pq.write_table(pa.table({"x": one, "y": other}), path, row_group_size=10)
    else:
        nullable(rows, LISTS[kind](element), path)
    source = open_source(path)
    assert source.spec.dtype == np.dtype(wide).name
    for start, stop in ((0, 30), (12, 15), (13, 14), (5, 30), (29, 30)):
        assert np.array_equal(read(source, start, stop), expected[start:stop], equal_nan=True)
    (note,) = source.notes()
    assert note.startswith(f"{path}: 5 nulls in x, y:" if kind == "columns" else f"{path}: ")
    assert "counts as a row with NaN" in note
    assert ("is read as" in note) is (wide != dtype)


# Breaks when the length of rows is asked of a list that is none.
def test_the_first_lists_may_be_nulls(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    nullable([None] * 3000 + [[1.0, 2.0]], pa.list_(pa.float32()), path)
    rows = read(open_source(path), 0, 3001)
    assert np.isnan(rows[:3000]).all()
    assert rows[3000].tolist() == [1, 2]
    nullable([None] * 3000, pa.list_(pa.float32()), path)
    refused(path, "holds empty lists, or only nulls")


# Breaks when integers are widened for nulls that are not there: types and results would change.
def test_integers_without_nulls_stay_what_they_are(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    nullable([1, 2, 3], pa.int16(), path)
    assert open_source(path).spec.dtype == "int16"
    assert open_source(path).notes() == []
    table = pa.table({"x": pa.array([1, 2, 3], pa.int16()), "y": pa.array(["a", None, "b"])})
    pq.write_table(table, path)
    assert open_source(path, columns=["x"]).spec.dtype == "int16"


def test_nulls_of_integers_that_the_file_does_not_count_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    nullable([*range(15), None], pa.int16(), path, write_statistics=False)
    source = open_source(path)
    assert source.spec.dtype == "int16"
    assert read(source, 0, 10)[9, 0] == 9
    message = r"^[^:]*x\.parquet: column 'x' holds 1 null in row group 1, and int16 has no number"
    with pytest.raises(ReadError, match=message):
        read(source, 0, 16)
    nullable([[1, 2], [3, None]], pa.list_(pa.int16(), 2), path, write_statistics=False)
    with pytest.raises(ReadError, match="holds 1 null in row group 0"):
        read(open_source(path), 0, 2)


# Breaks when large integers are rounded because a null is among them.
def test_large_integers_beside_nulls(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    nullable([2**53 - 1, -(2**53) + 1, None], pa.int64(), path)
    assert read(open_source(path), 0, 2)[:, 0].tolist() == [2.0**53 - 1, 1 - 2.0**53]
    nullable([2**53 + 1, None], pa.int64(), path)
    with pytest.raises(ReadError, match=r"holds 9007199254740992: .* exact below 2\^53; fill"):
        read(open_source(path), 0, 2)


# Breaks when a shard with nulls, which pandas writes as floats, is of another type than the others.
def test_shards_of_integers_some_of_which_are_null(tmp_path: Path) -> None:
    for index, kind in enumerate((pa.int64(), pa.int64(), pa.float64())):
        values = [1, 2, 3 if index == 0 else None]
        nullable(values, kind, tmp_path / f"{index}.parquet")
    source = open_source(tmp_path)
    assert source.spec.dtype == "float64"
    expected = np.array([1, 2, 3, 1, 2, np.nan, 1, 2, np.nan])
    assert np.array_equal(read(source, 0, 9)[:, 0], expected, equal_nan=True)
    nullable([1.0, 2.0], pa.float32(), tmp_path / "2.parquet")
    with pytest.raises(SourceError, match="shards must agree in dtype"):
        open_source(tmp_path)


def test_lists_of_different_lengths(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"x": [[1.0, 2.0], [1.0, 2.0], [1.0]]}), path)
    with pytest.raises(
        ReadError, match="a list of 1 elements in row group 0, the first list has 2"
    ):
        read(open_source(path), 0, 3)
    pq.write_table(pa.table({"x": pa.array([[], [1.0]])}), path)
    refused(path, "holds empty lists")


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1" + bytes(400) + b"PAR1"])
def test_files_that_are_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.parquet").write_bytes(content)
    refused(tmp_path / "x.parquet", "cannot be opened as Parquet")
    pq.write_table(pa.table({"x": pa.array([], pa.float32())}), tmp_path / "x.parquet")
    refused(tmp_path / "x.parquet", "has no rows")


# Breaks when a file that changes under a run gives rows of both.
def test_damage_after_opening(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(as_table(numbers((4000, 5)), "fixed"), path, use_dictionary=False)
    stat = path.stat()
    source = open_source(path)
    whole = path.read_bytes()

    def keep_time() -> None:
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))

    broken = bytearray(whole)
    broken[4:40] = bytes(36)
    path.write_bytes(broken)
    keep_time()
    with pytest.raises(ReadError, match=r"x\.parquet: rows 0:4000 cannot be read"):
        read(source, 0, 4000)
    path.write_bytes(whole[:1000])
    with pytest.raises(ReadError, match=r"x\.parquet: has been replaced or changed"):
        read(source, 0, 4000)
    path.unlink()
    with pytest.raises(ReadError, match=r"x\.parquet: rows 0:1 cannot be read"):
        read(source, 0, 1)


def test_without_pyarrow(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "x.parquet").write_bytes(b"")
    monkeypatch.delitem(sys.modules, "streamkm.sources.parquet", raising=False)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    refused(tmp_path / "x.parquet", r"needs pyarrow.*install streamkm\[parquet\]")


# Of many columns the few that are in the way are named, wherever they are.
def test_columns_that_are_unlike_the_others_are_named(tmp_path):
    path = tmp_path / "x.parquet"
    columns = {f"y{i:02}": np.zeros(3) for i in range(20)}
    table = pa.table({**columns, "id": ["a", "b", "c"], "day": np.arange(3)})
    pq.write_table(table, path)
    odd = r"not clear \(most are double, but not id string, day int64\)"
    refused(path, rf"{odd}, choose by columns, and ids by id_column='id'; there are")
    pq.write_table(table.drop_columns("day"), path)
    refused(path, r"but not id string\), name the ids by id_column='id', or choose by columns")
    assert open_source(path, id_column="id").spec.n_features == 20
    pq.write_table(table.append_column("town", [["x", "y", "z"]]), path)
    refused(path, r"town string\), choose by columns; there are")
    refused(path, r"day int64, town string\), choose by columns; there are", id_column="id")


DAMAGED_STATISTICS = """
import subprocess
import sys
from contextlib import suppress
import time
from pathlib import Path
from streamkm.errors import SourceError
from streamkm.sources.parquet import ParquetSource
path = Path(sys.argv[1])
whole = path.read_bytes()
start = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
for at in range(start, start + 64):
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    with suppress(SourceError):
        ParquetSource(path).close()
"""


# Breaks where the metadata of a column are asked for: pyarrow ends the process on a size in its
# statistics that does not fit, by an exception of C++ that it does not translate.
def test_damaged_statistics_do_not_end_the_process(tmp_path):
    values = pa.array(np.arange(60, dtype=np.float32))
    table = pa.table({"x": pa.FixedSizeListArray.from_arrays(values, 3)})
    pq.write_table(table, tmp_path / "x.parquet", row_group_size=10)
    done = subprocess.run(
        [sys.executable, "-c", DAMAGED_STATISTICS, str(tmp_path / "x.parquet")],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
