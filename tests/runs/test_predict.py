"""Labels of a run: the same wherever they were stopped, and never completed by another run."""

from __future__ import annotations

import json
import os
import re
from functools import partial
from itertools import chain
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from streamkm.config import ExecutionConfig
from streamkm.errors import Interrupted
from streamkm.runs.predict import predict
from streamkm.runs.storage.model import load_model
from streamkm.sinks import open_sink
from streamkm.sources import open_source
from tests.runs.engine.cases import N_ROWS, Case, on_cases
from tests.runs.helpers import Job, StopAfter, cli, predicted, short_batches
from tests.sinks.cells import write_cells


@pytest.fixture
def job(case: Case, tmp_path: Path) -> Job:
    return case.job(tmp_path)


@pytest.mark.usefixtures("small_windows", "short_seeding")
@on_cases("minibatch, z-score", "minibatch, min-max, drop")
def test_labels_are_the_same_wherever_predict_was_stopped(job, tmp_path, monkeypatch):
    job.attempt()
    short_batches(monkeypatch, 25)
    whole = predicted(job.run, job.source, tmp_path / "whole.npy")
    assert (whole == -1).sum() == (4 if "drop" in job.settings.values() else 0)
    n_batches = -(-N_ROWS // 25)
    for stop_at in range(1, n_batches + 1):
        out = tmp_path / f"{stop_at}.npy"
        labels = predicted(job.run, job.source, out, [stop_at], read_threads=1 + stop_at % 3)
        assert out.read_bytes() == (tmp_path / "whole.npy").read_bytes()
        np.testing.assert_array_equal(labels, whole)
    predicted(job.run, job.source, tmp_path / "each.npy", [2] * n_batches)
    assert (tmp_path / "each.npy").read_bytes() == (tmp_path / "whole.npy").read_bytes()
    assert not list(tmp_path.glob("*.partial*"))


@pytest.fixture
def x(tmp_path) -> Path:
    path: Path = tmp_path / "x.npy"
    np.save(path, np.random.default_rng(0).normal(size=(200, 3)).astype(np.float32))
    return path


# A crash between two outputs: the first has its name, the second has not.
@pytest.mark.parametrize("suffix", ["npy", "zarr"])
def test_predict_resumes_where_only_one_of_two_outputs_was_published(
    suffix, x, tmp_path, monkeypatch
):
    run, labels = tmp_path / "run", tmp_path / f"l.{suffix}"
    distances = tmp_path / f"d.{suffix}"
    assert cli("fit", x, "--k", 2, "--out", run) == 0
    arguments = ["predict", run, x, "--labels", labels, "--distances", distances]
    real, calls = os.replace, 0

    class Crash(BaseException):
        pass

    def replace(path, target):
        nonlocal calls
        if Path(target) in (labels, distances):
            calls += 1
            if calls == 2:
                raise Crash
        real(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace)
        with pytest.raises(Crash):
            cli(*arguments)
    assert labels.exists() != distances.exists()
    assert cli(*arguments, "--resume") == 0
    assert labels.exists()
    assert distances.exists()
    assert not list(tmp_path.glob("*.partial*"))


# A prediction that ends before anything was saved must say of which run it is, too: killed as it
# gets its name, it would be completed under another run's.
def test_predict_of_another_run_does_not_complete_what_is_there(x, tmp_path, monkeypatch):
    labels = tmp_path / "l.npy"
    for seed in (0, 1):
        fit = ("fit", x, "--k", 3, "--seed", seed, "--init", "random", "--out")
        assert cli(*fit, tmp_path / f"run{seed}") == 0

    class Crash(BaseException):
        pass

    def replace(path, target):
        if Path(target) == labels:
            raise Crash
        os.rename(path, target)  # noqa: PTH104

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace)
        with pytest.raises(Crash):
            cli("predict", tmp_path / "run0", x, "--labels", labels)
    assert cli("predict", tmp_path / "run1", x, "--labels", labels, "--resume") == 2
    assert not labels.exists()
    assert cli("predict", tmp_path / "run0", x, "--labels", labels, "--resume") == 0


@pytest.fixture
def named(tmp_path) -> Path:
    """Three clusters far apart along two features, in columns of other orders and names."""
    centres = np.array([[0, 0, 0], [50, 0, 0], [0, 80, 0]])
    rows = centres[np.arange(300) % 3] + np.random.default_rng(0).normal(size=(300, 3))
    columns = dict(zip("abc", rows.T, strict=True))
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    pq.write_table(pa.table({name: columns[name] for name in "cba"}), tmp_path / "turned.parquet")
    renamed = dict(zip("abd", rows.T, strict=True))
    pq.write_table(pa.table(renamed), tmp_path / "renamed.parquet")
    np.save(tmp_path / "x.npy", rows)
    folder: Path = tmp_path
    return folder


