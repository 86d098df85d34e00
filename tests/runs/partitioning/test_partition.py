"""The rows of a cluster stand together, whatever was in the way."""

from __future__ import annotations

import json
import os
import shutil
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr

from streamkm.distributed.world import World
from streamkm.errors import (
    ConfigError,
    Interrupted,
    OutputExistsError,
    ResumeError,
    SourceError,
    StorageError,
    StreamkmError,
)
from streamkm.sources import RowRange
from streamkm.sources.zarr.source import ZarrSource
from tests.distributed.together import together
from tests.runs.faults import FaultyDisk
from tests.runs.helpers import Job, cli, clusters, content, label, predicted
from tests.runs.partitioning.conftest import N_ROWS, K, group

pytestmark = pytest.mark.usefixtures("small_windows")


def written(out: Path) -> dict[str, bytes]:
    """Every file of a finished partition but its lock, and the rows where it was made."""
    return {
        str(path.relative_to(out)): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file() and path.name != "lock"
    }


def check(out: Path, x: np.ndarray, *, by_distance: bool = False, only=None) -> Any:
    """Compare order, offsets and rows with NumPy's; the order."""
    labels = np.load(out / "labels.npy")
    keys = [np.arange(len(x)), labels]
    if by_distance:
        keys.insert(1, np.load(out / "distances.npy"))
    expected = np.lexsort(keys)
    chosen = labels[expected] >= 0
    if only is not None:
        chosen &= np.isin(labels[expected], only)
    expected = expected[chosen]
    order, offsets = np.load(out / "order.npy"), np.load(out / "offsets.npy")
    assert order.dtype == offsets.dtype == np.int64
    assert order.tolist() == expected.tolist()
    for cluster in range(len(offsets) - 1):
        assert (labels[order[offsets[cluster] : offsets[cluster + 1]]] == cluster).all()
    assert offsets[0] == 0
    assert offsets[-1] == len(order)
    assert not (out / "unfinished").exists()
    found = rows_in(out, offsets)
    if found is not None:
        assert found.dtype == x.dtype
        assert found.tobytes() == x[order].tobytes()
    return order


def rows_in(out: Path, offsets: np.ndarray) -> Any:
    if (out / "rows.npy").exists():
        return np.load(out / "rows.npy")
    if (out / "rows.zarr").exists():
        return np.asarray(zarr.open_array(out / "rows.zarr", mode="r")[...])
    if not (out / "rows").exists():
        return None
    names = [f"centroid={k}" for k in np.flatnonzero(np.diff(offsets))]
    assert {path.name for path in (out / "rows").iterdir()} == {*names}
    found = []
    for name in names:
        for part in range(len(list((out / "rows" / name).iterdir()))):
            table = pq.ParquetFile(out / "rows" / name / f"part-{part}.parquet").read()
            found.append(np.array(table.column("features").to_pylist(), np.float32))
    return np.concatenate(found)


# ---- what is written ---------------------------------------------------------


