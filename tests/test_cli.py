"""The command line: what it refuses, how it says so, and that refusing costs nothing.

Every refusal is one line on stderr, exit status 2, no traceback, and nothing written.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr

from streamkm.cli import main
from tests.runs.processes import ROOT


@pytest.fixture
def x(tmp_path: Path) -> Path:
    """200 x 3 float32 in two far clusters."""
    rows = np.random.default_rng(0).normal(size=(200, 3)).astype(np.float32)
    rows[100:] += 50
    path = tmp_path / "x.npy"
    np.save(path, rows)
    return path


@pytest.fixture
def done(x, tmp_path: Path, capsys) -> Path:
    """A finished run of k 2."""
    assert cli("fit", x, "--k", 2, "--out", tmp_path / "done") == 0
    capsys.readouterr()
    return tmp_path / "done"


def cli(*arguments: object) -> int:
    """Exit status of the command line in this process."""
    try:
        return main([str(argument) for argument in arguments])
    except SystemExit as end:  # argparse
        return int(end.code or 0)


def tree(folder: Path) -> dict[str, int]:
    """Everything below `folder`, but for locks, with the time of its last change."""
    found = {str(p.relative_to(folder)): p.stat().st_mtime_ns for p in folder.rglob("*")}
    return {name: time for name, time in found.items() if Path(name).name != "lock"}


class Refusal:
    """Asserts that a command is refused in one line, and that nothing is written."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self._capsys = folder, capsys

    def __call__(self, *arguments: object, clean: bool = True) -> str:
        """The line; with `clean`, not even a run folder or an unfinished output is left."""
        before = tree(self.folder)
        assert cli(*arguments) == 2
        out, err = self._capsys.readouterr()
        assert out == ""
        # What is said before (shape, plan) is no part of the refusal.
        lines = [line for line in err.splitlines() if line.startswith("streamkm: ")]
        assert len(lines) == 1, err
        assert err.splitlines()[-1] == lines[0]
        assert "Traceback" not in err
        if clean:
            assert tree(self.folder) == before
        return lines[0]


@pytest.fixture
def refused(tmp_path, capsys) -> Refusal:
    return Refusal(tmp_path, capsys)


# ---- sources ----------------------------------------------------------------

ARRAYS: dict[str, tuple[np.ndarray, str]] = {
    "empty": (np.empty((0, 3)), "the array is empty"),
    "no features": (np.empty((3, 0)), "the array is empty"),
    "one dimension": (np.arange(5.0), "at least two dimensions"),
    "no dimension": (np.array(1.0), "at least two dimensions"),
    "objects": (np.array([[1, "a"]], dtype=object), "object"),
    "strings": (np.array([["a", "b"]]), "real numbers"),
    "complex": (np.ones((4, 2), np.complex64), "real numbers"),
    "structured": (np.zeros((4, 2), [("a", "f4"), ("b", "i2")]), "records of a, b"),
    "bool": (np.ones((4, 2), bool), "real numbers"),
    "dates": (np.zeros((4, 2), "datetime64[s]"), "real numbers"),
}


@pytest.mark.parametrize("case", ARRAYS)
@pytest.mark.parametrize("command", ["fit", "info"])
def test_arrays_that_cannot_be_clustered(case, command, tmp_path, refused):
    array, reason = ARRAYS[case]
    np.save(tmp_path / "bad.npy", array, allow_pickle=True)
    options = ["--k", 2, "--out", tmp_path / "run"] if command == "fit" else []
    message = refused(command, tmp_path / "bad.npy", *options)
    assert reason in message
    assert "bad.npy" in message
    assert not (tmp_path / "run").exists()


def test_a_path_that_does_not_exist(tmp_path, refused):
    message = refused("fit", tmp_path / "nope.npy", "--k", 2, "--out", tmp_path / "run")
    assert "nope.npy: does not exist" in message


