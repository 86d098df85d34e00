"""Fits with bounds on the sizes of clusters: labels of the same rows hold them, to the row."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from streamkm.bounds import Bounds
from streamkm.config import FitConfig
from streamkm.runs.storage.checkpoint import save_checkpoint
from streamkm.runs.storage.model import load_model
from streamkm.sealed import unseal
from tests.data_sets import DATA_SETS, IRIS
from tests.runs.helpers import Job, cli, clusters, predicted, short_batches


def lone_and_equal() -> np.ndarray:
    """900 rows that are equal, and 100 far apart."""
    rows = np.zeros((1000, 3), np.float32)
    rows[450:550] = 1e3 * np.random.default_rng(1).normal(size=(100, 3))
    return rows


SETS: dict[str, tuple[np.ndarray, int]] = {
    **{data.name: (data.rows, data.k) for data in DATA_SETS},
    "sorted clusters": (clusters(1500, 4), 17),
    "one row repeated": (np.ones((50, 2), np.float32), 4),
    "lone and equal rows": (lone_and_equal(), 10),
    "as many clusters as rows": (clusters(30, 2), 30),
    "int8": (np.random.default_rng(0).integers(-3, 4, (600, 3)).astype(np.int8), 7),
}
BOUNDS: list[dict[str, Any]] = [
    {"max_size": "1.2x"},
    {"max_size": "1x"},
    {"min_size": "0.8x"},
    {"max_size": "1.5x", "min_size": "0.5x"},
]


def fitted(folder: Path, rows: np.ndarray, **settings: Any) -> Job:
    np.save(folder / "x.npy", rows)
    job = Job(folder / "x.npy", folder / "run", settings)
    job.attempt()
    return job


def sizes_of(labels: np.ndarray, k: int) -> np.ndarray:
    return np.bincount(labels, minlength=k)


# The promise. Labels are by predict, whose batches are others than those of the fit; and what the
# model says of its sizes and its inertia is what these labels have.
@pytest.mark.parametrize("bounds", BOUNDS, ids=str)
@pytest.mark.parametrize("name", SETS)
def test_labels_hold_the_bounds_to_the_row(name, bounds, tmp_path, monkeypatch):
    rows, k = SETS[name]
    settings = {"k": k, "init": "random", **bounds}
    if name == "digits":
        settings["algorithm"] = "lloyd"
    job = fitted(tmp_path, rows, **settings)
    short_batches(monkeypatch, 97)
    labels = predicted(job.run, job.source, tmp_path / "labels.npy")
    found, model = sizes_of(labels, k), load_model(job.run)
    allowed = Bounds.of(FitConfig(**settings), len(rows))
    assert allowed.least <= found.min() <= found.max() <= allowed.most
    assert model.counts_K.tolist() == found.tolist()
    centroids_KD = np.load(job.run / "centroids.npy").astype(np.float64)
    inertia = np.square(rows - centroids_KD[labels]).sum()
    assert model.inertia == pytest.approx(inertia, rel=1e-4, abs=1e-6)


# Equal clusters of the same rows cost more than free ones, and 1.2x of embeddings little: of data
# in groups of equal sizes it is nothing.
def test_bounds_that_already_hold_change_no_label(tmp_path, capsys):
    rows = 100 * np.eye(4, dtype=np.float32)[np.arange(400) % 4]
    rows += np.random.default_rng(0).normal(size=rows.shape).astype(np.float32)
    labels = []
    for name, bounds in (("free", {}), ("bounded", {"max_size": "1.2x", "min_size": 90})):
        (tmp_path / name).mkdir()
        job = fitted(tmp_path / name, rows, k=4, **bounds)
        labels.append(predicted(job.run, job.source, tmp_path / f"{name}.npy"))
    np.testing.assert_array_equal(*labels)
    said = capsys.readouterr().err
    assert (
        "sizes: 100 to 100 rows, within 90 to 120 rows; inertia +0.00% by them; 2 passes, and 0 "
        "rows of full clusters went to the next" in said
    )


@pytest.fixture
def job(tmp_path) -> Job:
    return fitted(tmp_path, clusters(600, 3), k=6, max_size="1.1x", nan="drop")


# Breaks when rows that are dropped take a place.
def test_dropped_rows_count_nowhere(tmp_path):
    rows = clusters(600, 3)
    rows[:200:2] = np.nan
    job = fitted(tmp_path, rows, k=6, max_size="1x", nan="drop")
    labels = predicted(job.run, job.source, tmp_path / "labels.npy")
    assert sizes_of(labels[labels >= 0], 6).max() == -(-500 // 6)
    assert (labels < 0).sum() == 100


# Rows of the fit alone have a place; others get the label that the prices give, wherever they are.
def test_other_rows_go_by_price_and_that_is_said(job, tmp_path, capsys):
    note = "bounds on their sizes are not kept"
    whole = predicted(job.run, job.source, tmp_path / "whole.npy")
    assert note not in capsys.readouterr().err
    rows = np.load(job.source)
    np.save(tmp_path / "others.npy", rows[::-1])
    reversed_ = predicted(job.run, tmp_path / "others.npy", tmp_path / "reversed.npy")
    assert note in capsys.readouterr().err
    assert np.mean(reversed_[::-1] == whole) > 0.95
    # The label of a row is its own: it does not depend on which rows it comes with.
    np.save(tmp_path / "few.npy", rows[77:99])
    few = predicted(job.run, tmp_path / "few.npy", tmp_path / "few-labels.npy")
    np.testing.assert_array_equal(few, reversed_[::-1][77:99])


# Labels are a function of the row and its number, so that a stop, or several processes, change
# nothing: that rests on the same code as other labels. Here a stop at every place.
def test_labels_are_the_same_after_stops(job, tmp_path, monkeypatch):
    whole = predicted(job.run, job.source, tmp_path / "whole.npy")
    short_batches(monkeypatch, 50)
    again = predicted(job.run, job.source, tmp_path / "again.npy", stops=(2, 3, 5))
    np.testing.assert_array_equal(again, whole)


NEWER = ("reach_K", "rows_P", "from_P", "to_P", "losses_P")


# Breaks when a fit that an older version has stopped while it brought sizes within bounds cannot go
# on, or goes on in another stage. Before the last stages nothing is lost.
def test_a_stop_by_a_version_that_gathered_no_rows_is_gone_on_from(tmp_path):
    np.save(tmp_path / "x.npy", clusters(600, 3))
    settings = {"k": 6, "max_size": "1.1x", "init": "random"}
    whole = Job(tmp_path / "x.npy", tmp_path / "whole", settings)
    looks = whole.attempt()
    job = Job(tmp_path / "x.npy", tmp_path / "run", settings)
    assert job.interrupted(looks - 4)
    *before, at = sorted((job.run / "checkpoints").glob("step-*"))
    tensors = load_file(at / "state.safetensors")
    for name in NEWER:
        del tensors[f"sizes.{name}"]
    manifest = unseal((at / "manifest.json").read_bytes())
    for each in (*before, at):
        shutil.rmtree(each)
    kept = {name: manifest[name] for name in ("cursor", "environment")}
    save_checkpoint(at.parent, manifest["step"], tensors, kept, keep=1)
    job.attempt()
    assert job.results == whole.results


def test_evaluate_and_info_tell_the_sizes(job, capsys):
    assert cli("evaluate", job.run, job.source, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    sizes = np.array(told["sizes"])
    assert sizes.max() <= 110
    spread = told["size_spread"]
    np.testing.assert_allclose(spread["variation"], sizes.std() / sizes.mean())
    np.testing.assert_allclose(spread["largest_over_mean"], sizes.max() / sizes.mean())
    np.testing.assert_allclose(spread["percentile_99"], np.percentile(sizes, 99))
    assert told["inertia"] == pytest.approx(load_model(job.run).inertia, rel=1e-5)
    assert cli("info", job.run) == 0
    said = capsys.readouterr().out
    assert re.search(r"^bounds +0 to 110 rows; inertia [+-]\d+\.\d\d% by them$", said, re.M)
    assert re.search(r"^spread +coefficient of variation 0\.\d{3}, largest over mean ", said, re.M)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--nearest 2", "--nearest and --second go"),
        ("--second second.npy", "--nearest and --second go"),
        ("--search fast", "--search fast goes"),
    ],
)
def test_a_search_by_distances_alone_is_refused(job, words, said, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    labels = ("--labels", tmp_path / "labels.npy")
    assert cli("predict", job.run, job.source, *labels, *words.split()) == 2
    assert f"{said} by distances alone" in capsys.readouterr().err.splitlines()[-1]


# A file that was touched may have other rows: it is not told from one that has.
def test_a_touched_file_is_not_the_same(job, tmp_path, capsys):
    os.utime(job.source, (1, 1))
    predicted(job.run, job.source, tmp_path / "labels.npy")
    assert "not the rows of the fit" in capsys.readouterr().err


def test_a_dry_run_counts_the_passes(tmp_path, capsys):
    np.save(tmp_path / "iris.npy", IRIS.rows)
    words = ("--k", 3, "--max-size", "1.2x", "--out", tmp_path / "run", "--dry-run")
    assert cli("fit", tmp_path / "iris.npy", *words) == 0
    assert "at most 25 for the sizes of clusters" in capsys.readouterr().out


# Breaks when every pass for the sizes reads the array again though it fits in memory, or when what
# ended the training is told as what ended the fit.
def test_passes_for_sizes_find_rows_in_memory(tmp_path, capfd):
    job = fitted(tmp_path, clusters(1500, 4), k=5, algorithm="lloyd", epochs=1, max_size="1x")
    assert "all 1,500 rows" in capfd.readouterr().err
    reason = load_model(job.run).figures["stop_reason"]
    assert reason.endswith("; then sizes were brought within their bounds")