@pytest.mark.parametrize("sort", ["row", "distance"])
@pytest.mark.parametrize("rows", [None, "npy", "zarr", "parquet"])
def test_rows_of_a_cluster_stand_together(rows, sort, way, fitted, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("streamkm.runs.partitioning.rows.CHUNK_BYTES", 112)
    out = tmp_path / "p"
    record = group(fitted / "run", fitted / "x.npy", out, rows=rows, sort=sort)
    x = np.load(fitted / "x.npy")
    check(out, x, by_distance=sort == "distance")
    assert (record["n_rows"], record["n_dropped"], record["done"]) == (N_ROWS, 0, True)
    assert json.loads((out / "partition.json").read_text())["largest"] == record["largest"]
    labels = predicted(fitted / "run", fitted / "x.npy", tmp_path / "labels.npy")
    assert np.load(out / "labels.npy").tolist() == labels.tolist()


# Breaks when what is on disk after a stop is not gone on with, or gone on with wrongly.
@pytest.mark.parametrize(("rows", "sort"), [("npy", "row"), ("zarr", "row"), ("parquet", "row"),
                                            ("npy", "distance")])  # fmt: skip
def test_bytes_do_not_show_where_it_was_stopped(
    rows, sort, way, fitted, quick_path, monkeypatch
) -> None:
    monkeypatch.setattr("streamkm.runs.partitioning.rows.CHUNK_BYTES", 112)
    monkeypatch.setattr("streamkm.runs.partitioning.gathered.PIECE_BYTES", 160)
    job = (fitted / "run", fitted / "x.zarr")
    group(*job, quick_path / "whole", rows=rows, sort=sort)
    whole = written(quick_path / "whole")
    stops, stop_at, more = 0, 0, int(way != "memory") + 1
    # At each of the first moments, then at every second or third.
    while (stop_at := stop_at + (1 if stop_at < 6 else more + sort.count("distance"))) < 2000:
        out = quick_path / str(stop_at)
        try:
            group(*job, out, stop_at, rows=rows, sort=sort)
        except Interrupted:
            stops += 1
        else:
            break
        if stop_at % 2:
            with suppress(Interrupted):
                group(*job, out, 2, rows=rows, sort=sort)
        group(*job, out, rows=rows, sort=sort)
        assert written(out) == whole
    assert stops >= 6


def test_a_finished_partition_is_left_alone(fitted, tmp_path) -> None:
    job = (fitted / "run", fitted / "x.npy", tmp_path / "p")
    first = group(*job, rows="npy")
    before = written(tmp_path / "p")
    assert group(*job, rows="npy") == first
    assert written(tmp_path / "p") == before
    with pytest.raises(OutputExistsError, match="resume"):
        group(*job, rows="npy", resume=False)


@pytest.mark.parametrize("rows", ["npy", "zarr", "parquet"])
def test_some_clusters_alone(rows, way, fitted, tmp_path) -> None:
    record = group(fitted / "run", fitted / "x.npy", tmp_path / "p", rows=rows, only=(4, 1))
    order = check(tmp_path / "p", np.load(fitted / "x.npy"), only=[1, 4])
    assert 0 < len(order) == record["n_rows"] < N_ROWS
    assert record["n_empty"] == 0


# Breaks when windows that hold no row of a chosen cluster are read all the same.
def test_windows_without_chosen_rows_are_not_read(fitted, tmp_path, monkeypatch) -> None:
    x = np.load(fitted / "x.npy")
    labels = np.zeros(N_ROWS, np.int32)
    labels[50] = 1
    np.save(tmp_path / "labels.npy", labels)
    read: list[RowRange] = []
    real = ZarrSource.read

    def watched(self, rows, out) -> None:
        read.append(rows)
        real(self, rows, out)

    monkeypatch.setattr(ZarrSource, "read", watched)
    out = tmp_path / "p"
    group(fitted / "run", fitted / "x.zarr", out, rows="npy", only=(1,),
          labels=tmp_path / "labels.npy")  # fmt: skip
    assert np.load(out / "rows.npy").tobytes() == x[50:51].tobytes()
    assert 1 <= sum(map(len, read)) <= 60


@pytest.mark.parametrize("rows", ["npy", "zarr", "parquet"])
@pytest.mark.parametrize("kind", ["one has all", "more clusters than rows", "none has any"])
def test_sizes_at_the_ends(kind, rows, way, tmp_path) -> None:
    x = clusters(40, 3)
    np.save(tmp_path / "x.npy", x)
    Job(tmp_path / "x.npy", tmp_path / "run", {"k": 40 if "more" in kind else 5}).attempt()
    labels = {
        "one has all": np.full(40, 3),
        "more clusters than rows": np.arange(7).repeat(6)[:40] * 5 % 40,
        "none has any": np.full(40, -1),
    }[kind]
    np.save(tmp_path / "labels.npy", labels)
    out = tmp_path / "p"
    record = group(tmp_path / "run", tmp_path / "x.npy", out, rows=rows,
                   labels=tmp_path / "labels.npy")  # fmt: skip
    if kind == "none has any":
        assert len(np.load(out / "order.npy")) == 0
        assert record["n_dropped"] == 40
        if rows == "npy":
            assert np.load(out / "rows.npy").shape == (0, 3)
    else:
        check(out, x)


def test_dropped_rows_are_in_no_cluster(way, tmp_path, capsys) -> None:
    x = clusters(N_ROWS, 3)
    x[::50] = np.nan
    np.save(tmp_path / "x.npy", x)
    settings = {"k": 4, "nan": "drop", "scale": "zscore"}
    Job(tmp_path / "x.npy", tmp_path / "run", settings).attempt()
    out = tmp_path / "p"
    arguments = ("partition", tmp_path / "run", tmp_path / "x.npy", "--out", out)
    assert cli(*arguments, "--rows", "npy", "--sort", "distance") == 0
    check(out, x, by_distance=True)
    assert json.loads((out / "partition.json").read_text())["n_dropped"] == 5
    assert "5 rows in no cluster, labelled -1 in labels.npy" in capsys.readouterr().err
    assert np.flatnonzero(np.load(out / "labels.npy") < 0).tolist() == [0, 50, 100, 150, 200]


# ---- labels from elsewhere ---------------------------------------------------


@pytest.mark.parametrize("suffix", ["npy", "zarr", "parquet"])
def test_labels_that_predict_wrote(suffix, fitted, tmp_path, capsys) -> None:
    job = (fitted / "run", fitted / "x.npy")
    labels = tmp_path / f"labels.{suffix}"
    assert cli("predict", *job, "--labels", labels) == 0
    group(*job, tmp_path / "by model", rows="npy")
    assert cli("partition", *job, "--out", tmp_path / "p", "--labels", labels, "--rows=npy") == 0
    assert "no record" not in capsys.readouterr().err
    for name in ("labels.npy", "order.npy", "rows.npy"):
        assert (tmp_path / "p" / name).read_bytes() == (tmp_path / "by model" / name).read_bytes()
    arguments = ("partition", *job, "--labels", labels, "--sort", "distance")
    status = cli(*arguments, "--out", tmp_path / "sorted")
    if suffix == "parquet":
        assert status == 0
        check(tmp_path / "sorted", np.load(fitted / "x.npy"), by_distance=True)
    else:
        assert status == 2
        assert "--sort distance needs distances" in capsys.readouterr().err
        assert not (tmp_path / "sorted").exists()


# Breaks when labels of the shape (N, 1) are not known as those that predict wrote.
@pytest.mark.parametrize("suffix", ["npy", "zarr", "parquet"])
def test_labels_of_one_nearest(suffix, fitted, tmp_path, capsys) -> None:
    job, labels = (fitted / "run", fitted / "x.npy"), tmp_path / f"labels.{suffix}"
    assert cli("predict", *job, "--nearest", "1", "--labels", labels) == 0
    group(*job, tmp_path / "by model")
    capsys.readouterr()
    assert cli("partition", *job, "--out", tmp_path / "p", "--labels", labels) == 0
    assert "no record" not in capsys.readouterr().err
    for name in ("labels.npy", "order.npy"):
        assert (tmp_path / "p" / name).read_bytes() == (tmp_path / "by model" / name).read_bytes()
    two = tmp_path / f"two.{suffix}"
    assert cli("predict", *job, "--nearest", "2", "--labels", two) == 0
    assert cli("partition", *job, "--out", tmp_path / "q", "--labels", two) == 2
    assert "without --nearest" in capsys.readouterr().err
    assert not (tmp_path / "q").exists()


def test_empty_clusters_are_those_asked_for(fitted, tmp_path, capsys) -> None:
    np.save(tmp_path / "labels.npy", np.arange(N_ROWS) % 3)
    job = ("partition", fitted / "run", fitted / "x.npy", "--labels", tmp_path / "labels.npy")
    assert cli(*job, "--out", tmp_path / "p", "--only", "2,5,2") == 0
    said = capsys.readouterr().err
    assert "the largest is 2, the run has clusters 0 to 5" in said
    assert "80 rows in 1 cluster of 2 asked for" in said
    assert json.loads((tmp_path / "p" / "partition.json").read_text())["n_empty"] == 1
    assert cli("info", tmp_path / "p") == 0
    assert "80 in 1 cluster, the largest of 80" in capsys.readouterr().out


def test_labels_in_a_store(fitted, tmp_path, capsys) -> None:
    job, store = (fitted / "run", fitted / "x.npy"), tmp_path / "st.zarr"
    zarr.open_group(store, mode="w").create_array("cube", data=np.zeros((2, 120), np.int32))
    assert cli("predict", *job, "--labels", store / "lab") == 0
    group(*job, tmp_path / "by model")
    capsys.readouterr()
    assert cli("partition", *job, "--out", tmp_path / "p", "--labels", store / "lab") == 0
    assert "no record" not in capsys.readouterr().err
    order = (tmp_path / "p" / "order.npy").read_bytes()
    assert order == (tmp_path / "by model" / "order.npy").read_bytes()
    assert cli("partition", *job, "--out", tmp_path / "q", "--labels", store / "cube") == 2
    assert "has the shape (2, 120); write them with predict to a .npy" in capsys.readouterr().err


def test_labels_of_other_rows_are_refused(fitted, tmp_path) -> None:
    other = tmp_path / "other.npy"
    np.save(other, np.load(fitted / "x.npy")[::-1])
    labels = tmp_path / "labels.npy"
    predicted(fitted / "run", other, labels)
    with pytest.raises(ConfigError, match="of another source"):
        group(fitted / "run", fitted / "x.npy", tmp_path / "p", labels=labels)
    assert not (tmp_path / "p").exists()
    # What somebody has written over them since is no label that the record knows.
    np.save(labels, np.zeros(N_ROWS, np.int32))
    group(fitted / "run", fitted / "x.npy", tmp_path / "p", labels=labels)


# Breaks when the features are found by name for the labels, and the rows are written so too.
def test_columns_in_another_order(tmp_path, capsys) -> None:
    x = clusters(90, 3)
    names = dict(zip("abc", x.T, strict=True))
    pq.write_table(pa.table(names), tmp_path / "x.parquet")
    turned = tmp_path / "turned.parquet"
    pq.write_table(pa.table({name: names[name] for name in "cab"}), turned)
    Job(tmp_path / "x.parquet", tmp_path / "run", {"k": 4}).attempt()
    labels = predicted(tmp_path / "run", turned, tmp_path / "labels.npy")
    job = ("partition", tmp_path / "run", turned, "--rows", "npy", "--labels")
    assert cli(*job, tmp_path / "labels.npy", "--out", tmp_path / "p") == 0
    assert "no record" not in capsys.readouterr().err
    order = np.argsort(labels, kind="stable")
    assert np.load(tmp_path / "p" / "rows.npy").tobytes() == x[order][:, [2, 0, 1]].tobytes()


# Breaks when a file that is too short is read for ever, or filled with anything.
@pytest.mark.parametrize("name", ["rows.npy.partial", "rows.bucket", "rows.place"])
def test_unfinished_files_that_were_altered(name, fitted, tmp_path, only_buckets) -> None:
    job = (fitted / "run", fitted / "x.zarr", tmp_path / "p")
    for stop_at in range(1, 50):
        with suppress(Interrupted):
            group(*job, stop_at, rows="npy")
        cursor = tmp_path / "p" / "unfinished" / "cursor.json"
        if cursor.exists() and json.loads(cursor.read_text())["step"] == "rows":
            break
    os.truncate(next((tmp_path / "p").rglob(name)), 10)
    with pytest.raises(ResumeError, match="has 10 bytes in place of"):
        group(*job, rows="npy")


@pytest.mark.parametrize(
    ("labels", "complaint"),
    [
        (np.zeros(N_ROWS - 1, int), "one label is needed for each of 240 rows, there are 239"),
        (np.full(N_ROWS, K), "row 0 has the label 6, the run has 6 clusters"),
        (np.full(N_ROWS, -2), "row 0 has the label -2"),
        (np.zeros(N_ROWS), "labels are whole numbers, these are float64"),
        (
            np.zeros((N_ROWS, 2), int),
            "takes one label a row, here are 2 columns; predict again without nearest",
        ),
    ],
)
def test_wrong_labels(labels, complaint, fitted, tmp_path) -> None:
    np.save(tmp_path / "labels.npy", labels)
    with pytest.raises(SourceError, match=complaint):
        group(fitted / "run", fitted / "x.npy", tmp_path / "p", labels=tmp_path / "labels.npy")
    assert not (tmp_path / "p").exists()


@pytest.mark.parametrize("name", ["gone.npy", "labels.txt", "cube.zarr", "broken.zarr"])
def test_labels_that_cannot_be_read(name, fitted, tmp_path) -> None:
    (tmp_path / "labels.txt").write_text("0\n")
    zarr.create_array(tmp_path / "cube.zarr", data=np.zeros((2, 120), np.int32))
    (tmp_path / "broken.zarr").mkdir()
    with pytest.raises(SourceError, match=name):
        group(fitted / "run", fitted / "x.npy", tmp_path / "p", labels=tmp_path / name)
    assert not (tmp_path / "p").exists()


# ---- what is refused ---------------------------------------------------------


def test_what_contradicts_itself(fitted, tmp_path, capsys) -> None:
    job = ("partition", fitted / "run", fitted / "x.npy", "--out", tmp_path / "p")
    for options, complaint in (
        (("--only", "2,6"), "--only names cluster 6, the run has 0 to 5"),
        (("--only", "2;6"), "only must be numbers of clusters"),
        (("--rows", "csv"), "rows must be a format to write them in, npy, zarr, parquet, not"),
        (("--rows", "0:10"), "not '0:10': a partition takes all rows of the source"),
        (("--labels", "l.npy", "--nan", "drop"), "leave one of them out"),
        (("--max-host-memory", "1MiB"), "--max-host-memory 1.0 MiB is too small"),
    ):
        assert cli(*job, *options) == 2
        assert complaint in capsys.readouterr().err
        assert not (tmp_path / "p").exists()


def test_a_folder_of_something_else_is_refused(fitted, tmp_path, capsys) -> None:
    job = ("partition", fitted / "run", fitted / "x.npy", "--resume", "--out")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").touch()
    (tmp_path / "file").touch()
    for name, complaint in (
        ("full", "is no partition"), ("file", "is no folder"), ("damaged", "is damaged"),
    ):  # fmt: skip
        if name == "damaged":
            group(fitted / "run", fitted / "x.npy", tmp_path / name)
            (tmp_path / name / "partition.json").write_text("{}")
        assert cli(*job, tmp_path / name) == 2
        assert complaint in capsys.readouterr().err


def test_a_partition_goes_on_as_it_began(fitted, tmp_path) -> None:
    out = tmp_path / "p"
    with pytest.raises(Interrupted):
        group(fitted / "run", fitted / "x.npy", out, 3, rows="npy")
    with pytest.raises(ResumeError, match=r"other settings \(rows: npy -> zarr"):
        group(fitted / "run", fitted / "x.npy", out, rows="zarr")
    np.save(tmp_path / "other.npy", np.load(fitted / "x.npy")[::-1])
    with pytest.raises(ResumeError, match=r"other data \(fingerprint"):
        group(fitted / "run", tmp_path / "other.npy", out, rows="npy")
    Job(fitted / "x.npy", tmp_path / "run", {"k": K, "seed": 5}).attempt()
    with pytest.raises(ResumeError, match="another model"):
        group(tmp_path / "run", fitted / "x.npy", out, rows="npy")
    group(fitted / "run", fitted / "x.npy", out, rows="npy")
    check(out, np.load(fitted / "x.npy"))


def test_another_number_of_features_is_refused(fitted, tmp_path) -> None:
    np.save(tmp_path / "wide.npy", np.zeros((20, 5), np.float32))
    with pytest.raises(ConfigError, match="has 5 features, the run's centroids have 4"):
        group(fitted / "run", tmp_path / "wide.npy", tmp_path / "p")
    assert not (tmp_path / "p").exists()


def test_no_output_within_the_source(fitted, tmp_path) -> None:
    zarr.create_array(tmp_path / "x.zarr", data=np.load(fitted / "x.npy"))
    with pytest.raises(ConfigError, match="would become part of the source"):
        group(fitted / "run", tmp_path / "x.zarr", tmp_path / "x.zarr" / "p")


# ---- a disk that refuses -----------------------------------------------------


# Breaks when a full disk loses what was saved, or is told otherwise than in one line.
@pytest.mark.parametrize("rows", ["npy", "zarr", "parquet"])
def test_a_full_disk_loses_nothing(rows, way, fitted, quick_path) -> None:
    job = (fitted / "run", fitted / "x.npy")
    group(*job, quick_path / "whole", rows=rows)
    failed = 0
    for at in (*range(0, 60, 4), *range(60, 1000, 25)):
        out = quick_path / f"{at}"
        disk = FaultyDisk(at, "ENOSPC", for_good=True)
        try:
            with disk.mounted():
                group(*job, out, rows=rows)
        except StorageError:
            failed += 1
        except (StreamkmError, OSError):  # It refuses to open what is read, too.
            pass
        if not disk.failed:
            break
        group(*job, out, rows=rows)
        assert written(out) == written(quick_path / "whole")
    assert failed >= 3


def test_a_full_disk_is_told_in_one_line(fitted, tmp_path, capsys) -> None:
    job = ("partition", fitted / "run", fitted / "x.npy", "--out", tmp_path / "p")
    with FaultyDisk(60, "ENOSPC", for_good=True).mounted():
        assert cli(*job) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert "No space left" in last
    assert "then repeat with --resume" in last
    assert cli(*job, "--resume") == 0


def test_too_little_space_is_told_before_anything(fitted, tmp_path, monkeypatch, capsys) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=100))
    job = ("partition", fitted / "run", fitted / "x.npy", "--out", tmp_path / "p", "--rows", "npy")
    assert cli(*job) == 2
    assert "bytes are free there; free space" in capsys.readouterr().err
    assert not (tmp_path / "p").exists()
    assert cli(*job, "--dry-run") == 2
    assert "100 bytes are free there" in capsys.readouterr().err