@pytest.mark.parametrize("name", ["text.npy", "text.txt", "text"])
def test_a_file_that_is_no_array(name, tmp_path, refused):
    (tmp_path / name).write_text("not an array\n" * 100)
    refused("fit", tmp_path / name, "--k", 2, "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_folder_without_arrays(tmp_path, refused):
    (tmp_path / "folder").mkdir()
    refused("fit", tmp_path / "folder", "--k", 2, "--out", tmp_path / "run")


def test_a_truncated_file(x, tmp_path, refused):
    x.write_bytes(x.read_bytes()[:-100])
    message = refused("fit", x, "--k", 2, "--out", tmp_path / "run")
    assert "truncated" in message
    assert "2528" in message  # What it should take, and what it has.
    assert "2428" in message


def zarr_of(path: Path, rows: np.ndarray, **options: object) -> None:
    array = zarr.create_array(path, shape=rows.shape, dtype=rows.dtype, **options)  # type: ignore[arg-type]
    array[:] = rows


def test_a_chunk_that_was_never_written_is_noted(x, tmp_path, capsys):
    zarr_of(tmp_path / "x.zarr", np.load(x), chunks=(50, 3))
    (tmp_path / "x.zarr/c/2/0").unlink()
    assert cli("fit", tmp_path / "x.zarr", "--k", 2, "--out", tmp_path / "run") == 0
    err = capsys.readouterr().err
    assert "note: " in err
    assert "1 of 4 chunks were never written" in err
    assert cli("info", tmp_path / "x.zarr") == 0
    assert "1 of 4 chunks were never written" in capsys.readouterr().out


def test_a_corrupt_chunk_is_named_with_its_rows(x, tmp_path, refused):
    zarr_of(tmp_path / "x.zarr", np.load(x), chunks=(50, 3))
    chunk = tmp_path / "x.zarr/c/2/0"
    chunk.write_bytes(b"\x07" * 20)
    run = tmp_path / "run"
    message = refused("fit", tmp_path / "x.zarr", "--k", 2, "--out", run, clean=False)
    assert "x.zarr" in message
    assert "100:150" in message
    assert not (tmp_path / "run/model.safetensors").exists()


# ---- values -----------------------------------------------------------------


# 40 blocks; the stream meets the rows in an order of its own, the first must be named.
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("options", [[], ["--scale", "zscore"], ["--algorithm", "lloyd"]], ids=str)
def test_the_first_row_that_is_not_finite_is_named(value, options, tmp_path, refused):
    rows = np.random.default_rng(0).normal(size=(2000, 3)).astype(np.float32)
    rows[[1733, 1234, 1999], [1, 2, 0]] = value
    zarr_of(tmp_path / "x.zarr", rows, chunks=(50, 3))
    arguments = ["fit", tmp_path / "x.zarr", "--k", 2, "--out", tmp_path / "run", *options]
    message = refused(*arguments)
    assert f"row 1234 holds {value}" in message
    assert "feature 2" in message
    assert "--nan drop" in message
    assert not (tmp_path / "run/model.safetensors").exists()


def test_rows_that_are_not_finite_can_be_dropped(x, tmp_path, capsys):
    rows = np.load(x)
    rows[[0, 7, 150], [0, 1, 2]] = [np.nan, np.inf, -np.inf]
    np.save(x, rows)
    run = tmp_path / "run"
    assert cli("fit", x, "--k", 2, "--out", run, "--nan", "drop") == 0
    assert "dropped: 3 rows" in capsys.readouterr().err
    labels, distances = tmp_path / "l.npy", tmp_path / "d.npy"
    assert cli("predict", run, x, "--labels", labels, "--distances", distances) == 0
    assert "dropped: 3 rows" in capsys.readouterr().err
    assert np.flatnonzero(np.load(labels) == -1).tolist() == [0, 7, 150]
    assert np.flatnonzero(np.isnan(np.load(distances))).tolist() == [0, 7, 150]
    assert cli("evaluate", run, x, "--json") == 0
    figures = json.loads(capsys.readouterr().out)
    assert (figures["rows"], figures["dropped"], sum(figures["sizes"])) == (197, 3, 197)


def test_predict_and_evaluate_refuse_what_fit_would(x, done, tmp_path, refused):
    rows = np.load(x)
    rows[123, 1] = np.nan
    np.save(tmp_path / "bad.npy", rows)
    for options in (["predict", "--labels", tmp_path / "l.npy"], ["evaluate"]):
        message = refused(options[0], done, tmp_path / "bad.npy", *options[1:])
        assert "row 123 holds nan" in message
        assert not (tmp_path / "l.npy").exists()


# ---- numbers that do not fit ------------------------------------------------


def test_more_clusters_than_rows(x, tmp_path, refused):
    message = refused("fit", x, "--k", 201, "--out", tmp_path / "run")
    assert "200" in message
    assert "201" in message
    assert not (tmp_path / "run").exists()


def test_as_many_clusters_as_rows_is_allowed(tmp_path):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(20, 3)))
    assert cli("fit", tmp_path / "x.npy", "--k", 20, "--out", tmp_path / "run") == 0