# Breaks when rows are labelled by the wrong columns: a third of the labels differed.
def test_predict_and_evaluate_find_features_by_name(named, capsys):
    run = named / "run"
    assert cli("fit", named / "x.parquet", "--k", 3, "--out", run) == 0
    assert load_model(run).feature_names == ("a", "b", "c")
    for name in ("x.parquet", "turned.parquet", "x.npy"):
        assert cli("predict", run, named / name, "--labels", named / f"{name}.npy") == 0
        assert (named / f"{name}.npy").read_bytes() == (named / "x.parquet.npy").read_bytes()
    capsys.readouterr()
    figures = []
    for name in ("x.parquet", "turned.parquet"):
        assert cli("evaluate", run, named / name, "--json") == 0
        figures.append(json.loads(capsys.readouterr().out))
    assert figures[0] == figures[1]
    labels = named / "no.npy"
    both = f"the run has a, b, c, {named / 'renamed.parquet'} has a, b, d"
    for command in (
        ("predict", run, named / "renamed.parquet", "--labels", labels),
        ("predict", run, named / "renamed.parquet", "--labels", labels, "--dry-run"),
        ("evaluate", run, named / "renamed.parquet"),
        ("predict", run, named / "x.parquet", "--labels", labels, *("--column", "a") * 2),
    ):
        assert cli(*command) == 2
        said = capsys.readouterr().err
        assert both in said or "must be chosen once each" in said
        assert said.count("\n") == 1
    assert cli("evaluate", run, named / "x.parquet", "--column", "b", "--column", "a") == 2
    assert "the run has a, b, c, " in capsys.readouterr().err
    assert not labels.exists()


# Breaks when a run goes on with its columns in another order than it began with.
def test_a_fit_goes_on_with_the_features_that_it_began_with(named, capsys):
    run, x = named / "run", named / "x.parquet"
    columns = [("--column", name) for name in "abc"]
    fit = ("fit", x, "--k", 3, "--out", run)
    assert cli(*fit, *chain(*columns)) == 0
    before = (run / "model.safetensors").read_bytes()
    (run / "model.safetensors").unlink()
    assert cli(*fit, *chain(*columns[::-1]), "--resume", "--dry-run") == 0
    assert cli(*fit, *chain(*columns[::-1]), "--resume") == 0
    assert (run / "model.safetensors").read_bytes() == before
    assert cli("info", run) == 0
    assert re.search("^features     a, b, c$", capsys.readouterr().out, re.MULTILINE)
    assert cli("info", x) == 0
    assert re.search(r"^features     3 \(a, b, c\)$", capsys.readouterr().out, re.MULTILINE)
    assert cli(*fit, *chain(*columns[:2]), "--resume") == 2
    assert (
        f"the run {run} has a, b, c, {x} has a, b (only one of them has c); "
        in capsys.readouterr().err
    )


# Breaks when a run of an older version, which knows no names, cannot be used.
def test_a_run_without_names_takes_features_by_position(named):
    run = named / "run"
    assert cli("fit", named / "x.npy", "--k", 3, "--out", run) == 0
    assert "feature_names" not in json.loads((run / "config.json").read_text())
    for name in ("x.npy", "x.parquet", "renamed.parquet"):
        assert cli("predict", run, named / name, "--labels", named / f"{name}.npy") == 0
        assert (named / f"{name}.npy").read_bytes() == (named / "x.npy.npy").read_bytes()


def test_a_row_that_is_not_finite_is_told_by_the_name_of_its_feature(named, capsys):
    pq.write_table(pa.table({"u": [1.0, 2.0], "v": [1.0, np.nan]}), named / "x.parquet")
    assert cli("fit", named / "x.parquet", "--k", 1, "--out", named / "run") == 2
    assert "row 1 holds nan (feature 1, 'v'; 1 such rows" in capsys.readouterr().err


