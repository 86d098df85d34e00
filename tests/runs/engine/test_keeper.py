"""Checkpoints are saved when they are due; neither saving nor reporting changes the result."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import zarr

from streamkm.errors import Interrupted, NonFiniteError
from streamkm.runs.engine.agreement import MOST_STEPS
from streamkm.runs.engine.keeper import Keeper
from streamkm.runs.engine.snapshot import Cursor
from streamkm.runs.reporting import progress
from streamkm.runs.reporting.signals import StopRequest
from streamkm.runs.storage.checkpoint import NoCheckpoints, load_checkpoint
from tests.distributed.together import together
from tests.runs.engine.cases import Case, on_cases, uninterrupted
from tests.runs.helpers import Job, every, metrics_of, steps_saved

pytestmark = pytest.mark.usefixtures("small_windows", "short_seeding")


@pytest.fixture
def job(case: Case, quick_path: Path) -> Job:
    return case.job(quick_path)


# Killed rather than stopped: a run goes on from a checkpoint that is some batches old, over
# records and files that are newer.
@on_cases("minibatch", "lloyd, z-score, drop")
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


# Loss: a run that was stopped while it was seeding must save the seeding once it is done.
@on_cases("minibatch", "lloyd, z-score, drop")
def test_seeding_is_saved_though_an_attempt_before_was_stopped_in_it(job):
    job.settings["init"] = "k-means++"
    n_batches_of_scaling = 11 if "scale" in job.settings else 0
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


# Reports fetch scalars from the device and notice that a run is over: sooner or later, the
# result must be the same.
@on_cases("minibatch", "minibatch, stopped by inertia", "minibatch, stopped by tol")
@pytest.mark.parametrize("every_s", [0.0, 1e9])
def test_how_often_is_reported_does_not_change_the_result(job, every_s, monkeypatch):
    expected, _ = uninterrupted(job)
    monkeypatch.setattr(progress, "REPORT_EVERY_S", every_s)
    job.attempt()
    assert job.results == expected
    figures = metrics_of(job.run)[-1]
    assert figures["phase"] == "end"
    assert figures["step"] < 16 * 9 if "tol" in job.settings else figures["step"] > 0


@on_cases("minibatch", "minibatch, z-score", "lloyd")
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


# Breaks when a thread writes a checkpoint that counts rows which the run refuses.
@pytest.mark.parametrize(("nan", "saves"), [("error", [0]), ("drop", [0, 3])])
def test_a_thread_saves_no_rows_that_the_run_refuses(nan, saves):
    plan: Any = SimpleNamespace(config=SimpleNamespace(nan=nan))
    none: Any = None
    announcer: Any = SimpleNamespace(progress=None)
    keeper = Keeper(plan, none, NoCheckpoints(), announcer, StopRequest())
    for n_dropped in (0, 3):
        found = {"state.n_dropped": np.array(n_dropped)}
        usable = keeper._usable(partial(dict, found))
        assert (usable == found) == (n_dropped in saves)


# Breaks when a phase of long steps answers a signal as seldom as the quick steps before it: after
# 32 passes of Lloyd's algorithm, where one takes minutes.
def test_a_signal_is_answered_soon_after_quick_steps():
    def work(world) -> int:
        now: Any = SimpleNamespace(cursor=Cursor("seed"), step=0, state=None)
        now.gathered = lambda *_: now
        shown = SimpleNamespace(advance=lambda _: None, is_due=lambda: False)
        stop = StopRequest()
        announcer: Any = SimpleNamespace(progress=shown)
        plan: Any = None
        keeper = Keeper(plan, now, NoCheckpoints(), announcer, stop, world)
        for _ in range(3 * MOST_STEPS):
            keeper.after_step(1)
        keeper.move_to(Cursor("train"))
        stop.signal_name = "SIGTERM" if world.rank else None
        for n_steps in range(20):
            try:
                keeper.after_step(1)
            except Interrupted:
                return n_steps
            time.sleep(0.3)
        return -1

    assert together(2, work) == [1, 1]