def test_memory_is_that_of_the_plan(fitted, tmp_path, capsys) -> None:
    job = ("partition", fitted / "run", fitted / "x.npy", "--rows", "npy")
    assert cli(*job, "--out", tmp_path / "p", "--max-host-memory", "100MiB") == 0
    assert "of 100.0 MiB host memory" in capsys.readouterr().err


# Breaks when what several processes write is not what one does, stopped and resumed by others.
@pytest.mark.parametrize(
    ("rows", "sort", "way"),
    [("npy", "row", "direct"), ("zarr", "distance", "buckets"), ("parquet", "row", "buckets")],
    indirect=["way"],
)
def test_several_processes_write_the_bytes_of_one(
    rows, sort, way, fitted, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr("streamkm.runs.partitioning.work.MOST_BATCHES", 1)
    labels = tmp_path / "labels.parquet"
    label(fitted / "run", fitted / "x.zarr", labels)
    job = (fitted / "run", fitted / "x.zarr")
    asked: dict[str, Any] = {"rows": rows, "sort": sort, "labels": labels}
    group(*job, tmp_path / "alone", **asked)

    def work(world: World, stop_at: int | None) -> bool:
        at = stop_at if world.rank == 1 else None
        try:
            record = group(*job, tmp_path / "many", at, world=world, **asked)
        except Interrupted:
            return True
        assert record["done"]
        return False

    stopped = [together(size, partial(work, stop_at=at))[0] for size, at in ((3, 4), (2, 1))]
    assert stopped == [True, True]
    assert not any(together(4, partial(work, stop_at=None)))
    assert written(tmp_path / "many") == written(tmp_path / "alone")


def test_a_partition_at_work_is_left_alone(fitted, tmp_path) -> None:
    from streamkm.files import FileLock

    with pytest.raises(Interrupted):
        group(fitted / "run", fitted / "x.npy", tmp_path / "p", 3)
    lock = FileLock(tmp_path / "p" / "lock", tmp_path / "p", "working on this partition")
    lock.take()
    with pytest.raises(ValueError, match=f"process {os.getpid()}"):
        group(fitted / "run", fitted / "x.npy", tmp_path / "p")
    lock.release()


def test_info_says_what_a_partition_is(fitted, tmp_path, capsys) -> None:
    out = tmp_path / "p"
    with pytest.raises(Interrupted):
        group(fitted / "run", fitted / "x.npy", out, 3, only=(2, 4))
    assert cli("info", out) == 0
    said = capsys.readouterr().out
    assert "2, 4 alone" in said
    assert "not finished: repeat the command with --resume" in said
    record = group(fitted / "run", fitted / "x.npy", out, only=(2, 4))
    assert cli("info", out) == 0
    said = capsys.readouterr().out
    assert f"{record['n_rows']} in 2 clusters, the largest of {record['largest']}" in said
    assert "state        finished" in said


def test_content_is_of_the_same_files(fitted, tmp_path) -> None:
    """`content` of the rows does not depend on the folder's name."""
    for name in "ab":
        group(fitted / "run", fitted / "x.npy", tmp_path / name, rows="parquet")
    assert content(tmp_path / "a" / "rows") == content(tmp_path / "b" / "rows")
