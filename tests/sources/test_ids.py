"""Ids: a column of Parquet or Arrow that names rows."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from streamkm.errors import ReadError, SourceError
from streamkm.sources import ids_of, open_source, parts_of
from streamkm.sources.ids import id_notes, id_row_bytes

if TYPE_CHECKING:
    from pathlib import Path

N = 1000


def written(path: Path, ids: Any, **columns: Any) -> Path:
    n_rows = len(ids)
    columns = columns or {"a": np.arange(n_rows, dtype="f4"), "b": np.ones(n_rows, "f4")}
    pq.write_table(pa.table({"id": ids, **columns}), path, row_group_size=300)
    return path


def read_all(path: Path, start: int = 0, column: str = "id") -> list[Any]:
    source = open_source(path, id_column=column)
    ids = ids_of(source)
    assert ids is not None
    values: list[Any] = pa.chunked_array(list(ids.batches(start)), ids.kind).to_pylist()
    source.close()
    return values


TEXTS = [f"row {i}" for i in range(N)]


@pytest.mark.parametrize("start", [0, 1, 299, 300, 301, 999])
def test_ids_from_any_row_on(tmp_path: Path, start: int) -> None:
    assert read_all(written(tmp_path / "x.parquet", TEXTS), start) == TEXTS[start:]


@pytest.mark.parametrize("start", [0, 299, 300, 999])
def test_ids_of_an_arrow_file(tmp_path: Path, start: int) -> None:
    table = pa.table({"id": TEXTS, "a": np.zeros(N), "b": np.ones(N)})
    with pa.ipc.new_file(tmp_path / "x.arrow", table.schema) as writer:
        writer.write_table(table, max_chunksize=300)
    assert read_all(tmp_path / "x.arrow", start) == TEXTS[start:]


# Breaks when ids of a shard are lost or doubled where the next one begins.
@pytest.mark.parametrize("start", [0, 399, 400, 401, 1399])
def test_ids_of_shards(tmp_path: Path, start: int) -> None:
    written(tmp_path / "part-2.parquet", TEXTS[:400])
    written(tmp_path / "part-10.parquet", TEXTS)
    assert read_all(tmp_path, start) == (TEXTS[:400] + TEXTS)[start:]


# Breaks when codes are given out instead of the ids that they stand for.
def test_ids_that_are_stored_as_a_dictionary(tmp_path: Path) -> None:
    ids = pa.array(["x", "y", None, "x"] * 10).dictionary_encode()
    path = written(tmp_path / "x.parquet", ids)
    assert read_all(path) == ["x", "y", None, "x"] * 10


# Breaks when the dictionary is left out, or a stream's first one serves all batches.
@pytest.mark.parametrize("new", [pa.ipc.new_file, pa.ipc.new_stream])
@pytest.mark.parametrize("start", [0, 5, 30, 41])
def test_ids_that_an_arrow_file_stores_as_a_dictionary(
    tmp_path: Path, new: Any, start: int
) -> None:
    kind = pa.string_view() if start == 5 else pa.string()
    parts: list[list[Any]] = [["x", "y", None, "x"], ["y", "z", "x", "z"], ["w", None, "x", "y"]]
    if new is pa.ipc.new_file:  # There a dictionary may grow, but nothing in it may change.
        parts[1:] = [["x", "y", "z", None], ["x", "y", "z", "w"]]
    entries = [list(dict.fromkeys(filter(None, part))) for part in parts]
    texts = [text for part in parts for text in part * 5]
    with new(
        tmp_path / "x.arrow",
        pa.schema(
            {
                # A dictionary before it, so that its own is not the first.
                "other": pa.dictionary(pa.int8(), pa.string()),
                "id": pa.dictionary(pa.int32(), kind),
                "a": pa.list_(pa.float32(), 2),
            }
        ),
        options=pa.ipc.IpcWriteOptions(emit_dictionary_deltas=new is pa.ipc.new_file),
    ) as writer:
        for part, listed in zip(parts, entries, strict=True):
            codes = pa.array(
                [listed.index(text) if text else None for text in part * 5], pa.int32()
            )
            ids = pa.DictionaryArray.from_arrays(codes, pa.array(listed, kind))
            other = pa.array(["p", "q"] * 10).cast(pa.dictionary(pa.int8(), pa.string()))
            rows = pa.FixedSizeListArray.from_arrays(np.zeros(40, "f4"), 2)
            writer.write_batch(pa.record_batch([other, ids, rows], ["other", "id", "a"]))
    assert read_all(tmp_path / "x.arrow", start) == texts[start:]


# Breaks where pyarrow cannot count or cut views: polars writes texts as such.
@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
def test_ids_that_are_views(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x{suffix}"
    texts: list[Any] = [f"a row with a long name, {i}" for i in range(N)]
    texts[1], texts[2], texts[-1] = "a", None, texts[0]
    kinds: dict[pa.DataType, list[Any]] = {
        pa.string_view(): texts,
        pa.binary_view(): [text and text.encode() for text in texts],
    }
    for kind, ids in kinds.items():
        table = pa.table({"id": pa.array(ids, kind), "a": np.zeros(N), "b": np.ones(N)})
        if suffix == ".parquet":
            pq.write_table(table, path, row_group_size=300)
        else:
            with pa.ipc.new_file(path, table.schema) as writer:
                writer.write_table(table)
        assert read_all(path, 7) == ids[7:]
        column = ids_of(open_source(path, id_column="id"))
        assert column is not None
        assert column.kind in (pa.large_string(), pa.large_binary())
        nulls, repeats = id_notes(column)
        assert "1 row with a null id" in nulls
        assert "1 row with an id" in repeats


def test_ids_are_no_feature(tmp_path: Path) -> None:
    path = written(tmp_path / "x.parquet", np.arange(N), a=np.arange(N), b=np.zeros(N, np.int64))
    source = open_source(path, id_column="id")
    assert source.spec.n_features == 2
    source.close()
    source = open_source(path)
    assert source.spec.n_features == 3
    assert ids_of(source) is None
    source.close()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"id_column": "name"}, r"no column 'name'; there are id string, a float, b float"),
        ({"id_column": "id", "columns": ["id", "a"]}, "'id' cannot be both"),
        ({"id_column": "a"}, r"column 'a' holds float, ids are"),
    ],
)
def test_columns_that_cannot_be_ids(tmp_path: Path, options: Any, says: str) -> None:
    with pytest.raises(SourceError, match=says):
        open_source(written(tmp_path / "x.parquet", TEXTS), **options)


def test_ids_are_for_parquet(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((3, 2), "f4"))
    with pytest.raises(SourceError, match=r"is for \.parquet \.arrow .*, not for \.npy"):
        open_source(tmp_path / "x.npy", id_column="id")


# Breaks when ids and files are lost where stored values are read as no data.
def test_ids_of_rows_with_no_data(tmp_path: Path) -> None:
    written(tmp_path / "a.parquet", TEXTS)
    written(tmp_path / "b.parquet", TEXTS)
    source = open_source(tmp_path, id_column="id", nodata=[1.0])
    ids = ids_of(source)
    assert ids is not None
    assert sum(map(len, ids.batches())) == 2 * N
    assert [part.first_row for part in parts_of(source)] == [0, N]
    source.close()


# Breaks when the column of ids is told to be an index that nobody has chosen.
def test_index_of_a_data_frame_as_ids(tmp_path: Path) -> None:
    table = pa.table({"__index_level_0__": TEXTS, "a": np.zeros(N), "b": np.ones(N)})
    pq.write_table(table, tmp_path / "x.parquet")
    assert read_all(tmp_path / "x.parquet", 990, "__index_level_0__") == TEXTS[990:]
    source = open_source(tmp_path / "x.parquet", id_column="__index_level_0__")
    assert source.notes() == []
    source.close()


def test_shards_whose_ids_differ_in_type(tmp_path: Path) -> None:
    written(tmp_path / "a.parquet", TEXTS)
    written(tmp_path / "b.parquet", np.arange(N))
    source = open_source(tmp_path, id_column="id")
    with pytest.raises(SourceError, match=r"a\.parquet has string.*b\.parquet has int64"):
        ids_of(source)
    source.close()


# Breaks when the same texts are refused because pandas wrote some of them and pyarrow others.
@pytest.mark.parametrize("turned", [False, True])
def test_shards_whose_ids_are_texts_of_several_types(tmp_path: Path, turned: bool) -> None:
    kinds = [pa.string(), pa.large_string(), pa.string_view()]
    for name, kind in zip("abc", kinds[::-1] if turned else kinds, strict=True):
        written(tmp_path / f"{name}.parquet", pa.array(TEXTS, kind))
    source = open_source(tmp_path, id_column="id")
    ids = ids_of(source)
    assert ids is not None
    assert ids.kind == pa.large_string()
    assert all(batch.type == ids.kind for batch in ids.batches(5))
    assert read_all(tmp_path, 5) == (3 * TEXTS)[5:]
    source.close()


def test_file_that_changes_under_the_ids(tmp_path: Path) -> None:
    path = written(tmp_path / "x.parquet", TEXTS)
    source = open_source(path, id_column="id")
    ids = ids_of(source)
    assert ids is not None
    written(path, TEXTS[:900])
    with pytest.raises(ReadError, match="changed"):
        list(ids.batches())
    source.close()


# ---- null and repeated ids ---------------------------------------------------


def notes_on(path: Path, max_bytes: int | None = None) -> list[str]:
    source = open_source(path, id_column="id")
    ids = ids_of(source)
    assert ids is not None
    notes = id_notes(ids, max_bytes)
    source.close()
    return notes


@pytest.mark.parametrize(
    "ids",
    [TEXTS, np.arange(N), [dt.date.fromordinal(i + 1) for i in range(N)]],
    ids=["texts", "integers", "dates"],
)
def test_ids_that_repeat_or_are_null_are_counted(tmp_path: Path, ids: Any) -> None:
    assert notes_on(written(tmp_path / "a.parquet", ids)) == []
    spoiled: list[Any] = list(ids)
    spoiled[990] = spoiled[991] = spoiled[3]
    spoiled[10] = spoiled[600] = None
    nulls, repeats = notes_on(written(tmp_path / "b.parquet", spoiled))
    assert nulls == "2 rows with a null id in column 'id', kept so"
    assert repeats.startswith("2 rows with an id in column 'id' that an earlier row has")


def test_ids_beyond_memory_are_not_checked_and_that_is_told(tmp_path: Path) -> None:
    path = written(tmp_path / "x.parquet", [TEXTS[0], None, *TEXTS[:-2]])
    notes = notes_on(path, max_bytes=9000)
    assert notes[0] == "1 row with a null id in column 'id', kept so"
    assert "repeat was not checked" in notes[1]
    assert len(notes) == 2


def test_bytes_of_an_id(tmp_path: Path) -> None:
    source = open_source(written(tmp_path / "x.parquet", ["x" * 100] * N), id_column="id")
    ids = ids_of(source)
    assert ids is not None
    assert 104 <= id_row_bytes(ids) <= 106  # Its letters, and where they begin.
    source.close()
