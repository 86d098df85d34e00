"""A run that is resumed ends with the same bits as one that was never stopped.

Stopped at every batch, in every phase: the sweep that the promise needs. What is compared are
the bytes of centroids.npy and model.safetensors, which hold centroids, sums, counts and scaling.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import zarr

from streamkm.config import Cadence
from streamkm.errors import NonFiniteError
from streamkm.runs.reporting import progress
from streamkm.runs.storage.checkpoint import load_checkpoint
from tests.runs.helpers import Job, clusters, every, metrics_of, predicted, steps_saved

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("small_windows", "no_fsync", "short_seeding")

N_ROWS, N_FEATURES = 205, 3

#: Settings of each case. With blocks of 20 rows, windows of 4 blocks and batches of 25 rows there
#: are stops within windows, at their edges, and at the edges of epochs.
CASES: dict[str, dict[str, Any]] = {
    "minibatch": {"epochs": 2},
    "minibatch, best of two": {"n_init": 2, "k": 3},
    "minibatch, k-means||, cosine": {"init": "k-means||", "metric": "cosine", "k": 4},
    "minibatch, k-means++": {"init": "k-means++"},
    "minibatch, random, cosine": {"init": "random", "metric": "cosine"},
    "minibatch, z-score": {"scale": "zscore", "init": "random"},
    "minibatch, min-max, drop": {"scale": "minmax", "nan": "drop"},
    "minibatch, starved clusters": {"init": "far.npy", "epochs": 2},
    "minibatch, stopped by tol": {"epochs": 9, "tol": 2e-3, "init": "random"},
    "minibatch, stopped by inertia": {"epochs": 9, "max_no_improvement": 4, "init": "random"},
    "minibatch, no closing pass": {"epochs": 2, "closing_pass": False},
    # Closing passes that find ever more rows for clusters, and some that find none.
    "minibatch, few distinct rows": {"init": "far.npy", "epochs": 1, "k": 6},
    "lloyd, few distinct rows": {"algorithm": "lloyd", "init": "far.npy", "epochs": 1},
    "minibatch, weighted, starved clusters": {"init": "far.npy", "epochs": 2},
    "minibatch, weighted, z-score, drop": {"scale": "zscore", "nan": "drop"},
    "lloyd, weighted, cosine": {"algorithm": "lloyd", "epochs": 2, "metric": "cosine"},
    "lloyd": {"algorithm": "lloyd", "epochs": 2},
    "lloyd, until it stops": {"algorithm": "lloyd", "init": "random", "k": 2, "tol": 0.5},
    "lloyd, cosine": {"algorithm": "lloyd", "epochs": 2, "metric": "cosine", "init": "random"},
    "lloyd, z-score, drop": {"algorithm": "lloyd", "epochs": 2, "scale": "zscore", "nan": "drop"},
    "lloyd, empty clusters": {"algorithm": "lloyd", "init": "far.npy", "epochs": 2},
    "lloyd, l2": {"algorithm": "lloyd", "epochs": 2, "scale": "l2", "init": "random"},
}


@pytest.fixture
def job(request, tmp_path) -> Job:
    """The case named by the parameter, on a Zarr array in a folder of its own."""
    rows = clusters(N_ROWS, N_FEATURES)
    settings = {"k": 6, "batch_rows": 25, "seed": 3, **CASES[request.param]}
    if "few distinct" in request.param:
        rows = rows[np.minimum(np.arange(N_ROWS), 4)]
    if settings.get("nan") == "drop":
        rows[[0, 77, 78, 204], [0, 1, 2, 0]] = [np.nan, np.inf, -np.inf, np.nan]
    if settings.get("init") == "far.npy":
        far = rows[:6].astype(np.float64)
        far[2:5] += 1000.0 * np.arange(1, 4)[:, None]
        np.save(tmp_path / "far.npy", far)
        settings["init"] = str(tmp_path / "far.npy")
    array = zarr.create_array(
        tmp_path / "x.zarr", shape=rows.shape, chunks=(20, N_FEATURES), dtype="f4"
    )
    array[:] = rows
    weights = None
    if "weighted" in request.param:
        weights = tmp_path / "w.npy"
        np.save(weights, np.random.default_rng(1).integers(0, 5, N_ROWS) / 3)
    return Job(tmp_path / "x.zarr", tmp_path / "run", settings, weights)


def uninterrupted(job: Job) -> tuple[dict[str, bytes], int]:
    """Results of the whole run, and how many places it could have been stopped at."""
    whole = replace(job, run=job.run.with_name("whole"))
    looks = whole.attempt()
    return whole.results, looks


# ---- stopped anywhere -------------------------------------------------------


# Would break if anything that decides what comes next were left out of a checkpoint, or the
# cursor were off by one at the edge of a window, an epoch or a phase (torchdata#1437).
@pytest.mark.parametrize("job", CASES, indirect=True)
def test_stopped_once_at_any_batch(job):
    expected, looks = uninterrupted(job)
    for stop_at in range(1, looks + 1):
        assert job.interrupted(stop_at, checkpoint_every=every(10**6)), stop_at
        assert not job.interrupted(10**9)
        assert job.results == expected, f"stopped at {stop_at} of {looks}"
        shutil.rmtree(job.run)


# Would break where the second resume misaligns though the first does not (KempnerForge#57).
@pytest.mark.parametrize("job", CASES, indirect=True)
def test_stopped_at_every_batch_of_one_run(job):
    expected, looks = uninterrupted(job)
    stop_at, before, attempts, steps = 1, -1, 0, set()
    while job.interrupted(stop_at, read_threads=1 + attempts % 2):
        now = max(steps_saved(job.run))
        # Drawing the sample is no step: an attempt that gets nowhere is let further next time.
        stop_at = stop_at + 1 if now == before else 1
        before, attempts = now, attempts + 1
        assert attempts < 4 * looks
        steps.add(now)
    assert len(set(range(min(steps), max(steps))) - steps) <= 1  # Only the seeding is passed over.
    assert job.results == expected


# Killed rather than stopped: a run goes on from a checkpoint that is some batches old, over
# records and files that are newer.
@pytest.mark.parametrize("job", ["minibatch", "lloyd, z-score, drop"], indirect=True)
@pytest.mark.parametrize("cadence", [3, 7])
def test_going_on_from_an_older_checkpoint(job, cadence, monkeypatch):
    expected, looks = uninterrupted(job)
    assert job.interrupted(looks - 2, checkpoint_every=every(cadence), keep_checkpoints=1000)
    saved = steps_saved(job.run)
    template = job.run.rename(job.run.with_name("template"))
    for newest in saved[1:]:
        shutil.copytree(template, job.run)
        for step in saved:
            if step > newest:
                shutil.rmtree(job.run / "checkpoints" / f"step-{step:08d}")
        job.attempt()
        assert job.results == expected, newest
        shutil.rmtree(job.run)


@pytest.mark.parametrize("job", ["minibatch", "lloyd"], indirect=True)
def test_a_finished_run_is_left_as_it_is(job, capsys):
    job.attempt()
    before = {p: p.stat().st_mtime_ns for p in job.run.rglob("*") if p.is_file()}
    assert job.attempt() == 0
    assert "this run is finished" in capsys.readouterr().err
    after = {p: p.stat().st_mtime_ns for p in job.run.rglob("*") if p.is_file()}
    del before[job.run / "lock"], after[job.run / "lock"]
    assert after == before


# The end is committed last: a run that was killed between its two files is not finished.
@pytest.mark.parametrize("job", ["minibatch"], indirect=True)
def test_killed_while_the_model_was_written(job):
    expected, _ = uninterrupted(job)
    job.attempt()
    (job.run / "model.safetensors").unlink()
    (job.run / "centroids.npy").write_bytes(b"torn")
    (job.run / ".model.safetensors.tmp").write_bytes(b"torn")
    job.attempt()
    assert job.results == expected


# Loss: a run that was stopped while it was seeding must save the seeding once it is done.
@pytest.mark.parametrize("job", ["minibatch", "lloyd, z-score, drop"], indirect=True)
def test_seeding_is_saved_though_an_attempt_before_was_stopped_in_it(job):
    job.settings["init"] = "k-means++"
    n_batches_of_scaling = 10 if "scale" in job.settings else 0
    assert job.interrupted(n_batches_of_scaling + 6)
    stopped = load_checkpoint(job.run / "checkpoints")
    assert stopped is not None
    assert stopped.manifest["cursor"]["phase"] == "seed"
    assert stopped.manifest["cursor"]["batch"] == 3
    n_seeding = 3 + 3  # Windows of the sample, steps of k-means++ that are left.
    assert job.interrupted(n_seeding + 3, checkpoint_every=every(10**6), keep_checkpoints=9)
    phases = [manifest["cursor"]["phase"] for manifest in manifests(job.run)]
    assert phases == ["seed", "train", "train"]  # The second right after the seeding.


def manifests(run: Path) -> list[dict[str, Any]]:
    paths = sorted((run / "checkpoints").glob("step-*/manifest.json"))
    return [json.loads(path.read_bytes()) for path in paths]


# ---- nothing else decides the result ----------------------------------------


@pytest.mark.parametrize(
    "job",
    ["minibatch", "minibatch, z-score", "lloyd, until it stops", "lloyd, weighted, cosine"],
    indirect=True,
)
@pytest.mark.parametrize(
    "execution",
    [
        {"read_threads": 1},
        {"read_threads": 7},
        {"max_host_memory": 1 << 40},
        {"checkpoint_every": every(1)},
        {"checkpoint_every": Cadence(seconds=0.001), "keep_checkpoints": 5},
    ],
    ids=str,
)
def test_how_a_run_is_carried_out_does_not_change_its_result(job, execution):
    expected, _ = uninterrupted(job)
    job.attempt(**execution)
    assert job.results == expected


# Reports fetch scalars from the device and notice that a run is over: sooner or later, the
# result must be the same.
@pytest.mark.parametrize(
    "job",
    ["minibatch", "minibatch, stopped by inertia", "minibatch, stopped by tol"],
    indirect=True,
)
@pytest.mark.parametrize("every_s", [0.0, 1e9])
def test_how_often_is_reported_does_not_change_the_result(job, every_s, monkeypatch):
    expected, _ = uninterrupted(job)
    monkeypatch.setattr(progress, "REPORT_EVERY_S", every_s)
    job.attempt()
    assert job.results == expected
    figures = metrics_of(job.run)[-1]
    assert figures["phase"] == "end"
    assert figures["step"] < 16 * 9 if "tol" in job.settings else figures["step"] > 0


# ---- rows that must not be used ---------------------------------------------


@pytest.mark.parametrize("job", ["minibatch", "minibatch, z-score", "lloyd"], indirect=True)
def test_no_checkpoint_holds_rows_that_the_run_refuses(job):
    array = zarr.open_array(job.source)
    array[177, 1] = np.nan
    settings = {**job.settings, "init": "random"}
    bad = replace(job, settings=settings)
    for _ in range(2):  # The second attempt goes on from a checkpoint and must find it again.
        with pytest.raises(NonFiniteError, match="row 177 holds nan"):
            bad.attempt(checkpoint_every=every(1))
    newest = load_checkpoint(job.run / "checkpoints")
    if newest is not None and newest.manifest["cursor"]["phase"] == "train":
        assert newest.tensors["state.n_dropped"] == 0


# ---- predict ----------------------------------------------------------------


@pytest.mark.parametrize("job", ["minibatch, z-score", "minibatch, min-max, drop"], indirect=True)
def test_labels_are_the_same_wherever_predict_was_stopped(job, tmp_path, monkeypatch):
    job.attempt()
    monkeypatch.setattr("streamkm.config.MIN_BATCH_ROWS", 25)
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


# Breaks when torch's sums, which depend on how many threads share them, have a say in a pass; or
# when the threads that it had are not given back.
def test_threads_of_torch_do_not_change_the_result(tmp_path):
    rows = np.random.default_rng(2).normal(size=(1500, 60)).astype(np.float32)
    np.save(tmp_path / "x.npy", rows)
    np.save(tmp_path / "init.npy", rows[:600])
    settings = {"k": 600, "init": str(tmp_path / "init.npy"), "epochs": 2}
    found = []
    for n_threads in (1, 3):
        torch.set_num_threads(n_threads)
        job = Job(tmp_path / "x.npy", tmp_path / f"{n_threads}", settings)
        job.attempt()
        assert torch.get_num_threads() == n_threads
        found.append(job.results)
    assert found[0] == found[1]
