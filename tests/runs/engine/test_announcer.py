"""Lines and records of a run: each figure is of what it names."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from streamkm.runs.reporting import progress
from streamkm.runs.storage.model import load_model
from streamkm.stream import stages
from streamkm.stream.stages import STAGES
from tests.runs.helpers import Job, clusters, every, metrics_of

#: What charts and dashboards are made of.
KEYS = {
    "time", "phase", "epoch", "step", "rows", "elapsed_s", "rows_per_s", "bytes_per_s",
    "inertia", "inertia_per_row", "shift", "dropped", "reseeded", "stages",
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A fit, and what its records show of it."""

    name: str
    settings: dict[str, Any]
    n_epochs: int = 1
    scales: bool = False
    closes: bool = False

    def __str__(self) -> str:
        return self.name


@pytest.fixture
def job(tmp_path) -> Job:
    np.save(tmp_path / "x.npy", clusters(600, 3))
    return Job(tmp_path / "x.npy", tmp_path / "run", {"k": 4, "batch_rows": 50})


@pytest.fixture
def report_always(monkeypatch):
    monkeypatch.setattr(progress, "REPORT_EVERY_S", 0.0)


@pytest.mark.usefixtures("report_always")
@pytest.mark.parametrize(
    "case",
    [
        Case("as by default", {}),
        Case("scaled", {"scale": "zscore"}, scales=True),
        Case("lloyd", {"algorithm": "lloyd", "epochs": 3, "init": "random"}, n_epochs=3),
    ],
    ids=str,
)
def test_metrics_are_strict_json_with_all_that_charts_need(case, job):
    job.settings.update(case.settings)
    job.attempt()
    records = metrics_of(job.run)  # Fails on NaN and Infinity.
    trained = [record for record in records if record["phase"] == "train"]
    n_epochs = case.n_epochs
    assert len(trained) >= 12 * n_epochs
    for record in trained:
        assert record.keys() >= KEYS
        assert set(record["stages"]) == set(STAGES)
        assert set(record["stages"]["reading"]) == {"busy_s", "wait_s"}
    rows = [record["rows"] for record in trained]
    assert rows == sorted(rows)
    assert rows[-1] == 600 * n_epochs
    assert [r["step"] for r in trained] == sorted(r["step"] for r in trained)
    assert trained[-1]["rows_per_s"] > 0
    assert trained[-1]["bytes_per_s"] > 0
    assert records[-1]["phase"] == "end"
    assert records[-1]["stopped_by"]
    assert records[-1]["step"] == 12 * n_epochs
    assert any(r["phase"] == "scale" for r in records) is case.scales


# Breaks when the closing pass is invisible, or the last record has figures of other centroids
# than those that were saved.
@pytest.mark.usefixtures("report_always")
@pytest.mark.parametrize(
    "case",
    [
        Case("minibatch", {}, closes=True),
        Case("lloyd", {"algorithm": "lloyd", "epochs": 2, "seed": 1}),
    ],
    ids=str,
)
def test_the_last_record_belongs_to_the_saved_centroids(case, job, capsys):
    # From a bad beginning, so that the last pass has something to move.
    job.settings.update(case.settings, init="random")
    job.attempt()
    records = metrics_of(job.run)
    closing = [record["rows"] for record in records if record["phase"] == "close"]
    assert closing[-1:] == ([600] if case.closes else [])
    model, end = load_model(job.run), records[-1]
    assert model.inertia is not None
    sizes = sorted(model.counts_K.tolist())
    assert sum(sizes) == 600
    assert (end["least_rows"], end["most_rows"], end["empty"]) == (sizes[0], sizes[-1], 0)
    assert end["inertia"] == model.inertia
    assert end["inertia_per_row"] == pytest.approx(model.inertia / 600)
    # Each centroid is the mean of its rows, so that nothing but their squares is needed.
    rows, means = np.load(job.source).astype(np.float64), model.centroids.astype(np.float64)
    sizes_K = model.counts_K.numpy()
    expected = np.square(rows).sum() - (sizes_K * np.square(means).sum(axis=1)).sum()
    assert model.inertia == pytest.approx(expected, rel=1e-5)
    nearest = np.square(rows[:, None] - means).sum(axis=2).min(axis=1).sum()
    assert nearest <= model.inertia * (1 + 1e-6)
    said = capsys.readouterr().err
    assert f"result: inertia per row {end['inertia_per_row']:.6g}" in said
    assert f"clusters of {sizes[0]:,} to {sizes[-1]:,} rows" in said
    share = re.search(r"note: the last pass lowered the inertia by ([0-9.]+)%", said)
    # After mini-batches the closing pass takes their noise away: its gain promises nothing.
    assert (share is None) == case.closes
    if share is not None:
        assert float(share[1]) / 100 == pytest.approx(end["last_gain"], abs=6e-4)
    passed = [record["inertia"] for record in records if record["phase"] in ("train", "close")]
    assert end["last_gain"] == pytest.approx(1 - end["inertia"] / passed[-1])


@pytest.mark.usefixtures("report_always")
def test_without_a_closing_pass_the_figures_are_called_what_they_are(job, capsys):
    job.settings["closing_pass"] = False
    job.attempt()
    assert not any(record["phase"] == "close" for record in metrics_of(job.run))
    assert "least_rows" not in metrics_of(job.run)[-1]
    assert load_model(job.run).inertia is None
    assert "over the last epoch as it went" in capsys.readouterr().err


