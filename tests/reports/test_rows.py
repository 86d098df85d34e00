"""Which rows a report reads, and what it says if it reads none."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from streamkm.errors import ConfigError
from tests.reports.helpers import report
from tests.runs.helpers import cli, clusters


@pytest.fixture
def run(blobs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run of x.npy, named as seen from the current folder."""
    monkeypatch.chdir(tmp_path)
    shutil.copy2(blobs / "x.npy", "x.npy")
    assert cli("fit", "x.npy", "--k", 3, "--out", "run") == 0
    return Path("run")


def test_the_rows_of_the_fit_are_read(run: Path) -> None:
    made = report(run)
    assert made.seen is not None
    assert made.seen.source == "x.npy"
    assert "other data" not in made.html()


def test_rows_that_are_gone_are_said_to_be(run: Path) -> None:
    Path("x.npy").unlink()
    made = report(run)
    assert made.seen is None
    page = made.html()
    assert "The rows are not there to be read (x.npy" in page
    assert "name it: streamkm report run SOURCE" in page
    assert "spread" not in made.figures


def test_rows_that_have_changed_are_not_taken_for_those_of_the_fit(run: Path) -> None:
    np.save("x.npy", np.load("x.npy") + 1)
    made = report(run)
    assert made.seen is None
    assert "x.npy is not, or no longer, the data of the fit" in made.html()


def test_other_rows_are_read_if_they_are_named(run: Path) -> None:
    np.save("y.npy", np.load("x.npy")[:100])
    made = report(run, "y.npy")
    assert made.seen is not None
    assert made.seen.sizes_K.sum() == 100
    assert "The rows are those of y.npy: by their fingerprint other data" in made.html()
    assert made.verdict.headline == "100 rows in 3 clusters"


# Breaks when a report counts other rows of the array than the fit has read.
@pytest.mark.parametrize("choice", [("--rows", ":50"), ("--sample", 0.5)], ids=str)
def test_of_an_array_that_was_read_in_part_the_same_part_is_read(run: Path, choice) -> None:
    assert cli("fit", "x.npy", "--k", 3, "--out", "part", *choice) == 0
    for where in ((), ("x.npy",)):
        made = report("part", *where)
        assert made.seen is not None
        assert "other data" not in made.html()
        rows = made.seen.sizes_K.sum()
        assert made.verdict.headline == f"{rows} rows in 3 clusters"
    shutil.copy2("x.npy", "y.npy")
    np.save("y.npy", np.load("y.npy")[:20])
    assert report("part", "y.npy").verdict.headline == "20 rows in 3 clusters"


def test_rows_are_left_alone_if_that_is_asked_for(run: Path) -> None:
    made = report(run, rows=False)
    assert made.seen is None
    assert "Rows were not read, as was asked for." in made.html()


def test_rows_of_another_shape_are_refused(run: Path, capsys) -> None:
    np.save("y.npy", np.zeros((9, 7), np.float32))
    assert cli("report", run, "y.npy") == 2
    assert "y.npy has 7 features, the run's centroids have 4" in capsys.readouterr().err
    assert cli("report", run, "none.npy") == 2
    assert "none.npy" in capsys.readouterr().err


# Breaks when stored values are read in another way than the fit has read them.
def test_values_are_read_as_in_the_run(tmp_path: Path) -> None:
    x = clusters(200, 3)
    x[7] = -999
    np.save(tmp_path / "x.npy", x)
    fit = ("fit", tmp_path / "x.npy", "--k", 3, "--out", tmp_path / "run")
    assert cli(*fit, "--nodata", -999, "--nan", "drop") == 0
    made = report(tmp_path / "run")
    assert made.seen is not None
    assert made.seen.evaluation.n_dropped == 1


# The options of predict: --id-column names rows in a report as well.
def test_ids_of_the_source_name_rows(tmp_path: Path) -> None:
    x = clusters(90, 3)
    columns: dict[str, object] = {f"f{i}": x[:, i] for i in range(3)}
    columns["name"] = [f"who-{i}" for i in range(90)]
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    named = (tmp_path / "x.parquet", "--id-column", "name")
    assert cli("fit", *named, "--k", 3, "--out", tmp_path / "run") == 0
    out = tmp_path / "r.html"
    assert cli("report", tmp_path / "run", *named, "-o", out) == 0
    page = out.read_text()
    assert page.count(">who-") >= 9
    made = report(tmp_path / "run", named[0], columns=["f0", "f1", "f2"], texts="column:name")
    assert made.html().count("<li>who-") >= 9


def test_a_column_of_an_array_is_refused(run: Path) -> None:
    with pytest.raises(ConfigError, match="texts='column:name'"):
        report(run, "x.npy", texts="column:name")
