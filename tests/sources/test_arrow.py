"""Arrow's own files: both formats, compressed or not, and the column rules of Parquet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import feather

from streamkm.errors import NoRowsError, ReadError, SourceError
from streamkm.sources import RowRange, open_source
from tests.sources.contract import Case, SourceContract, numbers, read, same_bytes
from tests.sources.test_parquet import as_table


def write(path: Path, table: pa.Table, rows: int = 50, **options: Any) -> None:
    """`table` in batches of `rows`, in the format that the suffix says."""
    new = pa.ipc.new_stream if path.suffix == ".arrows" else pa.ipc.new_file
    settings = pa.ipc.IpcWriteOptions(**options)
    with pa.OSFile(str(path), "wb") as file, new(file, table.schema, options=settings) as out:
        out.write_table(table, max_chunksize=rows)


KINDS: dict[str, tuple[str, str, str, dict[str, Any]]] = {
    "fixed": (".arrow", "fixed", "f4", {}),
    "list, lz4": (".feather", "list", "f8", {"compression": "lz4"}),
    "large list, zstd": (".feather", "large", "u1", {"compression": "zstd"}),
    "columns": (".arrow", "columns", "f4", {}),
    "columns, int16, zstd": (".arrow", "columns", "i2", {"compression": "zstd"}),
    "stream, float16": (".arrows", "fixed", "f2", {}),
    "stream, lz4": (".arrows", "columns", "f4", {"compression": "lz4"}),
}


class TestArrow(SourceContract):
    @pytest.fixture(params=KINDS)
    def case(self, request, tmp_path: Path) -> Case:
        suffix, kind, dtype, options = KINDS[request.param]
        path = tmp_path / f"x{suffix}"
        array = numbers((203, 5), dtype)

        def store(changed: np.ndarray) -> None:
            write(path, as_table(changed, kind), **options)

        store(array)
        return Case(array, array.dtype.name, store, lambda: open_source(path), tmp_path)


class TestFolderOfFeather(SourceContract):
    """Shards as `pyarrow.feather` writes them."""

    @pytest.fixture
    def case(self, tmp_path: Path) -> Case:
        array = numbers((200, 5))

        def store(changed: np.ndarray) -> None:
            for index, part in enumerate(np.split(changed, [30, 120])):
                feather.write_feather(as_table(part, "columns"), tmp_path / f"{index}.feather")

        store(array)
        return Case(array, "float32", store, lambda: open_source(tmp_path), tmp_path)


# Breaks when a batch is taken for one of the usual length.
def test_batches_of_any_length(tmp_path: Path) -> None:
    array = numbers((100, 3))
    schema = as_table(array, "fixed").schema
    with pa.OSFile(str(tmp_path / "x.arrow"), "wb") as file, pa.ipc.new_file(file, schema) as out:
        for part in np.split(array, [1, 1, 40, 99]):
            out.write_table(as_table(part, "fixed"))
    source = open_source(tmp_path / "x.arrow")
    assert source.spec.block_rows == 59
    assert source.spec.layout == "arrow, 4 record batches of up to 59, column x"
    assert same_bytes(read(source, 0, 100), array)
    assert same_bytes(read(source, 39, 100), array[39:])


# Breaks when a file is read from its front: polars begins its files with a schema in no message.
@pytest.mark.parametrize("compression", [None, "lz4"])
def test_the_footer_says_where_batches_lie(tmp_path: Path, compression: str | None) -> None:
    array = numbers((120, 3))
    path = tmp_path / "x.arrow"
    write(path, as_table(array, "columns"), compression=compression)
    content = bytearray(path.read_bytes())
    size = int.from_bytes(content[12:16], "little")
    content[8:16] = b"\4\0\0\0\xf2\xff\xff\xff"  # in place of mark and length
    path.write_bytes(content)
    source = open_source(path)
    assert same_bytes(read(source, 0, 120), array)
    assert source.spec.block_rows == 50
    # A damaged footer that leads to no message is an error.
    at = content.index((16 + size).to_bytes(8, "little"), len(content) - 800)
    content[at : at + 8] = (24 + size).to_bytes(8, "little")
    path.write_bytes(content)
    with pytest.raises(SourceError, match=f"no message at byte {24 + size}"):
        open_source(path)


# The stream format under the other's suffix, as Hugging Face's datasets have it.
def test_stream_format_by_its_content(tmp_path: Path) -> None:
    array = numbers((100, 3))
    write(tmp_path / "x.arrows", as_table(array, "fixed"))
    (tmp_path / "x.arrows").rename(tmp_path / "data-00000-of-00001.arrow")
    assert same_bytes(read(open_source(tmp_path), 0, 100), array)


# Breaks when columns beside the chosen ones are decoded, or dictionaries of theirs are missed.
def test_chosen_columns_beside_others(tmp_path: Path) -> None:
    array, path = numbers((60, 3)), tmp_path / "x.feather"
    table = pa.table(
        {
            "id": [f"row {i}" for i in range(60)],
            "kind": pa.array(["a", "b", "c"] * 20).dictionary_encode(),
            "x": as_table(array, "fixed")["x"],
            **{f"y{i}": array[:, i] for i in range(3)},
        }
    )
    write(path, table, rows=25, compression="zstd")
    assert same_bytes(read(open_source(path), 0, 60), array)
    chosen = open_source(path, columns=["y2", "y0"])
    assert same_bytes(read(chosen, 20, 60), np.ascontiguousarray(array[20:, [2, 0]]))
    with pytest.raises(SourceError, match="column 'kind' holds no numbers but dictionary"):
        open_source(path, columns=["kind"])
    with pytest.raises(SourceError, match="there is no column 'z'; there are id string"):
        open_source(path, columns=["z"])


# Breaks when pyarrow waits for the dictionary of a column that is not asked for.
@pytest.mark.parametrize("suffix", [".arrow", ".arrows"])
def test_dictionaries_within_other_columns(tmp_path: Path, suffix: str) -> None:
    array = numbers((40, 3))
    texts = pa.array(["p", "q", None, "p"] * 10).dictionary_encode()
    ends = pa.array(range(41), pa.int32())
    others = {
        "plain": texts,
        "list": pa.ListArray.from_arrays(ends, texts),
        "large list": pa.LargeListArray.from_arrays(ends.cast(pa.int64()), texts),
        "fixed list": pa.FixedSizeListArray.from_arrays(texts, 1),
        "struct": pa.StructArray.from_arrays([texts], ["k"]),
        "map": pa.MapArray.from_arrays(ends, pa.array(range(40)), texts),
        "lists": pa.ListArray.from_arrays(ends, pa.FixedSizeListArray.from_arrays(texts, 1)),
    }
    table = as_table(array, "fixed")
    for name, column in others.items():
        table = table.append_column(name, column)
    path = tmp_path / f"x{suffix}"
    write(path, table)
    source = open_source(path, columns=table.column_names[:1])
    assert same_bytes(read(source, 0, 40), array)


# Breaks when a batch takes more memory than the plan has for it.
def test_scratch_holds_a_batch(tmp_path: Path) -> None:
    array = numbers((200_000, 16))
    write(tmp_path / "x.arrow", as_table(array, "fixed"), rows=100_000, compression="zstd")
    source = open_source(tmp_path / "x.arrow")
    out = np.empty((100_000, 16), np.float32)
    pool = pa.default_memory_pool()
    before, least = pool.bytes_allocated(), pool.max_memory()
    source.read(RowRange(100_000, 200_000), out)
    assert same_bytes(out, array[100_000:])
    assert pool.max_memory() <= max(least, before + source.spec.scratch_bytes)
    assert out.nbytes < source.spec.scratch_bytes < 6 * out.nbytes


# Breaks when the columns of a shard in another order are joined by position.
def test_columns_go_by_their_names(tmp_path: Path) -> None:
    a, b = numbers((30, 2)), numbers((20, 2))
    write(tmp_path / "0.arrow", pa.table({"x": a[:, 0], "y": a[:, 1]}))
    write(tmp_path / "1.arrow", pa.table({"y": b[:, 1], "x": b[:, 0]}), compression="lz4")
    source = open_source(tmp_path)
    assert source.spec.feature_names == ("x", "y")
    assert same_bytes(read(source, 0, 50), np.concatenate([a, b]))


# Breaks when integers with nulls lose them, or when an index counts as a feature.
def test_integers_with_nulls_and_the_index_of_a_data_frame(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"a": [1, 2, 3], "b": [4, None, 6]}, index=[7, 8, 9], dtype="Int64")
    write(tmp_path / "x.feather", pa.Table.from_pandas(frame))
    source = open_source(tmp_path / "x.feather")
    assert source.spec.feature_names == ("a", "b")
    assert source.spec.dtype == "float64"
    assert np.array_equal(
        read(source, 0, 3), np.array([[1, 4], [2, np.nan], [3, 6]]), equal_nan=True
    )
    assert any("index of a data frame" in note for note in source.notes())


# Breaks when a null passes for 0, as the memory behind it reads.
def test_nulls(tmp_path: Path) -> None:
    rows: list[Any] = [[float(i), 2.0] for i in range(20)]
    rows[13] = [1.0, None]
    rows[17] = None
    for kind in (pa.list_(pa.float32(), 2), pa.list_(pa.float32())):
        table = pa.table({"text": [None] * 20, "x": pa.array(rows, kind)})
        write(tmp_path / "x.arrow", table, rows=8)
        source = open_source(tmp_path / "x.arrow")
        got = read(source, 0, 20)
        assert np.isnan(got).sum() == 3
        assert np.isnan(got[13]).tolist() == [False, True]
        assert np.isnan(got[17]).all()
        (note,) = source.notes()
        assert f"{tmp_path}/x.arrow: 2 nulls in x: a row that holds one counts as a row" in note


def test_lists_of_several_lengths(tmp_path: Path) -> None:
    write(tmp_path / "x.arrow", pa.table({"x": [[1.0, 2.0], [3.0]]}))
    source = open_source(tmp_path / "x.arrow")
    with pytest.raises(ReadError, match="a list of 1 elements in record batch 0"):
        read(source, 0, 2)


def test_no_rows(tmp_path: Path) -> None:
    write(tmp_path / "x.arrow", as_table(numbers((5, 2))[:0], "columns"))
    with pytest.raises(NoRowsError, match="no rows"):
        open_source(tmp_path / "x.arrow")


def batch_ends(path: Path) -> set[int]:
    """Where the batches of a stream end, by pyarrow's own reader."""
    ends = set()
    with pa.OSFile(str(path)) as file:
        pa.ipc.read_message(file)
        while file.tell() < file.size() - 8:
            pa.ipc.read_message(file)
            ends.add(file.tell())
    return ends