def test_centroids_of_another_shape(x, tmp_path, refused):
    np.save(tmp_path / "init.npy", np.zeros((2, 4)))
    message = refused(
        "fit", x, "--k", 2, "--out", tmp_path / "run", "--init", tmp_path / "init.npy"
    )
    assert "2 centroids of 3 features are needed, these are 2 of 4" in message
    assert not (tmp_path / "run").exists()


def test_an_init_file_that_does_not_exist(x, tmp_path, refused):
    message = refused("fit", x, "--k", 2, "--out", tmp_path / "run", "--init", tmp_path / "no.npy")
    assert "no.npy" in message


def test_a_source_of_another_width_than_the_run(done, tmp_path, refused):
    np.save(tmp_path / "wide.npy", np.zeros((20, 4)))
    for options in (["predict", "--labels", tmp_path / "l.npy"], ["evaluate"]):
        message = refused(options[0], done, tmp_path / "wide.npy", *options[1:])
        assert "has 4 features, the run's centroids have 3" in message


def test_a_gpu_that_is_not_there(x, tmp_path, refused):
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is one")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        message = refused("fit", x, "--k", 2, "--out", tmp_path / "run", "--device", "cuda")
    assert "sees no CUDA GPU" in message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", ["fit", "weighted fit", "dry run", "predict", "evaluate"])
def test_a_budget_that_is_too_small_names_one_that_is_not(command, x, done, tmp_path, refused):
    fit = ["fit", x, "--k", 2, "--out", tmp_path / "run"]
    np.save(tmp_path / "w.npy", np.ones(200))
    arguments = {
        "fit": fit,
        "weighted fit": [*fit, "--weights", tmp_path / "w.npy"],
        "dry run": [*fit, "--dry-run"],
        "predict": ["predict", done, x, "--labels", tmp_path / "l.npy"],
        "evaluate": ["evaluate", done, x],
    }[command]
    arguments += ["--device", "cpu"]
    message = refused(*arguments, "--max-host-memory", "1MiB")
    assert message.startswith("streamkm: --max-host-memory 1.0 MiB is too small")
    least = message.split("; give at least --max-host-memory ")[1]
    less = f"{int(least.removesuffix('MiB')) - 1}MiB"
    refused(*arguments, "--max-host-memory", less)
    assert cli(*arguments, "--max-host-memory", least) == 0


# ---- weights ----------------------------------------------------------------

WEIGHTS: dict[str, tuple[np.ndarray, str]] = {
    "negative": (np.r_[np.ones(150), -2.0, np.ones(49)], "that of row 150 is -2.0"),
    "nan": (np.r_[np.ones(7), np.nan, np.ones(192)], "that of row 7 is nan"),
    "all zero": (np.zeros(200), "at least one weight must be positive"),
    "too few": (np.ones(199), "for each of 200 rows, this array has 199 rows"),
    "too many": (np.ones(201), "this array has 201 rows"),
    "two columns": (np.ones((200, 2)), "this array has 200 rows of 2"),
    "strings": (np.array(["1"] * 200), "real numbers"),
}


@pytest.mark.parametrize("command", ["fit", "evaluate"])
@pytest.mark.parametrize("case", WEIGHTS)
def test_weights_that_cannot_be(case, command, x, done, tmp_path, refused):
    weights, reason = WEIGHTS[case]
    np.save(tmp_path / "w.npy", weights)
    arguments = [x, "--k", 2, "--out", tmp_path / "run"] if command == "fit" else [done, x]
    message = refused(command, *arguments, "--weights", tmp_path / "w.npy")
    assert reason in message
    assert "w.npy" in message


