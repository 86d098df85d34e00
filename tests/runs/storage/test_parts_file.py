"""The list beside an output of which rows are of which file."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from tests.runs.helpers import cli


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Twelve files of 10 rows; every row of a file is near its number."""
    folder = tmp_path / "shards"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(12):
        rows = 100 * number + rng.normal(size=(10, 2))
        np.save(folder / f"part-{number}.npy", rows.astype(np.float32))
    return folder


def listed(path: Path) -> dict[str, slice]:
    with path.open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["file", "first_row", "rows"]
    return {
        row["file"]: slice(int(row["first_row"]), int(row["first_row"]) + int(row["rows"]))
        for row in rows
    }


# Breaks when labels of part-2 are told as those of part-10, as reading in the order of text would.
def test_labels_are_joined_to_their_files_by_the_list(shards, tmp_path, capsys):
    labels = tmp_path / "labels.npy"
    assert cli("fit", shards, "--k", 12, "--out", tmp_path / "run") == 0
    capsys.readouterr()
    assert cli("predict", tmp_path / "run", shards, "--labels", labels) == 0
    assert f"{labels}.shards.csv says which rows are of which file" in capsys.readouterr().err
    rows_of = listed(Path(f"{labels}.shards.csv"))
    assert len(rows_of) == 12
    values, centroids = np.load(labels), np.load(tmp_path / "run" / "centroids.npy")
    for number in range(12):
        of_file = centroids[values[rows_of[str(shards / f"part-{number}.npy")]]]
        np.testing.assert_allclose(of_file, 100 * number, atol=3)


# Breaks when a file without rows is missing in the list, as if it had been forgotten.
def test_files_without_rows_are_listed(shards, tmp_path):
    names = ("part-0a", "part-0b", "part-99")
    for name in names:
        np.save(shards / f"{name}.npy", np.empty((0, 2), np.float32))
    run, labels = tmp_path / "run", tmp_path / "labels.npy"
    assert cli("fit", shards, "--k", 3, "--out", run) == 0
    assert cli("predict", run, shards, "--labels", labels) == 0
    rows_of = listed(Path(f"{labels}.shards.csv"))
    assert len(rows_of) == 15
    assert [rows_of[str(shards / f"{name}.npy")] for name in names] == [
        slice(10, 10), slice(10, 10), slice(120, 120)
    ]  # fmt: skip
    assert list(rows_of)[:4] == [str(shards / f"part-{n}.npy") for n in ("0", "0a", "0b", "1")]


# Breaks when a list that is lost, or that was written over, stays so, or an old one tells of
# another source.
def test_a_finished_output_gets_its_list_again(shards, tmp_path):
    run, labels = tmp_path / "run", tmp_path / "labels.npy"
    beside = Path(f"{labels}.shards.csv")
    assert cli("fit", shards, "--k", 3, "--out", run) == 0
    predict = ("predict", run, shards, "--labels", labels)
    assert cli(*predict) == 0
    whole = beside.read_bytes()
    for spoil in (beside.unlink, lambda: beside.write_text("file,first_row,rows\n")):
        spoil()
        assert cli(*predict, "--resume") == 0
        assert beside.read_bytes() == whole
    labels.unlink()
    assert cli("predict", run, shards / "part-0.npy", "--labels", labels) == 0
    assert not beside.exists()
    beside.write_text("mine")
    labels.unlink()
    assert cli("predict", run, shards / "part-0.npy", "--labels", labels) == 0
    assert beside.read_text() == "mine"


# Breaks when somebody else's file is overwritten by the list without a word.
def test_what_is_no_list_is_refused_and_kept(shards, tmp_path, capsys):
    run, labels = tmp_path / "run", tmp_path / "labels.npy"
    beside = Path(f"{labels}.shards.csv")
    assert cli("fit", shards, "--k", 3, "--out", run) == 0
    predict = ("predict", run, shards, "--labels", labels)
    beside.write_text("mine")
    for options in ((), ("--resume",), ("--dry-run",)):
        capsys.readouterr()
        assert cli(*predict, *options) == 2
        assert f"{beside}: exists already and is no list of shards" in capsys.readouterr().err
        assert beside.read_text() == "mine"
        assert not labels.exists()
    beside.unlink()
    assert cli(*predict) == 0
    beside.unlink()
    beside.mkdir()
    assert cli(*predict, "--resume") == 2
    beside.rmdir()
    assert cli(*predict, "--resume") == 0
    assert len(listed(beside)) == 12


# Breaks when a process that ends between the list and the name of the output leaves no list.
def test_an_interrupted_commit_is_resumed_with_its_list(shards, tmp_path, monkeypatch):
    run, labels = tmp_path / "run", tmp_path / "labels.npy"
    assert cli("fit", shards, "--k", 3, "--out", run) == 0

    class Crash(BaseException):
        pass

    def crash(*_):
        raise Crash

    predict = ("predict", run, shards, "--labels", labels)
    with monkeypatch.context() as patch:
        patch.setattr("streamkm.runs.predict.write_parts", crash)
        with pytest.raises(Crash):
            cli(*predict)
    assert not labels.exists()
    assert cli(*predict, "--resume") == 0
    assert len(listed(Path(f"{labels}.shards.csv"))) == 12
    assert not list(tmp_path.glob("*.partial*"))
