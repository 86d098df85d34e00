"""The pass over the rows, beside distances from every row to every centroid."""

from __future__ import annotations

import json

import numpy as np
import pytest

from streamkm.reports.survey import FAR, N_FARTHEST, N_NEAREST, Extremes
from tests.reports.helpers import report
from tests.runs.helpers import cli, clusters


@pytest.mark.usefixtures("small_windows_of_reports")
@pytest.mark.parametrize("options", [(), ("--scale", "zscore"), ("--metric", "cosine")], ids=str)
def test_spread_and_examples_are_those_of_all_rows(options, tmp_path) -> None:
    x = clusters(700, 5)
    x[3] += 60  # A row far from everything.
    np.save(tmp_path / "x.npy", x)
    run = tmp_path / "run"
    fit = ("fit", tmp_path / "x.npy", "--k", 6, "--batch-rows", 50, "--out", run)
    assert cli(*fit, *options) == 0
    labels, distances = tmp_path / "l.npy", tmp_path / "d.npy"
    assert (
        cli("predict", run, tmp_path / "x.npy", "--labels", labels, "--distances", distances) == 0
    )
    labels_N, distances_N = np.load(labels), np.load(distances).astype(float)
    seen = report(run).seen
    assert seen is not None
    np.testing.assert_array_equal(seen.sizes_K, np.bincount(labels_N, minlength=6))
    for cluster in range(6):
        rows = np.flatnonzero(labels_N == cluster)
        mean = distances_N[rows].mean()
        assert seen.mean_distance_K[cluster] == pytest.approx(mean, rel=1e-5)
        order = rows[np.argsort(distances_N[rows], kind="stable")]
        near, far = seen.nearest.of(cluster), seen.farthest.of(cluster)
        np.testing.assert_allclose(
            [d for _, d in near], distances_N[order[:N_NEAREST]], rtol=1e-5, atol=1e-6
        )
        np.testing.assert_allclose(
            [d for _, d in far], distances_N[order[::-1][:N_FARTHEST]], rtol=1e-5, atol=1e-6
        )
        assert {row for row, _ in near + far} <= set(rows.tolist())
    assert seen.far_limit is not None
    assert seen.n_far == int((distances_N > seen.far_limit).sum())
    rms = np.sqrt(np.square(distances_N).mean())
    assert seen.far_limit == pytest.approx(FAR * rms, rel=0.05)


def test_of_equal_rows_the_first_are_kept() -> None:
    extremes = Extremes(2, 2, 1)
    for start in (0, 3):
        extremes.add(np.zeros(3, int), np.ones(3), np.arange(start, start + 3))
    assert extremes.of(0) == [(0, 1.0), (1, 1.0)]
    assert extremes.of(1) == []


def test_batches_in_which_a_cluster_has_fewer_rows_than_are_kept(rng) -> None:
    nearest, farthest = Extremes(3, 4, 1), Extremes(3, 4, -1)
    labels, distances = rng.integers(3, size=40), rng.permutation(40).astype(float)
    for rows in np.array_split(np.arange(40), 13):
        for extremes in (nearest, farthest):
            extremes.add(labels[rows], distances[rows], rows)
    for cluster in range(3):
        own = np.flatnonzero(labels == cluster)
        order = own[np.argsort(distances[own])].tolist()
        assert [row for row, _ in nearest.of(cluster)] == order[:4]
        assert [row for row, _ in farthest.of(cluster)] == order[::-1][:4]


def test_rows_that_are_dropped_are_no_examples(tmp_path) -> None:
    x = clusters(200, 3)
    x[[5, 9]] = np.nan
    np.save(tmp_path / "x.npy", x)
    fit = ("fit", tmp_path / "x.npy", "--k", 3, "--nan", "drop", "--out", tmp_path / "run")
    assert cli(*fit) == 0
    made = report(tmp_path / "run")
    assert made.seen is not None
    assert made.seen.sizes_K.sum() == 198
    shown = np.unique(np.concatenate([made.seen.nearest.rows_KM, made.seen.farthest.rows_KM], 1))
    assert not {5, 9} & set(shown.tolist())
    assert any("2 rows with NaN or infinity were dropped" in f.text for f in made.verdict.findings)


# Breaks when the pass over the rows of a weighted fit counts every row once: spread and silhouette
# are not those of the fit then.
def test_with_the_weights_of_the_fit_the_figures_are_its_own(tmp_path, capsys) -> None:
    rng = np.random.default_rng(3)
    weights = rng.integers(0, 4, 500).astype(float)
    x, w, run = tmp_path / "x.npy", tmp_path / "w.npy", tmp_path / "run"
    np.save(x, clusters(500, 3))
    np.save(w, weights)
    assert cli("fit", x, "--weights", w, "--k", 4, "--batch-rows", 60, "--out", run) == 0
    labels, distances = tmp_path / "l.npy", tmp_path / "d.npy"
    assert cli("predict", run, x, "--labels", labels, "--distances", distances) == 0
    capsys.readouterr()
    assert cli("evaluate", run, x, "--weights", w, "--json") == 0
    figures = json.loads(capsys.readouterr().out)
    for given in (w, weights):
        seen = report(run, sample_weight=given).seen
        assert seen is not None
        assert seen.evaluation.silhouette == figures["silhouette"]
        assert seen.sizes_K.tolist() == figures["sizes"]
        labels_N, distances_N = np.load(labels), np.load(distances).astype(float)
        for cluster in range(4):
            of_it = labels_N == cluster
            mean = np.average(distances_N[of_it], weights=weights[of_it])
            assert seen.mean_distance_K[cluster] == pytest.approx(mean, rel=1e-5)
        shown = np.concatenate([seen.nearest.rows_KM, seen.farthest.rows_KM], axis=None)
        assert (weights[shown[shown >= 0]] > 0).all()
    assert cli("report", run, "--weights", w, "-o", tmp_path / "r.html") == 0
    assert "Rows count by their weights, as in the fit." in (tmp_path / "r.html").read_text()
    assert cli("report", run, "--no-rows", "--weights", w, "-o", tmp_path / "r.html") == 2
    assert "--weights weighs rows, and no rows are read" in capsys.readouterr().err


def test_a_pass_is_silent_unless_asked(blobs, capsys) -> None:
    report(blobs / "run")
    assert capsys.readouterr().err == ""
    report(blobs / "run", verbose=True)
    assert "on cpu, " in capsys.readouterr().err