def test_fewer_rows_of_positive_weight_than_clusters(x, tmp_path, refused):
    np.save(tmp_path / "w.npy", (np.arange(200) < 3).astype("u1"))
    arguments = [x, "--k", 4, "--out", tmp_path / "run", "--weights", tmp_path / "w.npy"]
    message = refused("fit", *arguments)
    assert "w.npy has 3, k is 4" in message


@pytest.mark.parametrize("suffix", ["npy", "zarr"])
def test_weights_decide_the_clusters_and_the_figures(suffix, x, tmp_path, capsys):
    weights = np.where(np.arange(200) < 100, 3.0, 0.5)
    path = tmp_path / f"w.{suffix}"
    if suffix == "npy":
        np.save(path, weights)
    else:
        zarr.create_array(path, data=weights, chunks=(64,))
    run = tmp_path / "run"
    assert cli("fit", x, "--k", 1, "--out", run, "--weights", path) == 0
    assert f"weights of rows: {path}, 200 of them positive" in capsys.readouterr().err
    mean = np.average(np.load(x), axis=0, weights=weights)
    np.testing.assert_allclose(np.load(run / "centroids.npy")[0], mean, rtol=1e-5)
    assert cli("evaluate", run, x, "--weights", path, "--json") == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["weights"] == [350.0]
    assert figures["sizes"] == [200]
    squares = np.square(np.load(x) - mean).sum(axis=1)
    assert figures["inertia"] == pytest.approx((weights * squares).sum(), rel=1e-5)
    assert figures["inertia_per_row"] == pytest.approx(figures["inertia"] / 350)
    assert cli("evaluate", run, x, "--weights", path) == 0
    assert "per unit of weight" in capsys.readouterr().out


# ---- outputs ----------------------------------------------------------------


def test_a_run_folder_that_exists(x, done, refused):
    before = tree(done)
    message = refused("fit", x, "--k", 2, "--out", done)
    assert "--resume" in message
    assert tree(done) == before


def test_a_run_folder_that_is_a_file_or_somebody_elses(x, tmp_path, refused):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/thesis.tex").write_text("mine")
    for name in ("file", "folder"):
        for resume in ([], ["--resume"]):
            refused("fit", x, "--k", 2, "--out", tmp_path / name, *resume)
    assert (tmp_path / "folder/thesis.tex").read_text() == "mine"


@pytest.mark.parametrize("suffix", ["npy", "zarr"])
def test_an_output_that_exists(suffix, x, done, tmp_path, refused, capsys):
    target = tmp_path / f"labels.{suffix}"
    assert cli("predict", done, x, "--labels", target) == 0
    capsys.readouterr()
    assert "exists already" in refused("predict", done, x, "--labels", target)
    other = tmp_path / "other.npy"
    refused("predict", done, x, "--labels", other, "--distances", target)
    assert not other.exists()


@pytest.mark.parametrize("name", ["labels.txt", "labels", "no/folder/labels.npy"])
def test_an_output_that_cannot_be(name, x, done, tmp_path, refused):
    refused("predict", done, x, "--labels", tmp_path / name)


def test_labels_and_distances_of_one_name(x, done, tmp_path, refused):
    out = tmp_path / "out.npy"
    assert "must differ" in refused("predict", done, x, "--labels", out, "--distances", out)


@pytest.mark.parametrize("command", ["predict", "evaluate"])
def test_a_run_that_is_none_or_unfinished(command, x, done, tmp_path, refused):
    options = ["--labels", tmp_path / "l.npy"] if command == "predict" else []
    assert "nowhere does not exist" in refused(command, tmp_path / "nowhere", x, *options)
    (done / "model.safetensors").unlink()
    assert "not finished" in refused(command, done, x, *options)


# ---- options ----------------------------------------------------------------

