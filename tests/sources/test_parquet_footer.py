"""The footer of a Parquet file: the nulls that it counts, and damage that says nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from streamkm.sources.parquet_footer import null_counts

MOST = 1 << 20


def counted(path: Path, *, most_bytes: int) -> dict[str, int]:
    with path.open("rb") as file:
        return null_counts(file, most_bytes=most_bytes)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Four rows in two groups, with columns of several types."""
    table = pa.table(
        {
            "a.b": pa.array([1, None, 3, None], pa.int8()),
            "list": pa.array([[1.0, None], None, [], [2.0, 3.0]]),
            "text": ["x", None, "y", "z"],
            "flag": [True, False, None, True],
            "whole": [0.0, 1.0, 2.0, 3.0],
        }
    )
    pq.write_table(table, tmp_path / "x.parquet", row_group_size=2)
    found: Path = tmp_path / "x.parquet"
    return found


def test_nulls_are_counted_over_all_groups(path: Path) -> None:
    expected = {"a.b": 2, "list": 3, "text": 1, "flag": 1, "whole": 0}
    assert counted(path, most_bytes=MOST) == expected


# pyarrow's own count, of many columns: field numbers beyond 15 and lists beyond 14 elements.
def test_many_columns_and_groups(path: Path) -> None:
    draws = np.random.default_rng(0).random((60, 40))
    columns = {f"f{i}": pa.array(draws[:, i], mask=draws[:, i] < 0.5) for i in range(40)}
    pq.write_table(pa.table(columns), path, row_group_size=3)
    expected = {name: column.null_count for name, column in columns.items()}
    assert counted(path, most_bytes=MOST) == expected


def test_what_is_not_counted_is_missing(path: Path) -> None:
    table = pa.table({"a": pa.array([1, None]), "b": pa.array([1, None])})
    pq.write_table(table, path, write_statistics=["b"])
    assert counted(path, most_bytes=MOST) == {"b": 1}
    length = int.from_bytes(path.read_bytes()[-8:-4], "little")
    assert counted(path, most_bytes=length) == {"b": 1}
    assert counted(path, most_bytes=length - 1) == {}
    for content in (b"", b"PAR1", bytes(100), b"\xff" * 4 + b"PAR1"):
        path.write_bytes(content)
        assert counted(path, most_bytes=MOST) == {}


# Breaks when a stranger's footer ends the process, or takes memory by what it says of itself.
def test_damage_ends_nothing(path: Path) -> None:
    whole = path.read_bytes()
    length = int.from_bytes(whole[-8:-4], "little")
    start = len(whole) - 8 - length
    draws = np.random.default_rng(0)
    for at in range(start, len(whole) - 8):
        for value in (whole[at] ^ 1, int(draws.integers(256)), 255):
            path.write_bytes(whole[:at] + bytes([value]) + whole[at + 1 :])
            counts = counted(path, most_bytes=MOST)
            assert all(count >= 0 for count in counts.values())
    nested = b"\x19" * length  # A list in a list in a list.
    path.write_bytes(whole[:start] + nested + whole[-8:])
    assert counted(path, most_bytes=MOST) == {}
