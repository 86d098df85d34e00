"""A run, and a partition by it, as an index of faiss."""

from __future__ import annotations

import errno
from pathlib import Path

import numpy as np
import pytest

from streamkm.cli import main
from streamkm.files import OutputFile

faiss = pytest.importorskip("faiss", reason="the extra `faiss` is not installed")

N_ROWS, N_FEATURES, K = 700, 6, 12


def command(*words: object) -> int:
    return main([str(word) for word in words])


@pytest.fixture(params=["euclidean", "cosine"])
def metric(request) -> str:
    return str(request.param)


@pytest.fixture
def grouped(tmp_path: Path, metric: str, monkeypatch) -> np.ndarray:
    """x.npy, a run and a partition in the working folder; returns the rows."""
    monkeypatch.chdir(tmp_path)
    rows = np.random.default_rng(3).normal(1, 2, (N_ROWS, N_FEATURES))
    np.save("x.npy", rows)
    assert command("fit", "x.npy", "--k", K, "--metric", metric, "--out", "run") == 0
    assert command("partition", "run", "x.npy", "--rows", "zarr", "--out", "parts") == 0
    return rows


def nearest(rows: np.ndarray, queries: np.ndarray, metric: str) -> np.ndarray:
    """The nearest row of each query, in float64."""
    if metric == "cosine":
        away = -(queries @ (rows / np.linalg.norm(rows, axis=1, keepdims=True)).T)
    else:
        away = ((queries[:, None] - rows) ** 2).sum(axis=2)
    return np.asarray(away.argmin(axis=1))


# Breaks when a row is in the list of another cluster, under another number, or is not itself: a
# search of all lists must find what comparing with all rows finds, one of one list its label.
@pytest.mark.parametrize("where", [[], ["--on-disk"]], ids=["in memory", "on disk"])
def test_an_index_finds_the_rows_of_the_source(grouped, metric, where, monkeypatch) -> None:
    monkeypatch.setattr("streamkm.runs.exporting.export.PIECE_BYTES", 4 * N_FEATURES * 9)
    asked = ("export", "run", "--to", "faiss", "--partition", "parts", "--out", "x.index")
    assert command(*asked, *where) == 0
    assert not list(Path().glob("*.partial"))
    index = faiss.read_index("x.index")
    assert (index.ntotal, index.nlist, index.d) == (N_ROWS, K, N_FEATURES)
    queries = np.random.default_rng(4).normal(1, 2, (50, N_FEATURES)).astype(np.float32)
    index.nprobe = K
    found = index.search(queries, 1)[1][:, 0]
    assert (found == nearest(grouped, queries, metric)).all()
    labels = np.load("parts/labels.npy")
    sizes = [index.invlists.list_size(cluster) for cluster in range(K)]
    assert sizes == np.bincount(labels, minlength=K).tolist()
    index.nprobe = 1
    again = grouped.astype(np.float32)
    assert (labels[index.search(again, 1)[1][:, 0]] == labels).all()
    assert command(*asked) == 2  # It exists.


# Breaks when an index without rows cannot be filled by faiss itself, or centroids are others.
def test_without_a_partition_the_lists_are_empty(grouped, metric) -> None:
    assert command("export", "run", "--to", "faiss", "--out", "x.index") == 0
    index = faiss.read_index("x.index")
    assert index.is_trained
    assert index.ntotal == 0
    centroids = index.quantizer.reconstruct_n(0, K)
    assert (centroids == np.load("run/centroids.npy")).all()
    assert index.metric_type == (
        faiss.METRIC_INNER_PRODUCT if metric == "cosine" else faiss.METRIC_L2
    )
    rows = grouped.astype(np.float32)
    if metric == "cosine":
        faiss.normalize_L2(rows)
    index.add(rows)
    labels = index.quantizer.search(rows, 1)[1][:, 0]
    assert (labels == np.load("parts/labels.npy")).all()


# Breaks when columns of a table go to an index in the order of the file, which is not the model's.
def test_features_have_the_order_of_the_model(tmp_path: Path, monkeypatch) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    monkeypatch.chdir(tmp_path)
    rows = np.random.default_rng(0).normal(0, (1, 9), (60, 2)).astype(np.float32)
    for name, order in (("ab", "ab"), ("ba", "ba")):
        columns = {each: rows[:, "ab".index(each)] for each in order}
        pq.write_table(pa.table(columns), f"{name}.parquet")
    assert command("fit", "ab.parquet", "--k", 3, "--out", "run") == 0
    assert command("partition", "run", "ba.parquet", "--rows", "npy", "--out", "parts") == 0
    asked = ("export", "run", "--to", "faiss", "--partition", "parts", "--out", "x.index")
    assert command(*asked) == 0
    index = faiss.read_index("x.index")
    assert (index.search(rows, 1)[1][:, 0] == np.arange(60)).all()


# Breaks when rows are compared in a space that the index does not have, when lists are filled from
# what does not hold them, or when an error is not a line that says what to do.
def test_what_cannot_be_exported_is_refused(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", np.random.default_rng(0).normal(size=(50, 2)))
    for name, words in (("run", ""), ("other", "--seed 1"), ("scaled", "--scale zscore")):
        assert command("fit", "x.npy", "--k", 3, "--out", name, *words.split()) == 0
    assert command("partition", "run", "x.npy", "--out", "order") == 0
    assert command("partition", "other", "x.npy", "--rows", "npy", "--out", "others") == 0
    refused: list[tuple[str, tuple[str, ...], str]] = [
        ("scaled", (), "the run scales their features: --scale zscore"),
        ("run", ("--partition", "order"), "--partition order has no rows"),
        ("run", ("--partition", "others"), "was made by another model"),
        ("run", ("--partition", "run"), "run is no partition"),
        ("run", ("--on-disk",), "--on-disk is about the rows of a partition"),
        ("run", ("--out", "none/x.index"), "none is no folder"),
        ("run", ("--out", "run"), "run exists; remove it, or choose another --out"),
    ]
    for run, more, said in refused:
        capsys.readouterr()
        assert command("export", run, "--to", "faiss", "--out", "x.index", *more) == 2
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1
    monkeypatch.setattr("streamkm.runs.exporting.export.find_spec", lambda name: None)
    assert command("export", "run", "--to", "faiss", "--out", "x.index") == 2
    assert "pip install faiss-cpu" in capsys.readouterr().err
    assert not list(tmp_path.glob("x.index*"))


# Breaks when a disk that is full leaves half an index, or ends the process: what is mapped is not
# told that there is no space.
@pytest.mark.parametrize("where", [[], ["--on-disk"]], ids=["in memory", "on disk"])
def test_a_full_disk_leaves_nothing(tmp_path: Path, where, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", np.random.default_rng(0).normal(size=(50, 2)))
    assert command("fit", "x.npy", "--k", 3, "--out", "run") == 0
    assert command("partition", "run", "x.npy", "--rows", "npy", "--out", "parts") == 0

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "x")

    monkeypatch.setattr(OutputFile, "reserve_part", full)
    monkeypatch.setattr("streamkm.runs.exporting.faiss_index.fsync_file", full)
    asked = ("export", "run", "--to", "faiss", "--partition", "parts", "--out", "x.index")
    assert command(*asked, *where) == 1
    assert "cannot be written" in capsys.readouterr().err
    assert not list(tmp_path.glob("x.index*"))