# Breaks when a row with a null ends a run that drops such rows, or takes another row's label.
@pytest.mark.parametrize("kind", ["columns", "integers", "lists", "lists of one length"])
def test_rows_with_nulls_are_dropped(kind, tmp_path, capsys):
    rows = (np.random.default_rng(0).normal(size=(200, 2)) * 9).round()
    values = rows.tolist()
    lost = [0, 77, 199]
    for row in lost:
        values[row] = [1.0, None]
    if "lists" in kind:
        values[lost[1]] = None
        number = pa.float32()
        table = {"x": pa.array(values, pa.list_(number, 2) if "one" in kind else pa.list_(number))}
    else:
        number = pa.int32() if kind == "integers" else pa.float64()
        table = {name: pa.array([row[i] for row in values], number) for i, name in enumerate("ab")}
    x, run, labels = tmp_path / "x.parquet", tmp_path / "run", tmp_path / "labels.npy"
    pq.write_table(pa.table(table), x, row_group_size=50)
    fit = ("fit", x, "--k", 3, "--out", run)
    for command in (fit, (*fit, "--dry-run")):
        assert cli(*command) == 2
        assert "row 0 holds nan" in capsys.readouterr().err
    assert cli("info", x) == 0
    assert "nulls in" in capsys.readouterr().out
    assert cli(*fit, "--nan", "drop") == 0
    assert load_model(run).counts_K.sum() == 197
    assert cli("predict", run, x, "--labels", labels) == 0
    assert np.flatnonzero(np.load(labels) == -1).tolist() == lost
    capsys.readouterr()
    assert cli("evaluate", run, x, "--json") == 0
    assert json.loads(capsys.readouterr().out)["dropped"] == 3
    # The other rows are labelled as they are without these.
    np.save(tmp_path / "kept.npy", np.delete(rows, lost, axis=0))
    assert cli("predict", run, tmp_path / "kept.npy", "--labels", tmp_path / "kept-labels.npy") == 0
    assert np.array_equal(np.load(tmp_path / "kept-labels.npy"), np.delete(np.load(labels), lost))


# ---- tables with ids ---------------------------------------------------------


@pytest.fixture
def embeddings(tmp_path) -> Path:
    """Twelve Parquet files of 100 rows; the group of a row stands in its id."""
    folder: Path = tmp_path / "embeddings"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(12):
        rows = (50 * number + rng.normal(size=(100, 4))).astype(np.float32)
        ids = [f"{number}-{i}" for i in range(100)]
        table = pa.table({"name": ids, "e": pa.FixedSizeListArray.from_arrays(rows.ravel(), 4)})
        pq.write_table(table, folder / f"part-{number}.parquet", row_group_size=30)
    return folder


# Breaks when an id gets the label of another row: as text, part-10 comes before part-2.
def test_ids_and_labels_are_of_one_row(embeddings, tmp_path, capsys):
    run, out = tmp_path / "run", tmp_path / "out.parquet"
    assert cli("fit", embeddings, "--k", 12, "--out", run) == 0
    labels, distances = tmp_path / "labels.npy", tmp_path / "distances.npy"
    assert cli("predict", run, embeddings, "--labels", labels, "--distances", distances) == 0
    predict = ("predict", run, embeddings, "--labels", out)
    assert cli(*predict, "--id-column", "name") == 0
    table = pq.read_table(out)
    assert table.schema.names == ["name", "cluster", "distance"]
    assert table.schema.field("cluster").type == pa.int32()
    assert table.schema.field("distance").type == pa.float32()
    assert table["name"].to_pylist() == [f"{n}-{i}" for n in range(12) for i in range(100)]
    np.testing.assert_array_equal(table["cluster"], np.load(labels))
    np.testing.assert_array_equal(table["distance"], np.load(distances))
    of_group = {name.split("-")[0]: label for name, label in zip(
        table["name"].to_pylist(), table["cluster"].to_pylist(), strict=True
    )}  # fmt: skip
    assert len(set(of_group.values())) == 12

    assert cli(*predict, "--id-column", "name", "--resume") == 0
    assert "nothing is left to do" in capsys.readouterr().err
    # Without ids it is another table.
    assert cli(*predict, "--resume") == 2
    out.unlink()
    assert cli(*predict) == 0
    assert pq.read_table(out).equals(table.drop_columns("name"))


def test_distances_may_be_a_table_too(embeddings, tmp_path):
    run, labels = tmp_path / "run", tmp_path / "labels.npy"
    distances = tmp_path / "distances.parquet"
    assert cli("fit", embeddings, "--k", 3, "--out", run) == 0
    outputs = ("--labels", labels, "--distances", distances, "--id-column", "name")
    assert cli("predict", run, embeddings, *outputs) == 0
    assert pq.read_table(distances).schema.names == ["name", "distance"]
    assert len(np.load(labels)) == 1200


