"""Views of some rows of a source: of a range, of a sample of blocks, of both."""

from __future__ import annotations

import re
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from streamkm.errors import SourceError
from streamkm.sources import Choice, RowRange, Source, ids_of, open_source, open_weights
from streamkm.sources.chosen import ChosenRows
from tests.sources.contract import Case, SourceContract, numbers

N, BLOCK = 205, 10


class TestChosen(SourceContract):
    @pytest.fixture(params=[(7, 198, 1.0), (0, N, 0.4), (33, 150, 0.5)], ids=str)
    def case(self, request, tmp_path: Path) -> Case:
        start, stop, share = request.param
        path, whole = tmp_path / "x.npy", numbers((N, 3), "float32")
        choice = Choice(N, start, stop, BLOCK, share, 3)
        rows = [choice.whole_row(row) for row in range(choice.n_rows)]

        def store(array: np.ndarray) -> None:
            stored = whole.copy()
            stored[rows] = array
            np.save(path, stored)

        store(whole[rows])
        return Case(
            whole[rows], "float32", store, lambda: ChosenRows(open_source(path), choice), tmp_path
        )


@pytest.fixture
def x(tmp_path: Path) -> Path:
    """Rows that hold their numbers, in chunks of 10."""
    array = zarr.create_array(tmp_path / "x.zarr", shape=(N, 2), chunks=(BLOCK, 2), dtype="float32")
    array[:] = np.arange(N, dtype=np.float32)[:, None]
    return tmp_path / "x.zarr"


def rows_of(source: Source) -> list[int]:
    out = np.empty((source.spec.n_rows, source.spec.n_features), source.spec.storage)
    source.read(RowRange(0, source.spec.n_rows), out)
    return [int(row) for row in out[:, 0]]


# Breaks when a range is another than NumPy's.
@pytest.mark.parametrize(
    "span", ["0:7", "7:", ":7", "-5:", ":-200", "-30:-20", "3:-1", "204:205", ":"]
)
def test_a_range_is_numpy_s(x: Path, span: str) -> None:
    start, stop = (int(end) if end else None for end in span.split(":"))
    for given_ in (span, slice(start, stop), (start, stop)):
        with closing(open_source(x, row_range=given_)) as source:
            assert rows_of(source) == list(range(N))[start:stop]


@pytest.mark.parametrize(
    ("span", "says"),
    [
        (
            "7:7",
            "--rows 7:7 holds no row of its 205: the first, 7, must be less than the row after",
        ),
        ("-1:3", "--rows -1:3 holds no row of its 205: the first, 204, must be less"),
        ("0:206", "--rows 0:206 goes beyond its 205 rows; give numbers from 0 to 205"),
        ("-206:", "--rows -206: goes beyond its 205 rows"),
        ("205:", "--rows 205: holds no row"),
        *(
            (bad, f"--rows must be A:B, .* not {bad!r}")
            for bad in ("", "5", "a:b", "1:2:3", "1.5:3", "1:1e3", "--5:")
        ),
    ],
)
def test_a_range_that_cannot_be_is_refused(x: Path, span: str, says: str) -> None:
    with pytest.raises(SourceError) as caught:
        open_source(x, row_range=span)
    assert re.search(says, caught.value.for_command_line or "")


@pytest.mark.parametrize("bad", [slice(0, 5, 2), (1, 2, 3), (True, 5), 7, (0.0, 5)])
def test_what_is_no_range_is_refused(x: Path, bad: Any) -> None:
    with pytest.raises(SourceError, match=r"row_range must be A:B"):
        open_source(x, row_range=bad)


@pytest.mark.parametrize("bad", [0, 1.5, float("nan"), -0.1, True, "a"])
def test_a_share_that_cannot_be_is_refused(x: Path, bad: Any) -> None:
    with pytest.raises(SourceError, match=r"sample must be a share of the blocks, above 0 and at"):
        open_source(x, sample=bad)


def test_a_seed_without_a_sample_is_refused(x: Path) -> None:
    for seed in (0, 5):
        with pytest.raises(SourceError, match="give its share with sample"):
            open_source(x, sample_seed=seed)
    every: list[Any] = [-1, 1.5, True]
    for bad in every:
        with pytest.raises(SourceError, match=r"sample_seed must be a whole number"):
            open_source(x, sample=0.5, sample_seed=bad)


# Breaks when a run, the log or `info` cannot say what was chosen.
def test_what_is_chosen_is_said(x: Path) -> None:
    with closing(open_source(x, row_range="0:100", sample=0.3, sample_seed=2)) as source:
        assert source.spec.choice is not None
        said = str(source.spec.choice)
        assert said in source.spec.layout
        n_rows = source.spec.n_rows
        assert said == (
            f"rows 0 to 100 of 205, a sample of {n_rows // 10} of 10 blocks "
            f"(share 0.3, seed 2; {n_rows} of 100 rows)"
        )
        with closing(open_source(x, **source.spec.choice.options())) as again:
            assert again.fingerprint() == source.fingerprint()
            assert rows_of(again) == rows_of(source)
        with closing(open_source(x)) as whole, closing(open_source(x, row_range="0:90")) as other:
            assert len({s.fingerprint() for s in (whole, other, source)}) == 3
    with pytest.raises(SourceError, match="rows are chosen already: rows 0 to 9 of 205"):
        open_source(open_source(x, row_range=":9"), row_range=":5")


def test_blocks_that_are_cut_are_noted(x: Path) -> None:
    with closing(open_source(x, row_range="20:")) as source:
        assert not source.notes()
    with closing(open_source(x, row_range="23:")) as source:
        (note,) = source.notes()
    assert "the first row chosen, 23, begins no block of 10 rows" in note
    assert "from row 20 on" in note


# Breaks when a row gets the weight, or the id, of another.
def test_weights_and_ids_are_of_the_chosen_rows(x: Path, tmp_path: Path) -> None:
    weights = np.arange(N) + 1.0
    np.save(tmp_path / "w.npy", weights)
    with closing(open_source(x, row_range="40:160", sample=0.4)) as source:
        rows = rows_of(source)
        choice = source.spec.choice
        with closing(open_weights(tmp_path / "w.npy", N, choice)) as opened:
            out = np.empty(len(rows))
            opened.read(RowRange(0, len(rows)), out)
        assert out.tolist() == weights[rows].tolist()
    weights[rows[-1]] = -1
    np.save(tmp_path / "w.npy", weights)
    with pytest.raises(SourceError, match=f"that of row {rows[-1]} is -1"):
        open_weights(tmp_path / "w.npy", N, choice)

    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table = pa.table({"name": [f"n{i}" for i in range(N)], "a": np.arange(N), "b": np.ones(N, int)})
    pq.write_table(table, tmp_path / "x.parquet", row_group_size=BLOCK)
    options: dict[str, Any] = {"id_column": "name", "row_range": "40:160", "sample": 0.4}
    with closing(open_source(tmp_path / "x.parquet", **options)) as source:
        ids = ids_of(source)
        assert ids is not None
        for start in (0, 5, len(rows) - 1):
            found = [name for batch in ids.batches(start) for name in batch.to_pylist()]
            assert found == [f"n{row}" for row in rows[start:]]
