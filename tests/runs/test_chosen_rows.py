"""Runs on some rows of a source, from the command line: as on a file of these rows alone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import zarr

from tests.runs.helpers import cli, clusters

N, BLOCK = 600, 50


@pytest.fixture
def x(tmp_path: Path) -> Path:
    array = zarr.create_array(tmp_path / "x.zarr", shape=(N, 4), chunks=(BLOCK, 4), dtype="float32")
    array[:] = clusters(N, 4)
    return tmp_path / "x.zarr"


def rows_of(source: Path) -> np.ndarray:
    return np.asarray(zarr.open_array(source, mode="r")[...])


def stored(path: Path, rows: np.ndarray) -> Path:
    array = zarr.create_array(path, shape=rows.shape, chunks=(BLOCK, 4), dtype="float32")
    array[:] = rows
    return path


# Breaks when what comes after a source knows that rows are missing.
def test_a_range_gives_the_bits_of_a_file_of_it(x: Path, tmp_path: Path) -> None:
    alone = stored(tmp_path / "alone.zarr", rows_of(x)[100:400])
    weights = np.random.default_rng(0).exponential(size=N)
    np.save(tmp_path / "w.npy", weights)
    np.save(tmp_path / "alone-w.npy", weights[100:400])
    fit = ("--k", 4, "--scale", "zscore", "--epochs", 2, "--weights")
    some, whole = tmp_path / "some", tmp_path / "whole"
    assert cli("fit", x, "--rows", "100:400", *fit, tmp_path / "w.npy", "--out", some) == 0
    assert cli("fit", alone, *fit, tmp_path / "alone-w.npy", "--out", whole) == 0
    read = (some / "centroids.npy").read_bytes()
    assert read == (whole / "centroids.npy").read_bytes()
    for source, rows, out in ((x, ("--rows", "-200:"), "a"), (x, (), "b")):
        assert cli("predict", some, source, *rows, "--labels", tmp_path / f"{out}.npy") == 0
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), np.load(tmp_path / "b.npy")[-200:])


# Breaks when figures of some rows look like those of all.
def test_figures_say_which_rows_they_are_of(x: Path, tmp_path: Path, capsys) -> None:
    run = tmp_path / "run"
    assert cli("fit", x, "--k", 3, "--out", run) == 0
    capsys.readouterr()
    for chosen, said in (((), ""), (("--rows", "50:550"), "rows 50 to 550 of 600")):
        assert cli("evaluate", run, x, *chosen) == 0
        assert f" ({said})".removesuffix(" ()") + "\n" in capsys.readouterr().out.partition("d")[0]
        assert cli("evaluate", run, x, *chosen, "--json") == 0
        assert json.loads(capsys.readouterr().out).get("chosen", "") == said


def test_a_run_says_what_was_chosen_and_resumes_with_it_alone(x: Path, tmp_path: Path, capsys):
    run = tmp_path / "run"
    fit = ("fit", x, "--k", 3, "--out", run)
    chosen = ("--rows", "50:550", "--sample", 0.5, "--sample-seed", 1)
    assert cli(*fit, *chosen) == 0
    record = json.loads((run / "config.json").read_text())
    assert record["choice"] == {"row_range": "50:550", "sample": 0.5, "sample_seed": 1}
    said = record["data"]["chosen"]
    assert said.startswith("rows 50 to 550 of 600, a sample of ")
    assert said in capsys.readouterr().err
    assert cli("info", run) == 0
    assert f"chosen       {said}\n" in capsys.readouterr().out
    assert cli(*fit, *chosen, "--resume") == 0
    for other, now in (((), "all rows"), (("--rows", ":50"), "rows 0 to 50 of 600")):
        capsys.readouterr()
        assert cli(*fit, *other, "--resume") == 2
        err = capsys.readouterr().err
        assert f"the run began with {said}, now {now} were chosen" in err
    # A report reads the rows of the fit.
    report = tmp_path / "report.html"
    assert cli("report", run, "-o", report) == 0
    html = report.read_text()
    assert said in html
    assert "--rows 50:550 --sample 0.5 --sample-seed 1" in html
    assert "is not, or no longer, the data of the fit" not in html


# Breaks when an error counts rows from the first that was chosen.
def test_rows_are_told_by_their_numbers_in_the_whole(x: Path, tmp_path: Path, capsys) -> None:
    rows = rows_of(x)
    rows[421, 2] = np.nan
    bad = stored(tmp_path / "bad.zarr", rows)
    run = tmp_path / "run"
    assert cli("fit", x, "--k", 3, "--out", run) == 0
    for command in (
        ("fit", bad, "--k", 3, "--rows", "400:", "--out", tmp_path / "other"),
        ("fit", bad, "--k", 3, "--rows", "400:", "--out", tmp_path / "other", "--dry-run"),
        ("predict", run, bad, "--rows", "-200:", "--labels", tmp_path / "l.npy"),
        ("evaluate", run, bad, "--rows", "420:430"),
    ):
        capsys.readouterr()
        assert cli(*command) == 2
        assert "row 421 holds nan" in capsys.readouterr().err
    assert cli("evaluate", run, bad, "--rows", ":421") == 0


@pytest.mark.parametrize(
    ("command", "options", "says"),
    [
        ("fit", ("--rows", "5:5"), "--rows 5:5 holds no row of its 600"),
        ("fit", ("--rows", "0:601"), "--rows 0:601 goes beyond its 600 rows"),
        ("fit", ("--rows", "five"), "--rows must be A:B"),
        ("fit", ("--rows", "0:2"), "has 2, k is 3"),
        ("fit", ("--sample", "0"), "--sample must be a share of the blocks, above 0 and at most 1"),
        ("fit", ("--sample", "1.5"), "not 1.5"),
        ("fit", ("--sample", "nan"), "not nan"),
        ("fit", ("--sample-seed", "3"), "--sample-seed 3 draws the blocks of a sample: give its"),
        ("predict", ("--sample", "0.5"), "predict has no option --sample"),
    ],
    ids=str,
)
def test_what_cannot_be_chosen_is_refused(command, options, says, x, tmp_path, capsys) -> None:
    run = tmp_path / "run"
    words: tuple[object, ...] = ("fit", x, "--k", 3, "--out", run)
    if command == "predict":
        assert cli(*words) == 0
        words = ("predict", run, x, "--labels", tmp_path / "l.npy")
    capsys.readouterr()
    assert cli(*words, *options) == 2
    assert says in capsys.readouterr().err


def test_a_sweep_and_a_look_at_a_source_take_rows_too(x: Path, tmp_path: Path, capsys) -> None:
    sweep = tmp_path / "sweep"
    assert cli("sweep", x, "--k", 2, 3, "--rows", ":300", "--sample", 0.9, "--out", sweep) == 0
    capsys.readouterr()
    assert cli("info", sweep) == 0
    assert "chosen       rows 0 to 300 of 600, a sample of " in capsys.readouterr().out
    assert cli("info", x, "--rows", "-100:") == 0
    assert "rows         100\n" in capsys.readouterr().out