def test_what_is_wrong_with_ids_is_told(embeddings, tmp_path, capsys):
    run, out = tmp_path / "run", tmp_path / "out.parquet"
    assert cli("fit", embeddings, "--k", 3, "--out", run) == 0
    capsys.readouterr()
    predict = ("predict", run, embeddings, "--labels", out, "--id-column")
    assert cli(*predict, "id") == 2
    err = capsys.readouterr().err
    assert "there is no column 'id'; there are name string, e fixed_size_list" in err
    assert err.count("\n") == 1
    npy = ("predict", run, embeddings, "--labels", tmp_path / "l.npy", "--id-column", "name")
    assert cli(*npy) == 0
    assert "note: ids of column 'name' are not written" in capsys.readouterr().err
    path = embeddings / "part-3.parquet"
    table = pq.read_table(path)
    ids = ["3-0", "3-0", None, *[f"3-{i}" for i in range(3, 100)]]
    pq.write_table(table.set_column(0, "name", [ids]), path)
    for more in ((), ("--dry-run",)):
        assert cli(*predict, "name", *more) == 0
        told = "".join(capsys.readouterr())
        assert "1 row with a null id in column 'name'" in told
        assert "1 row with an id in column 'name' that an earlier row has" in told
        if out.exists():
            out.unlink()


# Breaks when rows that were labelled under one column of ids go on under another.
def test_a_table_is_resumed_with_its_own_ids_only(embeddings, tmp_path, monkeypatch, capsys):
    run, out = tmp_path / "run", tmp_path / "out.parquet"
    assert cli("fit", embeddings, "--k", 3, "--out", run) == 0
    short_batches(monkeypatch, 25)
    monkeypatch.setattr("streamkm.runs.predict.open_sink", partial(open_sink, chunk_rows=100))
    source = open_source(embeddings, id_column="name")
    with pytest.raises(Interrupted):
        predict(
            run, source, ExecutionConfig(device="cpu"), labels=out, resume=False,
            stop_request=StopAfter(9),
        )  # fmt: skip
    source.close()
    assert not out.exists()
    capsys.readouterr()
    command = ("predict", run, embeddings, "--labels", out, "--resume")
    assert cli(*command) == 2
    assert "was begun with other columns (name, cluster, distance)" in capsys.readouterr().err
    assert cli(*command, "--id-column", "name") == 0
    assert "resumed: from row " in capsys.readouterr().err
    assert pq.read_table(out)["name"][-1].as_py() == "11-99"
    whole = tmp_path / "whole.parquet"
    assert cli("predict", run, embeddings, "--labels", whole, "--id-column", "name") == 0
    assert whole.read_bytes() == out.read_bytes()


# ---- the fast search --------------------------------------------------------


@pytest.fixture
def grouped(tmp_path, rng) -> Path:
    """Rows in 60 groups that lie far apart, and a run that knows them."""
    places = 50 * rng.normal(size=(60, 4))
    np.save(tmp_path / "places.npy", places)
    rows = places[rng.integers(60, size=3000)] + rng.normal(size=(3000, 4))
    np.save(tmp_path / "x.npy", rows.astype(np.float32))
    given = ("--init", tmp_path / "places.npy", "--algorithm", "tree")
    assert cli("fit", tmp_path / "x.npy", "--k", 60, *given, "--out", tmp_path / "run") == 0
    folder: Path = tmp_path
    return folder


# Breaks when the fast search labels rows by a number within a list, or what evaluate tells is not
# of the search that was asked for.
def test_a_fast_search_finds_groups_and_says_how_many_rows_it_labels_right(grouped, capsys):
    run, x = grouped / "run", grouped / "x.npy"
    for search in ("exact", "fast"):
        out = grouped / f"{search}.npy"
        assert cli("predict", run, x, "--labels", out, "--search", search) == 0
    labels = np.load(grouped / "exact.npy")
    np.testing.assert_array_equal(labels, np.load(grouped / "fast.npy"))
    capsys.readouterr()
    told = []
    for search in ("exact", "fast"):
        assert cli("evaluate", run, x, "--search", search, "--json") == 0
        told.append(json.loads(capsys.readouterr().out))
    assert (told[1].pop("true_nearest"), told[1].pop("true_nearest_rows")) == (1.0, 3000)
    assert told[1].pop("silhouette") == pytest.approx(told[0].pop("silhouette"), rel=0.05)
    assert told[1] == told[0]
    assert cli("evaluate", run, x, "--search", "fast") == 0
    assert "true nearest     100.00% of 3,000 rows" in capsys.readouterr().out


