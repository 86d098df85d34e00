"""Names of features: matched by name, or refused with both orders."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from streamkm.errors import SourceError
from streamkm.sources import RowRange, open_source
from streamkm.sources.memory import MemorySource
from streamkm.sources.names import in_order, shown
from tests.sources.contract import numbers, read, same_bytes

if TYPE_CHECKING:
    from pathlib import Path


def store(path: Path, array: np.ndarray, names: str) -> None:
    """`array` as columns of one letter each."""
    pq.write_table(pa.table({name: array[:, i] for i, name in enumerate(names)}), path)


# Breaks when shards are joined by position: half of the rows would be other people's numbers.
def test_shards_in_another_order_are_read_by_name(tmp_path: Path) -> None:
    x = numbers((40, 3))
    store(tmp_path / "0.parquet", x[:20], "abc")
    store(tmp_path / "1.parquet", x[20:, [2, 0, 1]], "cab")
    source = open_source(tmp_path)
    assert source.spec.feature_names == ("a", "b", "c")
    assert same_bytes(read(source, 0, 40), x)
    assert same_bytes(read(source, 17, 23), x[17:23])
    # All of them in a third order, as a run may ask for.
    view = in_order(source, ("b", "c", "a"), "the run")
    assert same_bytes(read(view, 0, 40), x[:, [1, 2, 0]].copy())
    assert view.spec.feature_names == ("b", "c", "a")
    assert same_bytes(read(source, 0, 40), x)
    # By the names in the order that was chosen, if columns are chosen.
    chosen = open_source(tmp_path, columns=["c", "b"])
    assert same_bytes(read(chosen, 0, 40), x[:, [2, 1]].copy())
    assert view.fingerprint() == open_source(tmp_path, columns=["b", "c", "a"]).fingerprint()


def test_bfloat16_is_put_in_order_too(tmp_path: Path) -> None:
    x = numbers((40, 3), "u2")
    store(tmp_path / "x.parquet", x, "abc")
    view = in_order(open_source(tmp_path / "x.parquet", dtype="bfloat16"), tuple("cba"), "it")
    assert view.spec.dtype == "bfloat16"
    assert same_bytes(read(view, 0, 40), x[:, ::-1].copy())


def test_a_view_ends_with_its_source(tmp_path: Path) -> None:
    store(tmp_path / "x.parquet", numbers((9, 2)), "ab")
    source = open_source(tmp_path / "x.parquet")
    view = in_order(source, ("b", "a"), "it")
    source.close()
    with pytest.raises(SourceError, match="the source is closed"):
        view.read(RowRange(0, 9), np.empty((9, 2), np.float32))


def test_shards_of_other_names_are_refused(tmp_path: Path) -> None:
    for index, names in enumerate(("abc", "abd")):
        store(tmp_path / f"{index}.parquet", numbers((5, 3)), names)
    one, other = (re.escape(str(tmp_path / f"{i}.parquet")) for i in range(2))
    message = rf"{one} has a, b, c, {other} has a, b, d \(only one of them has c, d\); rename"
    with pytest.raises(SourceError, match=message):
        open_source(tmp_path)
    assert open_source(tmp_path, columns=["b", "a"]).spec.n_rows == 10


# Breaks when the only dataset of one file is joined to that of another, whatever they are.
@pytest.mark.parametrize("chunks", [None, (2, 2)])
def test_shards_with_other_arrays_are_refused(tmp_path: Path, chunks) -> None:
    for index, name in enumerate(("train", "residuals")):
        with h5py.File(tmp_path / f"{index}.h5", "w") as file:
            file.create_dataset(name, data=numbers((6, 2)), chunks=chunks)
            file["both"] = file[name] if index else h5py.SoftLink("train")
    with pytest.raises(
        SourceError, match=r"0\.h5 has /train, .*1\.h5 has /(both|residuals); choose"
    ):
        open_source(tmp_path)
    assert open_source(tmp_path, dataset="both").spec.n_rows == 12


def test_lists_of_other_columns_are_refused(tmp_path: Path) -> None:
    for index, name in enumerate(("image", "text")):
        pq.write_table(pa.table({name: [[1.0, 2.0]]}), tmp_path / f"{index}.parquet")
    with pytest.raises(SourceError, match=r"0\.parquet has image, .*1\.parquet has text"):
        open_source(tmp_path)


# Breaks when a source that cannot change its order itself is read in its own order.
def test_any_source_is_put_in_order(tmp_path: Path) -> None:
    x = numbers((5000, 3))
    source = MemorySource(x, feature_names=("a", "b", "c"))
    view = in_order(source, ("c", "a", "b"), "it")
    assert view.spec.block_rows < 100_000
    assert view.spec.scratch_bytes >= view.spec.block_rows * view.spec.row_bytes
    for start, stop in ((0, 5000), (7, 7), (7, 4321)):
        assert same_bytes(read(view, start, stop), x[start:stop, [2, 0, 1]].copy())
    assert view.fingerprint() != source.fingerprint()
    assert (view.name, view.notes()) == (source.name, source.notes())
    # Variables of a group and values that are no data, which wrap other sources.
    with h5py.File(tmp_path / "x.h5", "w") as file:
        for i, name in enumerate(("red", "nir")):
            file[name] = x[:50, i].reshape(5, 10)
    nir = open_source(tmp_path / "x.h5", variable=["nir", "red"], nodata=[float(x[3, 0])])
    found = read(in_order(nir, ("red", "nir"), "it"), 0, 50)
    expected = x[:50, :2].copy()
    expected[3, 0] = np.nan
    assert np.array_equal(found, expected, equal_nan=True)
    store(tmp_path / "x.parquet", x[:50], "abc")
    marked = open_source(tmp_path / "x.parquet", nodata=[float(x[3, 0])])
    found = read(in_order(marked, ("b", "a", "c"), "it"), 0, 50)
    assert np.isnan(found[3, 1])
    assert np.isnan(found).sum() == 1
    assert same_bytes(found[4:], x[4:50, [1, 0, 2]].copy())


def test_names_that_are_not_known_change_nothing() -> None:
    source = MemorySource(np.zeros((3, 2)), feature_names=("a", "b"))
    assert in_order(source, ("a", "b"), "it") is source
    assert in_order(source, (), "it") is source
    nameless = MemorySource(np.zeros((3, 2)))
    assert in_order(nameless, ("a", "b"), "it") is nameless


def test_of_many_names_the_first_are_shown() -> None:
    assert shown("abc") == "a, b, c"
    assert shown([f"f{i}" for i in range(2000)]) == (
        "f0, f1, f2, f3, f4, f5, f6, f7, ... (2,000 in all)"
    )
