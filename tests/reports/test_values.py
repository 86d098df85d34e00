"""Ids, texts and names of files: read from lists and columns, by row number."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from streamkm.errors import ConfigError
from streamkm.reports.values import open_values
from streamkm.sources import open_source


def no_column(name: str):
    raise AssertionError(name)


def opened(given, n_rows=4):
    return open_values("texts", given, n_rows, no_column)


@pytest.fixture(params=["text", "no last line end", "npy", "bytes", "list"])
def four(request, tmp_path: Path):
    path, values = tmp_path / "values.txt", ["a", "b c", "", "dé"]
    if request.param == "list":
        return values
    if request.param in ("npy", "bytes"):
        path = path.with_suffix(".npy")
        array = (
            np.array(values) if request.param == "npy" else np.array([v.encode() for v in values])
        )
        np.save(path, array)
        return path
    end = "\r\n" if request.param == "text" else ""
    path.write_bytes("\r\n".join(values).encode() + end.encode())
    return path


def test_values_are_found_by_row(four) -> None:
    assert opened(four).at([3, 0, 2]) == {0: "a", 2: "", 3: "dé"}


@pytest.mark.parametrize("n_rows", [3, 5])
def test_a_list_of_another_length_is_refused(four, n_rows) -> None:
    with pytest.raises(ConfigError, match=f"has 4 values, the source has {n_rows} rows; give one"):
        opened(four, n_rows)


@pytest.mark.parametrize(
    "content", [np.zeros((4, 2)), np.array([{}, [], (), None], dtype=object)], ids=["2D", "objects"]
)
def test_an_array_that_is_no_list_is_refused(content, tmp_path) -> None:
    np.save(tmp_path / "v.npy", content)
    with pytest.raises(ConfigError, match=r"texts='.*v\.npy': cannot be read"):
        opened(tmp_path / "v.npy")


@pytest.mark.parametrize("name", ["none.txt", "none.npy", "."])
def test_a_file_that_is_not_there_is_refused(name, tmp_path) -> None:
    with pytest.raises(
        ConfigError, match=r"cannot be read .* name a text file with a line for each"
    ):
        opened(tmp_path / name)


def test_bytes_that_are_no_utf_8_are_shown_as_such(tmp_path) -> None:
    (tmp_path / "v.txt").write_bytes(b"a\xff\n")
    assert opened(tmp_path / "v.txt", 1).at([0]) == {0: "a�"}


class TestColumns:
    @pytest.fixture
    def table(self, tmp_path: Path) -> Path:
        path: Path = tmp_path / "x.parquet"
        columns = {"f": np.arange(9.0), "name": [f"n{i}" for i in range(8)] + [None]}
        pq.write_table(pa.table(columns), path, row_group_size=4)
        return path

    def open(self, table: Path, given: str):
        def column(name: str):
            return open_source(table, columns=["f"], id_column=name)

        return open_values("ids", given, 9, column)

    def test_values_are_found_by_row(self, table) -> None:
        assert self.open(table, "column:name").at([8, 5, 0]) == {0: "n0", 5: "n5", 8: ""}

    def test_a_column_that_is_not_there_is_refused(self, table) -> None:
        with pytest.raises(ConfigError, match=r"ids='column:no': .*there is no column 'no'; there"):
            self.open(table, "column:no")

    def test_a_source_without_columns_is_refused(self, tmp_path) -> None:
        np.save(tmp_path / "x.npy", np.zeros((9, 2)))
        with pytest.raises(ConfigError, match="ids='column:a'"):
            open_values("ids", "column:a", 9, lambda _: open_source(tmp_path / "x.npy"))