def test_converged_means_that_the_figures_are_those_of_the_nearest_centroids(job, capsys):
    job.settings.update(algorithm="lloyd", tol=0.0, epochs=300)
    job.attempt()
    said = capsys.readouterr().err
    assert "stopped: converged: no centroid moves any more" in said
    assert "note: the last pass" not in said
    model = load_model(job.run)
    rows, centroids = np.load(job.source), model.centroids
    squares = np.square(rows[:, None].astype(np.float64) - centroids).sum(axis=2)
    assert model.inertia == pytest.approx(squares.min(axis=1).sum(), rel=1e-6)
    sizes = np.bincount(squares.argmin(axis=1), minlength=4)
    assert model.counts_K.tolist() == sizes.tolist()


@pytest.mark.parametrize("algorithm", ["minibatch", "lloyd"])
def test_fewer_distinct_rows_than_clusters_is_said(algorithm, job, capsys):
    np.save(job.source, np.eye(3)[np.arange(600) % 3])
    job.settings.update(algorithm=algorithm, epochs=1, init="random", k=5)
    job.attempt()
    said = capsys.readouterr().err
    assert "2 of 5 clusters have no row: the data has fewer than 5 distinct rows" in said
    assert sorted(load_model(job.run).counts_K.tolist()) == [0, 0, 200, 200, 200]


# Breaks when more clusters than the reservoir holds rows for, or lloyd's last pass, are left.
@pytest.mark.parametrize("algorithm", ["minibatch", "lloyd"])
def test_no_cluster_is_empty_if_there_are_distinct_rows(algorithm, job, rng, capsys):
    rows = np.zeros((3000, 2), np.float32)
    rows[:400] = rng.normal(size=(400, 2))
    np.save(job.source, rng.permutation(rows))
    # Many centroids begin on one place, where all but one of them get no row.
    first = job.source.with_name("first.npy")
    np.save(first, np.repeat(rows[:200], (1,) * 199 + (191,), axis=0))
    job.settings.update(algorithm=algorithm, epochs=1, init=str(first), k=390)
    job.attempt()
    model = load_model(job.run)
    assert (model.counts_K > 0).all()
    assert model.counts_K.sum() == 3000
    assert len(np.unique(model.centroids, axis=0)) == 390
    assert "reseeded: " in capsys.readouterr().err


# By hand: the epoch's inertia is that of its rows, not of a batch.
@pytest.mark.usefixtures("report_always")
def test_inertia_is_the_sum_over_the_epoch_and_falls_from_pass_to_pass(job):
    job.settings.update(algorithm="lloyd", epochs=3, tol=0.0, init="random")
    job.attempt()
    ends = {}
    for record in metrics_of(job.run):
        if record["phase"] == "train":
            ends[record["rows"]] = record["inertia"]
    assert ends[600] > ends[1200] >= ends[1800] > 0
    assert ends[300] < ends[600]


@pytest.mark.usefixtures("report_always")
def test_a_resumed_run_appends_and_counts_on(job):
    assert job.interrupted(12, checkpoint_every=every(1))
    n_before = len(metrics_of(job.run))
    job.attempt()
    records = metrics_of(job.run)
    assert len(records) > n_before
    rows = [record["rows"] for record in records if record["phase"] == "train"]
    assert max(rows) == 600
    assert rows == sorted(rows)


# A pass that moved next to nothing, or data without any inertia, is nothing to be warned of.
def test_a_last_pass_that_changed_little_is_no_news(job, capsys):
    job.settings.update(algorithm="lloyd", epochs=30)
    job.attempt()
    assert "note: the last pass" not in capsys.readouterr().err


def test_a_last_pass_over_data_without_inertia_is_no_news(job, capsys):
    np.save(job.source, np.eye(3, dtype=np.float32)[np.arange(600) % 3])
    job.settings.update(k=3, init="random")
    job.attempt()
    assert "note: the last pass" not in capsys.readouterr().err


def test_what_a_run_says_names_the_bottleneck_and_the_reason(job, capsys, monkeypatch):
    monkeypatch.setattr(stages, "TOO_SHORT_S", 0)
    job.attempt()
    err = capsys.readouterr().err
    assert "stopped: all epochs are done (1); 12 steps in all" in err
    assert "bottleneck: " in err
    capped = replace(job, run=job.run.with_name("capped"))
    capped.settings = {**job.settings, "epochs": 50, "tol": 1e6}
    capped.attempt()
    assert "the centroid shift fell to tol" in capsys.readouterr().err


# Breaks when a bottleneck is made of the noise of some milliseconds.
def test_a_run_that_is_too_short_names_no_bottleneck(job, capsys, monkeypatch):
    monkeypatch.setattr(stages, "TOO_SHORT_S", 60)
    job.attempt()
    err = capsys.readouterr().err
    assert "time: " in err
    assert "bottleneck" not in err
    assert not [line for line in err.splitlines() if line.endswith(" ")]


# Breaks when a run that needs more epochs looks as finished as one that has converged.
def test_lloyd_says_whether_it_has_converged(job, capsys):
    job.settings.update(algorithm="lloyd", epochs=1, tol=0, k=40, init="random")
    job.attempt()
    err = capsys.readouterr().err
    assert "stopped: all epochs are done (1), and centroids still move; " in err
    assert "; more epochs may lower it further" in err
    longer = replace(job, run=job.run.with_name("longer"))
    longer.settings = {**job.settings, "epochs": 100}
    longer.attempt()
    err = capsys.readouterr().err
    assert "stopped: converged: no centroid moves any more" in err
    assert "still move" not in err