BAD_OPTIONS = [
    ["--k", 0], ["--k", -3], ["--k", "2.5"], ["--k", "many"],
    ["--algorithm", "dbscan"], ["--metric", "manhattan"], ["--scale", "log"], ["--nan", "keep"],
    ["--epochs", 0], ["--batch-rows", 0], ["--seed", -1], ["--tol", -1], ["--tol", "nan"],
    ["--tol", "inf"], ["--max-no-improvement", 0], ["--init", "kmeans"], ["--device", "tpu"],
    ["--device", "cuda:x"], ["--checkpoint-every", 0], ["--checkpoint-every", "0s"],
    ["--checkpoint-every", "soon"], ["--checkpoint-every", "-5"], ["--keep-checkpoints", 1],
    ["--max-host-memory", "lots"], ["--max-host-memory", 0], ["--max-host-memory", "-1GiB"],
    ["--read-threads", -1], ["--read-threads", "all"], ["--dtype", "quaternion"],
    ["--dtype", ","], ["--dtype", "1_0"], ["--dtype", "\udcff"], ["--max-host-memory", "9" * 400],
    ["--features", 0], ["--offset", -1], ["--no-such-option", 1],
    ["--metric", "cosine", "--scale", "zscore"],
    ["--algorithm", "lloyd", "--max-no-improvement", 3],
]  # fmt: skip


@pytest.mark.parametrize("options", BAD_OPTIONS, ids=lambda o: " ".join(map(str, o)))
def test_an_option_out_of_range(options, x, tmp_path, refused):
    message = refused("fit", x, "--k", 2, "--out", tmp_path / "run", *options)
    assert not (tmp_path / "run").exists()
    name = str(options[-2]).removeprefix("--")
    assert name in message or name.replace("features", "n_features") in message


@pytest.mark.parametrize(
    "arguments", [["fit"], ["fit", "x.npy"], ["dance"], ["predict", "run"], ["info"]], ids=str
)
def test_a_command_that_lacks_something(arguments, refused):
    assert "--help" in refused(*arguments)


# Breaks when a word of the user's is passed on as it is, or blamed on the disk.
def test_words_of_several_lines_and_of_too_many_letters(x, done, tmp_path, refused):
    assert "a b" in refused("fit", x, "a\nb", "--k", 2, "--out", tmp_path / "run")
    long = "x" * 5000
    for command in (
        ["info", long],
        ["fit", long, "--k", 2, "--out", tmp_path / "run"],
        ["fit", x, "--k", 2, "--out", tmp_path / long],
        ["fit", x, "--k", 2, "--out", tmp_path / "run", "--weights", long],
        ["evaluate", done, long],
        ["predict", done, x, "--labels", tmp_path / f"{long}.npy"],
    ):
        assert "too long" in refused(*command)


# Breaks with a traceback where no user has the name after `~`, or makes a folder called `~`.
def test_a_path_may_begin_with_a_tilde(x, done, tmp_path, refused, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    assert "~nobody7/x.npy: does not exist" in refused("info", "~nobody7/x.npy")
    assert "~nobody7 does not exist" in refused("predict", done, x, "--labels", "~nobody7/l.npy")
    assert cli("fit", x, "--k", 2, "--out", "~/run") == 0
    assert cli("predict", "~/run", x, "--labels", "~/l.npy") == 0
    assert cli("info", "~/run") == 0
    assert "finished" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "home").iterdir()) == ["l.npy", "run"]
    assert not (tmp_path / "~").exists()


# Breaks when somebody who types the bare name gets an error, or an example that fails.
def test_without_arguments_three_examples_are_shown(x, monkeypatch, capsys):
    assert cli() == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("usage: streamkm ")
    assert "streamkm --help" in err
    examples = re.findall("^  streamkm (.*?)   ", err, re.MULTILINE)
    assert [example.split()[0] for example in examples] == ["fit", "predict", "info"]
    monkeypatch.chdir(x.parent)
    assert [cli(*example.split()) for example in examples] == [0, 0, 0]