@pytest.mark.parametrize("suffix", [".arrow", ".arrows"])
def test_truncated_anywhere(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x{suffix}"
    write(path, as_table(numbers((40, 3)), "fixed"), rows=16)
    whole = path.read_bytes()
    # A stream may end after any whole message, and then holds fewer rows.
    ends = batch_ends(path) if suffix == ".arrows" else set()
    for size in sorted({*range(0, len(whole) - 1, 7), *ends}):
        path.write_bytes(whole[:size])
        if suffix == ".arrows" and size in ends:
            assert open_source(path).spec.n_rows in (16, 32, 40)
            continue
        with pytest.raises(SourceError) as caught:
            open_source(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


# Breaks when a place that a damaged footer names is read unseen.
def test_a_damaged_footer(tmp_path: Path) -> None:
    path = tmp_path / "x.arrow"
    array = numbers((40, 3))
    write(path, as_table(array, "fixed"), rows=16)
    whole = path.read_bytes()
    length = int.from_bytes(whole[-10:-6], "little")
    errors = []
    for at in range(len(whole) - 10 - length, len(whole) - 6, 3):
        for value in (0, 0x7F, 0xFF):
            path.write_bytes(whole[:at] + bytes([value]) + whole[at + 1 :])
            try:
                source = open_source(path)
                read(source, 0, source.spec.n_rows)
            except (SourceError, ReadError) as error:
                errors.append(str(error))
    assert len(errors) > 50
    assert all(str(path) in error for error in errors)


def test_the_first_version_of_feather(tmp_path: Path) -> None:
    (tmp_path / "x.feather").write_bytes(b"FEA1" + bytes(60))
    with pytest.raises(SourceError, match="first version; read it by pandas"):
        open_source(tmp_path / "x.feather")