# Breaks when a search that misses is told as one that finds all.
def test_the_share_of_true_nearest_is_that_of_all_rows(tmp_path, rng, capsys):
    x, centroids = rng.normal(size=(5000, 12)).astype(np.float32), rng.normal(size=(500, 12))
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "c.npy", centroids)
    run = tmp_path / "run"
    given = ("--init", tmp_path / "c.npy", "--no-closing-pass")
    assert cli("fit", tmp_path / "x.npy", "--k", 500, *given, "--out", run) == 0
    found = {}
    for search in ("exact", "fast"):
        out = tmp_path / f"{search}.npy"
        assert cli("predict", run, tmp_path / "x.npy", "--labels", out, "--search", search) == 0
        found[search] = np.load(out)
    share = float((found["exact"] == found["fast"]).mean())
    assert 0.7 < share < 1
    capsys.readouterr()
    assert cli("evaluate", run, tmp_path / "x.npy", "--search", "fast", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["true_nearest"], told["true_nearest_rows"]) == (pytest.approx(share), 5000)


# Breaks when labels of one search are taken for those of the other.
def test_outputs_of_one_search_are_not_completed_by_the_other(grouped, monkeypatch, capsys):
    run, x, out = grouped / "run", grouped / "x.npy", grouped / "l.npy"
    monkeypatch.setattr("streamkm.runs.engine.labelling.largest_batch_rows", lambda *_: 100)
    for first, second in (("exact", "fast"), ("fast", "exact")):
        source = open_source(x)
        with pytest.raises(Interrupted):
            predict(
                run, source, ExecutionConfig(device="cpu"), labels=out, search=first,
                resume=False, stop_request=StopAfter(9),
            )  # fmt: skip
        source.close()
        capsys.readouterr()
        command = ("predict", run, x, "--labels", out, "--resume", "--search")
        assert cli(*command, second) == 2
        assert f"another search ({first}, now {second})" in capsys.readouterr().err
        assert cli(*command, first) == 0
        assert "resumed: from row " in capsys.readouterr().err
        assert cli(*command, first) == 0
        assert "nothing is left to do" in capsys.readouterr().err
        assert cli(*command, second) == 2
        out.unlink()


def test_a_fast_search_is_refused_on_a_gpu(grouped, capsys):
    command = ("predict", grouped / "run", grouped / "x.npy", "--labels", grouped / "l.npy")
    assert cli(*command, "--search", "fast", "--device", "cuda") == 2
    assert "--device cuda: search fast runs on cpu alone" in capsys.readouterr().err


# Breaks when labels in obs differ from those in a file of their own; when a dry run promises space,
# or a run, that is not there.
def test_labels_in_the_obs_of_a_copy(tmp_path, monkeypatch, capsys):
    cells, run, out = write_cells(tmp_path / "cells.h5ad"), tmp_path / "run", tmp_path / "out.h5ad"
    content = cells.read_bytes()
    assert cli("fit", cells, "--k", 3, "--out", run) == 0
    assert cli("predict", run, cells, "--labels", tmp_path / "l.npy") == 0
    capsys.readouterr()
    predict_ = ("predict", run, cells, "--labels", out)
    assert cli(*predict_, "--dry-run") == 0
    most = (len(content) + 2 * 4 * 1000 + (1 << 20)) / (1 << 20)
    assert f"outputs: {most:.1f} MiB at most" in capsys.readouterr().out
    short_batches(monkeypatch, 25)
    source = open_source(cells)
    with pytest.raises(Interrupted):
        predict(
            run, source, ExecutionConfig(device="cpu"), labels=out, resume=False,
            stop_request=StopAfter(9),
        )  # fmt: skip
    source.close()
    assert not out.exists()
    assert cli(*predict_, "--resume") == 0
    assert "resumed: from row " in capsys.readouterr().err
    with h5py.File(out) as file:
        assert file["obs/cluster"][:].tolist() == np.load(tmp_path / "l.npy").tolist()
    assert cells.read_bytes() == content
    assert cli(*predict_, "--resume") == 0
    assert "is finished" in capsys.readouterr().err
    for arguments, says in (
        ((out, "--labels", tmp_path / "again.h5ad"), "has a column cluster already"),
        ((tmp_path / "*.h5ad", "--labels", run / "x.h5ad"), "must be one local .h5ad file"),
        ((cells, "--labels", tmp_path / "x.npy", "--distances", tmp_path / "x.h5ad"), "only --la"),
    ):
        for more in ((), ("--dry-run",)):
            assert cli("predict", run, *arguments, *more) == 2
            assert says in capsys.readouterr().err
