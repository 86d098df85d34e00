"""What a run says while it works: strict JSON lines, a line now and then, a bar on a terminal."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import sys
import termios
import threading
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from streamkm import MiniBatchKMeans
from streamkm.cli import main
from streamkm.runs.engine.summary import median_size
from streamkm.runs.reporting import progress
from streamkm.runs.reporting.progress import Progress
from streamkm.runs.storage.model import load_model
from streamkm.stream.stages import STAGES, StageTimes
from streamkm.text import counted
from tests.runs.helpers import Job, clusters, every, metrics_of

if TYPE_CHECKING:
    pass

#: What charts and dashboards are made of.
KEYS = {
    "time", "phase", "epoch", "step", "rows", "elapsed_s", "rows_per_s", "bytes_per_s",
    "inertia", "inertia_per_row", "shift", "dropped", "reseeded", "stages",
}  # fmt: skip


@pytest.fixture
def job(tmp_path) -> Job:
    np.save(tmp_path / "x.npy", clusters(600, 3))
    return Job(tmp_path / "x.npy", tmp_path / "run", {"k": 4, "batch_rows": 50})


@pytest.fixture
def report_always(monkeypatch):
    monkeypatch.setattr(progress, "REPORT_EVERY_S", 0.0)


@pytest.mark.usefixtures("report_always")
@pytest.mark.parametrize(
    "settings", [{}, {"scale": "zscore"}, {"algorithm": "lloyd", "epochs": 3, "init": "random"}]
)
def test_metrics_are_strict_json_with_all_that_charts_need(settings, job):
    job.settings.update(settings)
    job.attempt()
    records = metrics_of(job.run)  # Fails on NaN and Infinity.
    trained = [record for record in records if record["phase"] == "train"]
    n_epochs = settings.get("epochs", 1)
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
    assert any(r["phase"] == "scale" for r in records) is ("scale" in settings)


# Breaks when the closing pass is invisible, or the last record has figures of other centroids
# than those that were saved.
@pytest.mark.usefixtures("report_always")
@pytest.mark.parametrize("settings", [{}, {"algorithm": "lloyd", "epochs": 2, "seed": 1}])
def test_the_last_record_belongs_to_the_saved_centroids(settings, job, capsys):
    # From a bad beginning, so that the last pass has something to move.
    job.settings.update(settings, init="random")
    job.attempt()
    records = metrics_of(job.run)
    closing = [record["rows"] for record in records if record["phase"] == "close"]
    assert closing[-1:] == ([] if settings else [600])
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
    assert share
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
    job.settings.update(algorithm=algorithm, epochs=1, init="random", k=390)
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
@pytest.mark.parametrize(
    "settings", [{"algorithm": "lloyd", "epochs": 30}, {"k": 3, "init": "random"}]
)
def test_a_last_pass_that_changed_little_is_no_news(settings, job, capsys):
    if settings.get("init") == "random":
        np.save(job.source, np.eye(3, dtype=np.float32)[np.arange(600) % 3])
    job.settings.update(settings)
    job.attempt()
    assert "note: the last pass" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("n", "noun", "text"),
    [(1, "row", "1 row"), (0, "row", "0 rows"), (2000, "batch", "2,000 batches")],
)
def test_one_thing_or_many(n, noun, text):
    assert counted(n, noun) == text


# ---- lines and bars ---------------------------------------------------------


# Breaks when a record is appended to one that a power cut tore.
def test_a_torn_last_record_costs_only_itself(tmp_path):
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text('{"whole": 1}\n{"torn": ')
    with Progress(metrics) as shown:
        shown.record({"next": 2})
    with Progress(metrics) as shown:
        shown.record({"after": 3})
    lines = metrics.read_text().splitlines()
    assert lines[:2] == ['{"whole": 1}', '{"torn": ']
    assert [json.loads(line).get("next") for line in lines[2:]] == [2, None]


class Clock:
    def __init__(self, monkeypatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr("streamkm.runs.reporting.progress.time.monotonic", lambda: self.now)


# tqdm off a terminal floods logs or prints nothing (tqdm#1319).
def test_off_a_terminal_there_is_a_line_every_so_often(monkeypatch, tmp_path, capsys):
    clock = Clock(monkeypatch)
    with Progress(tmp_path / "metrics.jsonl") as shown:
        shown.begin("train", 1000, StageTimes())
        for _ in range(95):
            clock.now += 1.0
            shown.advance(10)
            if shown.is_due():
                shown.report({"inertia_per_row": 0.5})
    lines = capsys.readouterr().err.splitlines()
    # The first soon, which says that all is well; then one in 30 seconds.
    assert [line[: line.index(",", 8)] for line in lines] == [
        "train: 60 of 1", "train: 360 of 1", "train: 660 of 1"
    ]  # fmt: skip
    assert lines[1].startswith("train: 360 of 1,000 rows (36%), 10 rows/s")
    assert "about 64 s left" in lines[1]
    assert "inertia/row 0.5" in lines[0]
    assert not any("\r" in line for line in lines)
    # Records come more often, for whoever wants a chart.
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 47


def test_the_time_between_lines_is_one_constant(monkeypatch, capsys):
    monkeypatch.setattr(progress, "LINE_EVERY_S", 5.0)
    clock = Clock(monkeypatch)
    with Progress() as shown:
        shown.begin("train", 1000, StageTimes())
        for _ in range(21):
            clock.now += 1.0
            shown.advance(1)
            if shown.is_due():
                shown.report({})
    assert len(capsys.readouterr().err.splitlines()) == 3  # At 6, 12 and 18 s.


def test_rows_of_an_earlier_attempt_count_as_done_but_not_as_speed(monkeypatch, tmp_path):
    clock = Clock(monkeypatch)
    with Progress(tmp_path / "metrics.jsonl") as shown:
        shown.begin("train", 1000, StageTimes(), done=400)
        clock.now += 10
        shown.advance(100)
        shown.report({})
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    record = json.loads(line)
    assert (record["rows"], record["rows_per_s"]) == (500, 10.0)


class Terminal:
    """A pseudo-terminal in the place of stderr, and what was written to it."""

    def __init__(self, monkeypatch) -> None:
        self._leader, follower = pty.openpty()
        termios.tcsetwinsize(follower, (24, 100))
        self._file = os.fdopen(follower, "w")
        self._chunks: list[bytes] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        monkeypatch.setattr(sys, "stderr", self._file)

    def _read(self) -> None:
        with contextlib.suppress(OSError):  # What Linux says when the other end is closed.
            while chunk := os.read(self._leader, 1 << 12):
                self._chunks.append(chunk)

    def close(self) -> str:
        self._file.close()
        self._reader.join(10)
        os.close(self._leader)
        return b"".join(self._chunks).decode()


def test_on_a_terminal_there_is_a_bar(monkeypatch):
    with monkeypatch.context() as patch:
        terminal = Terminal(patch)
        with Progress() as shown:
            shown.begin("train", 1000, StageTimes())
            shown.advance(500)
            shown.report({"inertia_per_row": 0.25})
            shown.say("a note beside the bar")
    output = terminal.close()
    assert "train:" in output
    assert "50%" in output
    assert "inertia/row 0.25" in output
    assert "a note beside the bar\r\n" in output


def test_a_run_on_a_terminal_ends_with_its_last_words(monkeypatch, job):
    with monkeypatch.context() as patch:
        terminal = Terminal(patch)
        job.attempt()
    shown = [overwritten(line) for line in terminal.close().split("\n")]
    assert shown[-2].startswith("written: ")
    assert shown[-1] == ""  # The bar is gone.


def overwritten(line: str) -> str:
    """What is left of a line on the screen after its carriage returns."""
    screen = ""
    for part in line.split("\r"):
        screen = part + screen[len(part) :]
    return screen.rstrip()


def test_what_a_run_says_names_the_bottleneck_and_the_reason(job, capsys):
    job.attempt()
    err = capsys.readouterr().err
    assert "stopped: all epochs are done (1); 12 steps in all" in err
    assert "bottleneck: " in err
    capped = replace(job, run=job.run.with_name("capped"))
    capped.settings = {**job.settings, "epochs": 50, "tol": 1e6}
    capped.attempt()
    assert "the centroid shift fell to tol" in capsys.readouterr().err


# ---- sizes ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sizes", "median", "said"),
    [
        ([7], 7, "7"),
        ([198, 302], 250, "250"),
        ([198, 303], 250.5, "250.5"),
        ([1, 5000, 9000], 5000, "5,000"),
        ([0, 2**53, 2**53 + 2, 2**60], 2**53 + 1, "9,007,199,254,740,993"),
    ],
)
def test_the_median_of_sizes_is_between_the_middle_two(sizes, median, said):
    assert median_size(sizes) == median
    assert f"{median_size(sizes):,}" == said


# Breaks when one of the places that say it takes the upper of the two in the middle.
def test_every_face_says_the_same_median(tmp_path, capsys):
    x = np.repeat([[0.0, 0.0], [9.0, 9.0]], [198, 303], axis=0)
    np.save(tmp_path / "x.npy", x)
    run = str(tmp_path / "run")
    assert main(["fit", str(tmp_path / "x.npy"), "--k", "2", "--out", run]) == 0
    assert "clusters of 198 to 303 rows, 250.5 in the median" in capsys.readouterr().err
    assert main(["info", run]) == main(["evaluate", run, str(tmp_path / "x.npy")]) == 0
    out = capsys.readouterr().out
    assert out.count("198 least, 250.5 median, 303 most") == 2
    MiniBatchKMeans(2, random_state=0, verbose=1).fit(x)
    assert "250.5 in the median" in capsys.readouterr().err
