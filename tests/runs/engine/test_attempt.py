"""A run that is resumed ends with the same bits as one that was never stopped.

Stopped at every batch, in every phase: the sweep that the promise needs. What is compared are
the bytes of centroids.npy and model.safetensors, which hold centroids, sums, counts and scaling.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from streamkm.config import Cadence
from tests.runs.engine.cases import CASES, Case, on_cases, uninterrupted
from tests.runs.helpers import Job, every, steps_saved

pytestmark = pytest.mark.usefixtures("small_windows", "short_seeding", "short_sizing")


@pytest.fixture
def job(case: Case, quick_path: Path) -> Job:
    return case.job(quick_path)


# ---- stopped anywhere -------------------------------------------------------


# Would break if anything that decides what comes next were left out of a checkpoint, or the
# cursor were off by one at the edge of a window, an epoch or a phase (torchdata#1437). The test
# below stops at every batch of each of these cases. So a case takes every third here, and others
# in the same phase the rest.
@on_cases()
def test_stopped_once_at_any_batch(case, job):
    expected, looks = uninterrupted(job)
    for stop_at in sorted({*range(1 + CASES.index(case) % 3, looks, 3), looks}):
        assert job.interrupted(stop_at, checkpoint_every=every(10**6)), stop_at
        assert not job.interrupted(10**9)
        assert job.results == expected, f"stopped at {stop_at} of {looks}"
        shutil.rmtree(job.run)


# Would break where the second resume misaligns though the first does not (KempnerForge#57).
@on_cases()
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


# Breaks when the rate of scikit-learn moves centroids in a way of its own, or when centroids are
# halved though no closing pass follows.
@on_cases("minibatch, lone row")
@pytest.mark.parametrize(
    ("settings", "moves"), [({}, True), ({"rate": "mean"}, False), ({"closing_pass": False}, False)]
)
def test_a_lone_centroid_moves_before_the_closing_pass(job, capsys, settings, moves):
    job.settings.update(settings)
    job.attempt()
    told = "note: 1 centroid of few rows moved to larger clusters" in capsys.readouterr().err
    assert told == moves


@on_cases("minibatch", "lloyd")
def test_a_finished_run_is_left_as_it_is(job, capsys):
    job.attempt()
    before = {p: p.stat().st_mtime_ns for p in job.run.rglob("*") if p.is_file()}
    assert job.attempt() == 0
    assert "this run is finished" in capsys.readouterr().err
    after = {p: p.stat().st_mtime_ns for p in job.run.rglob("*") if p.is_file()}
    del before[job.run / "lock"], after[job.run / "lock"]
    assert after == before


# The end is committed last: a run that was killed between its two files is not finished.
@on_cases("minibatch")
def test_killed_while_the_model_was_written(job):
    expected, _ = uninterrupted(job)
    job.attempt()
    (job.run / "model.safetensors").unlink()
    (job.run / "centroids.npy").write_bytes(b"torn")
    (job.run / ".model.safetensors.tmp").write_bytes(b"torn")
    job.attempt()
    assert job.results == expected


# ---- nothing else decides the result ----------------------------------------


@on_cases("minibatch", "minibatch, z-score", "lloyd, until it stops", "lloyd, weighted, cosine")
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
