"""Labels and distances of the several nearest centroids of each row."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from streamkm.config import ExecutionConfig
from streamkm.errors import Interrupted
from streamkm.runs.predict import predict
from streamkm.runs.storage.model import load_model
from streamkm.sources import open_source
from tests.runs.helpers import StopAfter, cli, clusters, label, short_batches
from tests.sinks.cells import write_cells

K, M = 9, 4


@pytest.fixture
def x(tmp_path: Path) -> Path:
    """300 rows, one of which is not finite and one a row of zeros."""
    rows = clusters(300, 5)
    rows[7, 2], rows[8] = np.nan, 0
    np.save(tmp_path / "x.npy", rows)
    return tmp_path / "x.npy"


def fitted(x: Path, *settings: object) -> Path:
    run = x.with_name("run")
    assert cli("fit", x, "--k", K, "--nan", "drop", "--out", run, *settings) == 0
    return run


def ranked(run: Path, x: Path) -> tuple[np.ndarray, np.ndarray]:
    """Labels and distances of all centroids by NumPy, nearest first."""
    model = load_model(run)
    rows = np.load(x).astype(np.float64)
    if model.settings["metric"] == "cosine":
        lengths_N = np.linalg.norm(rows, axis=1, keepdims=True)
        rows = (rows / np.where(lengths_N > 0, lengths_N, 1)).astype(np.float32).astype(np.float64)
    elif model.scaling.is_affine:
        rows = (rows - model.scaling.shift_D.numpy()) * model.scaling.factor_D.numpy()
    far_NK = np.linalg.norm(rows[:, None] - model.centroids_KD.double().numpy(), axis=2)
    order_NK = far_NK.argsort(axis=1, kind="stable")
    return order_NK, np.take_along_axis(far_NK, order_NK, axis=1) / model.scaling.unit


# Breaks when a place, a batch or a stop gives a row the centroids of another; when what is left
# out or has no direction has any.
@pytest.mark.parametrize("settings", [(), ("--metric", "cosine"), ("--scale", "zscore")], ids=str)
def test_several_are_those_of_numpy_wherever_predict_was_stopped(
    settings: tuple[str, ...], x: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = fitted(x, *settings)
    short_batches(monkeypatch, 64)
    whole = {name: tmp_path / f"{name}.npy" for name in ("labels", "distances", "second")}
    assert cli("predict", run, x, "--nearest", M, *outputs(whole)) == 0
    labels_NM, distances_NM = np.load(whole["labels"]), np.load(whole["distances"])
    assert (labels_NM.dtype, distances_NM.dtype) == (np.int32, np.float32)
    order_NK, far_NK = ranked(run, x)
    kept = ~np.isin(np.arange(300), [7, 8])
    assert labels_NM[kept].tolist() == order_NK[kept, :M].tolist()
    np.testing.assert_allclose(distances_NM[kept], far_NK[kept, :M], rtol=1e-5)
    assert labels_NM[7].tolist() == [-1] * M
    assert np.isnan(distances_NM[7]).all()
    if "cosine" in settings:
        assert labels_NM[8].tolist() == list(range(M))
        np.testing.assert_allclose(distances_NM[8], 1, rtol=1e-6)
    second_N = np.load(whole["second"])
    np.testing.assert_array_equal(second_N, distances_NM[:, 1])

    parts = {name: tmp_path / f"{name}-parts.npy" for name in whole}
    asked = {"nearest": M, "distances": parts["distances"], "second": parts["second"]}
    label(run, x, parts["labels"], [1, 2], asked=asked)
    for name, path in whole.items():
        assert path.read_bytes() == (tmp_path / f"{name}-parts.npy").read_bytes()


# Breaks when what was begun as distances goes on as second distances: both look alike.
def test_distances_do_not_go_on_as_second_distances(x, tmp_path, monkeypatch, capsys) -> None:
    run = fitted(x)
    short_batches(monkeypatch, 64)
    labels, far = tmp_path / "labels.npy", tmp_path / "far.npy"
    rows = open_source(x)
    with closing(rows), pytest.raises(Interrupted):
        predict(
            run, rows, ExecutionConfig(device="cpu"), labels=labels, distances=far, nan="drop",
            resume=False, stop_request=StopAfter(1),
        )  # fmt: skip
    capsys.readouterr()
    assert cli("predict", run, x, "--labels", labels, "--second", far, "--resume") == 2
    assert "labels.npy" in capsys.readouterr().err


def outputs(paths: dict[str, Path]) -> list[object]:
    return [word for name, path in paths.items() for word in (f"--{name}", path)]


# Breaks when the first of several is another than the label that predict writes alone.
def test_one_is_what_predict_writes_without_the_option(x: Path, tmp_path: Path, capsys) -> None:
    run = fitted(x)
    names = ("alone", "one", "several", "with-second")
    options: dict[str, tuple[object, ...]] = {
        "alone": (), "one": ("--nearest", 1), "several": ("--nearest", K),
        "with-second": ("--second", tmp_path / "second.npy"),
    }  # fmt: skip
    found = {}
    for name in names:
        paths = {"labels": tmp_path / f"{name}.npy", "distances": tmp_path / f"{name}-far.npy"}
        assert cli("predict", run, x, *outputs(paths), *options[name]) == 0
        is_ranked = "reference, which alone ranks several, " in capsys.readouterr().err
        assert is_ranked is (name in ("several", "with-second"))
        found[name] = [np.load(path) for path in paths.values()]
    (labels_N, distances_N), one = found["alone"], found["one"]
    assert [each.shape for each in one] == [(300, 1)] * 2
    assert [each.shape for each in found["several"]] == [(300, K)] * 2
    for name in ("one", "several"):
        np.testing.assert_array_equal(found[name][0][:, 0], labels_N)
        np.testing.assert_array_equal(found[name][1][:, 0], distances_N)
    # A second distance leaves the outputs beside it as they are, to the byte.
    for ending in ("", "-far"):
        alone, beside = (tmp_path / f"{name}{ending}.npy" for name in ("alone", "with-second"))
        assert alone.read_bytes() == beside.read_bytes()


# Breaks when lists of a table are of other rows, or a table of second distances has no name.
def test_a_table_has_columns_of_lists(x: Path, tmp_path: Path) -> None:
    run = fitted(x)
    paths = {"labels": tmp_path / "labels.npy", "distances": tmp_path / "far.npy"}
    assert cli("predict", run, x, "--nearest", M, *outputs(paths)) == 0
    tables = {"labels": tmp_path / "t.parquet", "second": tmp_path / "s.parquet"}
    assert cli("predict", run, x, "--nearest", M, *outputs(tables)) == 0
    table = pq.read_table(tables["labels"])
    assert table.schema.names == ["cluster", "distance"]
    assert str(table.schema.field("cluster").type) == "fixed_size_list<element: int32>[4]"
    assert table["cluster"].to_pylist() == np.load(paths["labels"]).tolist()
    second = pq.read_table(tables["second"])
    assert second.schema.names == ["second_distance"]
    np.testing.assert_array_equal(second["second_distance"], np.load(paths["distances"])[:, 1])


# Breaks when rows of 4 labels are completed with rows of 2, or taken for finished.
def test_another_number_is_another_output(x: Path, tmp_path: Path, capsys) -> None:
    run, out = fitted(x), tmp_path / "labels.npy"
    with closing(open_source(x)) as rows, pytest.raises(Interrupted):
        predict(
            run, rows, ExecutionConfig(device="cpu"), labels=out, nearest=M, resume=False,
            stop_request=StopAfter(1),
        )  # fmt: skip
    again = ("predict", run, x, "--labels", out, "--resume", "--nearest")
    capsys.readouterr()
    assert cli(*again, 2) == 2
    assert (
        "holds 300 rows of 4 x int32, this run writes 300 of 2 x int32" in capsys.readouterr().err
    )
    assert cli(*again, M) == 0
    assert cli(*again, M) == 0
    assert "nothing is left to do" in capsys.readouterr().err
    assert cli(*again, 2) == 2
    assert cli(*again[:-1]) == 2


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--nearest", K + 1), "--nearest 10 must be from 1 to 9, the number of centroids"),
        (("--nearest", 0), "--nearest 0 must be from 1 to 9"),
        (("--nearest", "two"), "argument --nearest: must be a whole number of at least 1"),
        (("--nearest", 2, "--kernel", "cpu"), "several are ranked by --kernel reference"),
        (("--nearest", 2, "--search", "fast"), "--search fast finds the nearest centroid alone"),
        (("--second", "s.npy", "--search", "fast"), "several are ranked by --search exact"),
        (("--second", "labels.npy"), "--labels and --second must differ, both are labels.npy"),
        (("--second", "s.h5ad"), "only --labels can be a copy of the source"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused(options, says, x, tmp_path, monkeypatch, capsys) -> None:
    run = fitted(x)
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    for more in ((), ("--dry-run",)):
        assert cli("predict", run, x, "--labels", "labels.npy", *options, *more) == 2
        assert says in capsys.readouterr().err
    assert not list(tmp_path.glob("labels*"))


def test_a_second_of_one_centroid_is_refused(x, tmp_path, capsys) -> None:
    run = tmp_path / "one"
    assert cli("fit", x, "--k", 1, "--nan", "drop", "--out", run) == 0
    capsys.readouterr()
    outs = {"labels": tmp_path / "l.npy", "second": tmp_path / "s.npy"}
    assert cli("predict", run, x, *outputs(outs)) == 2
    assert "--second is the distance to the second nearest centroid, the run has only 1" in (
        capsys.readouterr().err
    )


# Breaks when obs gets a column of lists, which anndata cannot read.
def test_obs_has_no_room_for_several(tmp_path, capsys) -> None:
    cells = write_cells(tmp_path / "cells.h5ad")
    run = tmp_path / "run"
    assert cli("fit", cells, "--k", 3, "--out", run) == 0
    for more in ((), ("--dry-run",)):
        capsys.readouterr()
        out = tmp_path / "out.h5ad"
        assert cli("predict", run, cells, "--labels", out, "--nearest", 2, *more) == 2
        assert "a column of obs holds one label a row, not those of the 2 nearest" in (
            capsys.readouterr().err
        )
        assert not out.exists()