# Breaks when an option of one format is lost on the way to its file, or ignored by another.
def test_columns_and_datasets(tmp_path: Path, x: Path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = np.load(x)
    pq.write_table(pa.table({"a": rows[:, 0], "b": rows[:, 1], "n": np.arange(200)}), "t.parquet")
    with h5py.File("s.h5", "w") as file:
        file["one"], file["two"] = rows, rows[:, :2]
    assert cli("info", "t.parquet", "--column", "b", "--column", "a") == 0
    assert "features     2" in capsys.readouterr().out
    assert cli("info", "s.h5", "--dataset", "two") == 0
    assert "features     2" in capsys.readouterr().out
    for arguments in (
        ["t.parquet"], ["t.parquet", "--column", "c"], ["s.h5"], ["s.h5", "--dataset", "none"],
        [x, "--column", "a"], [x, "--dataset", "one"],
    ):  # fmt: skip
        assert cli("info", *arguments) == 2
        assert capsys.readouterr().err.count("\n") == 1


# ---- without the compiled kernel --------------------------------------------


# Breaks when a command is slow without the compiled kernel and does not say so, or nags about what
# was asked for. (tests/test_packaging.py installs without one.)
def test_a_missing_extension_is_told_with_what_it_costs(x, done, tmp_path, capsys, monkeypatch):
    commands = {
        "fit": ["fit", x, "--k", 2, "--out", tmp_path / "run"],
        "fit to come": ["fit", x, "--k", 2, "--out", tmp_path / "none", "--dry-run"],
        "predict": ["predict", done, x, "--labels", tmp_path / "l.npy"],
        "predict to come": ["predict", done, x, "--labels", tmp_path / "n.npy", "--dry-run"],
        "evaluate": ["evaluate", done, x],
    }
    monkeypatch.setattr("streamkm.kernels.cpu.instruction_sets", tuple)
    monkeypatch.setattr("streamkm.kernels.select.WHY_MISSING", "is missing")
    note = (
        "the compiled CPU kernel is missing; without it assigning rows takes 2.5 to 5 times as "
        "long; with a compiler, install streamkm again (pip install --force-reinstall --no-deps "
        "--no-cache-dir)"
    )
    for name, arguments in commands.items():
        assert cli(*arguments, "--device", "cpu") == 0
        said = "".join(capsys.readouterr())
        assert said.count(note) == 1, name
        assert "kernel reference (auto)" in said
    assert cli("evaluate", done, x, "--device", "cpu", "--kernel", "reference") == 0
    assert "compiled" not in capsys.readouterr().err


# ---- options that there are not ---------------------------------------------


# Breaks when help is named that does not list the option, or what is missed because of it is
# complained of first.
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            "fit x.npy --k 5 --out o --algoritm lloyd",
            "fit has no option --algoritm; did you mean --algorithm? (see streamkm fit",
        ),
        ("fit x.npy --k 5 --ot o", "fit has no option --ot; did you mean --out?"),
        ("fit x.npy --k 5 --out o --max-host=1GiB", "did you mean --max-host-memory?"),
        (
            "fit x.npy --k 5 --out o --max",
            "mean --max-device-memory or --max-host-memory or --max-no-improvement or --max-size?",
        ),
        (
            "predict r x.npy --labels l.npy --k 5",
            "predict has no option --k, fit and sweep have (see",
        ),
        (
            "predict r x.npy --labels l.npy --weights w",
            "--weights, fit, evaluate, report and sweep have (see",
        ),
        ("evaluate r x.npy --lables l", "see streamkm evaluate --help"),
        ("info x.npy --zzz", "info has no option --zzz (see streamkm info --help)"),
        ("fit x.npy extra --k 5 --out o", "unrecognized arguments: extra; one source is read"),
        (
            "report r x.npy --rows 0:30",
            "arguments: 0:30; the --rows of report takes no value, that of fit, predict, ",
        ),
        ("fit x.npy --k 5 --out o --resume y", "y; the --resume of fit takes no value (see"),
        ("fit x.npy -q --k 5 --out o", "arguments: -q (see streamkm fit --help)"),
        ("--k 5 fit x.npy --out o", "--k before the command: options follow it, as in fit"),
        ("--dry-run", "--dry-run before the command"),
    ],
)
def test_an_option_that_there_is_not_points_to_the_one_that_was_meant(arguments, said, refused):
    message = refused(*arguments.split())
    assert said in message


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("fti x.npy", "there is no command fti; did you mean fit? (see streamkm --help)"),
        (
            "cluster",
            "there is no command cluster; there are fit, predict, evaluate, partition, ",
        ),
        ("help cluster", "there is no command cluster; there are fit, "),
    ],
)
def test_a_command_that_there_is_not_points_to_those_that_there_are(arguments, said, refused):
    assert said in refused(*arguments.split())


