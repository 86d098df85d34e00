"""`streamkm.partition`: the command from Python."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from streamkm import KMeans, load_run, open_source, partition
from streamkm.errors import ConfigError, OutputExistsError
from tests.runs.helpers import cli, clusters


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    KMeans(5, run_dir=folder, random_state=0).fit(clusters(300, 4))
    return folder


# Breaks when Python writes another folder than the command line.
def test_a_folder_is_that_of_the_command_line(run: Path, tmp_path: Path, capsys) -> None:
    x = clusters(300, 4)
    np.save(tmp_path / "x.npy", x)
    out = tmp_path / "from a shell"
    arguments = ("--rows", "npy", "--sort", "distance", "--only", "3,1")
    assert cli("partition", run, tmp_path / "x.npy", "--out", out, *arguments) == 0
    capsys.readouterr()
    for name, X in (
        ("array", x), ("tensor", torch.from_numpy(x)), ("path", str(tmp_path / "x.npy")),
    ):  # fmt: skip
        found = partition(run, X, tmp_path / name, rows="npy", sort="distance", only=[1, 3])
        assert capsys.readouterr().err == ""
        for file in ("order.npy", "offsets.npy", "rows.npy", "labels.npy"):
            assert (tmp_path / name / file).read_bytes() == (out / file).read_bytes()
        labels = np.load(found.path / "labels.npy")
        for cluster in range(5):
            chosen = np.flatnonzero((labels == cluster) & (cluster in (1, 3)))
            assert sorted(found.members(cluster)) == chosen.tolist()
        assert "in 5 clusters>" in repr(found)


def test_members_of_no_cluster(run: Path, tmp_path: Path) -> None:
    found = partition(run, clusters(300, 4), tmp_path / "p")
    for cluster in (5, -1):
        with pytest.raises(IndexError, match=f"clusters 0 to 4, not {cluster}"):
            found.members(cluster)


# Breaks when row numbers are those among chosen rows, which no output says.
def test_chosen_rows_are_refused(run: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", clusters(300, 4))
    chosen = open_source(tmp_path / "x.npy", row_range="10:200")
    with pytest.raises(ConfigError, match=r"is of all rows, .*\(rows 10 to 200 of 300\)"):
        partition(run, chosen, tmp_path / "p")
    assert not (tmp_path / "p").exists()


def test_rows_with_nan(run: Path, tmp_path: Path) -> None:
    x = clusters(300, 4)
    x[7] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        partition(run, x, tmp_path / "p")
    assert partition(run, x, tmp_path / "q", nan="drop").n_dropped == 1


def test_wrong_arguments(run: Path, tmp_path: Path) -> None:
    x = clusters(300, 4)
    wrong: dict[str, Any]
    for wrong, complaint in (
        ({"rows": "csv"}, "rows must be one of npy, zarr, parquet, not 'csv'"),
        ({"sort": "size"}, "sort must be one of row, distance, not 'size'"),
        ({"nan": "keep"}, "nan must be one of error, drop, not 'keep'"),
        ({"only": [1.5]}, "only must be numbers of clusters"),
        ({"only": [5]}, "only names cluster 5, the run has 0 to 4"),
    ):
        with pytest.raises(ConfigError, match=complaint):
            partition(run, x, tmp_path / "p", **wrong)
        assert not (tmp_path / "p").exists()
    partition(run, x, tmp_path / "p", rows="zarr", verbose=True)
    with pytest.raises(OutputExistsError, match="resume=True"):
        partition(run, x, tmp_path / "p", rows="zarr")
    assert partition(run, x, tmp_path / "p", rows="zarr", resume=True).n_dropped == 0


def test_what_is_no_path(run: Path, tmp_path: Path) -> None:
    x, out = clusters(300, 4), tmp_path / "p"
    labels: Any = np.zeros(300, np.int32)
    loaded: Any = load_run(run)
    with pytest.raises(
        TypeError, match=r"run must be a path, .* KMeans; give the folder of the run"
    ):
        partition(loaded, x, out)
    with pytest.raises(TypeError, match=r"labels must be a path, .* ndarray; save them .* \.npy"):
        partition(run, x, out, labels=labels)
    assert not out.exists()
    partition(run, x, out)
    with pytest.raises(OutputExistsError, match=r"choose another out$"):
        partition(run, x, out)


def test_a_source_that_is_open(run: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", clusters(300, 4))
    source = open_source(tmp_path / "x.npy")
    found = partition(run, source, tmp_path / "p")
    assert len(found.order) == 300
    source.close()