@pytest.mark.parametrize("command", ["", "fit", "info"])
def test_help_is_a_command_too(command, capsys):
    words = command.split()
    assert cli(*words, "--help") == 0
    usual = capsys.readouterr().out
    assert cli("help", *words) == 0
    assert capsys.readouterr().out == usual


# Breaks when a word of Python's (int, float) is all that is said of what may be given.
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("--k three", "-k/--k: must be a whole number of at least 1, not 'three' (see"),
        ("--k 3 --seed 1.5", "--seed: must be a whole number of at least 0, not '1.5'"),
        ("--k 3 --tol x", "--tol: must be a finite number of at least 0, not 'x'"),
        ("--k 3 --features x", "--features: must be a whole number, not 'x'"),
    ],
)
def test_what_is_no_number_is_refused_by_the_rule(arguments, said, refused):
    assert said in refused("fit", "x.npy", "--out", "run", *arguments.split())


# Breaks when a name that is too long moves its value out of the column.
def test_values_of_evaluate_stand_in_one_column(done, x, capsys):
    assert cli("evaluate", done, x) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 13
    assert all(line[16] == " " != line[17] for line in lines)
    assert any(line.endswith("(Calinski-Harabasz)") for line in lines)


# Breaks with "Broken pipe" where `head` has read all that it wants.
def test_a_reader_that_leaves_early_is_no_error(done, x):
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "streamkm", "evaluate", str(done), str(x), "--json"]
    ended = subprocess.run(
        command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False, cwd=ROOT
    )
    os.close(writer)
    assert ended.returncode == 1
    assert "pipe" not in ended.stderr.lower()
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("command", ["fit", "predict", "evaluate", "info"])
def test_every_option_that_help_lists_is_known(command, capsys, monkeypatch):
    # As Python 3.14 prints it on a terminal.
    real = argparse.ArgumentParser.format_help

    def coloured(parser):
        return re.sub("(--[a-z-]+)", "\x1b[1;36m\\1\x1b[0m", real(parser))

    assert cli(command, "--help") == 0
    listed = set(re.findall("^  .*?(--[a-z][a-z-]*[a-z])", capsys.readouterr().out, re.MULTILINE))
    assert {"--help", "--dtype"} <= listed
    monkeypatch.setattr(argparse.ArgumentParser, "format_help", coloured)
    for option in sorted(listed):
        assert cli(command, "--zzz", option) == 2
        assert "has no option --zzz" in capsys.readouterr().err
        cli(command, option, "0", "--help")
        assert "has no option" not in capsys.readouterr().err


def test_what_only_looks_like_an_option_is_left_to_the_parser(x, tmp_path, capsys):
    assert cli("fit", x, "--k", 2, "--out", tmp_path / "run", "--tol", "-1") == 2
    assert "tol must be" in capsys.readouterr().err
    assert cli("info", "--", "--x.npy") == 2
    assert "--x.npy: does not exist" in capsys.readouterr().err
    assert cli("info", "--of two words.npy") == 2
    assert "--of two words.npy: does not exist" in capsys.readouterr().err


# ---- Ctrl-C -----------------------------------------------------------------


# Breaks where checkpoints are spoken of that the command never makes, or not yet.
@pytest.mark.parametrize("command", ["info", "fit"])
def test_an_interrupt_before_there_is_anything_speaks_of_no_checkpoint(
    command, x, tmp_path, capsys, monkeypatch
):
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("streamkm.sources.open_source", interrupted)
    options = ["--k", 2, "--out", tmp_path / "run"] if command == "fit" else []
    assert cli(command, x, *options) == 1
    said = "streamkm: interrupted; what was not saved before is lost\n"
    assert capsys.readouterr().err == said
