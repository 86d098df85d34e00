"""A power cut at every call of a run: what was not synced is lost, torn or out of order.

After each: the newest checkpoint that was promised, or a newer one, is there; the run that is
resumed, and the output, end with the same bits. Leaving out an fsync, or renaming before it,
breaks these.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from functools import partial
from itertools import count, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamkm.errors import OutputExistsError
from streamkm.runs import predict as predict_module
from streamkm.runs.storage import checkpoint
from streamkm.runs.storage.checkpoint import load_checkpoint, save_checkpoint
from streamkm.sinks import open_sink
from tests.runs.faults import Moment, RecordingDisk, digest, images, restore
from tests.runs.helpers import Job, clusters, content, every, label, short_batches, steps_saved

pytestmark = pytest.mark.usefixtures("no_reports")

SETTINGS: dict[str, dict[str, Any]] = {
    "minibatch": {"epochs": 2},
    "lloyd": {"algorithm": "lloyd", "epochs": 2},
}


@pytest.fixture
def job(request, quick_path) -> Job:
    np.save(quick_path / "x.npy", clusters(120, 3))
    settings = {"k": 3, "batch_rows": 40, "init": "random", **SETTINGS[request.param]}
    (quick_path / "disk").mkdir()
    return Job(quick_path / "x.npy", quick_path / "disk/deep/run", settings)


@dataclass
class Truth:
    """What an uninterrupted run has at each of its steps, and in the end."""

    results: dict[str, bytes]
    states: dict[int, bytes]

    @classmethod
    def of(cls, job: Job, folder: Path) -> Truth:
        whole = replace(job, run=folder)
        whole.attempt(checkpoint_every=every(1), keep_checkpoints=1000)
        states = {step: state_of(whole.run, step) for step in steps_saved(whole.run)}
        return cls(whole.results, states)


def state_of(run: Path, step: int) -> bytes:
    return (run / f"checkpoints/step-{step:08d}/state.safetensors").read_bytes()


def record(job: Job, disk: RecordingDisk, monkeypatch) -> list[Moment]:
    """One attempt on `disk`, with what it promises marked at the moment when it does."""
    real = checkpoint.save_checkpoint

    def save(directory, step, *arguments, **options):
        disk.marks["begun"] = step
        path = real(directory, step, *arguments, **options)
        disk.marks["saved"] = step
        return path

    with disk.mounted(), monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_checkpoint", save)
        job.attempt(checkpoint_every=every(3), read_threads=0)
        disk.marks["finished"] = True
        disk.finish()
    return disk.moments


def check(job: Job, moment: Moment, truth: Truth, what: str) -> None:
    """What lies in `job.run` after a power cut at `moment` is enough, and true."""
    saved = moment.marks.get("saved")
    found = load_checkpoint(job.run / "checkpoints")
    if saved is not None:
        assert found is not None, what
        assert saved <= found.step <= moment.marks["begun"], what
    if found is not None:
        assert state_of(job.run, found.step) == truth.states[found.step], what
    if "finished" in moment.marks:
        assert job.results == truth.results, what
    job.attempt(read_threads=0)
    assert job.results == truth.results, what


@pytest.mark.parametrize("job", SETTINGS, indirect=True)
def test_a_fit_survives_a_power_cut_at_any_call(job, quick_path, monkeypatch):
    truth = Truth.of(job, quick_path / "whole")
    disk = RecordingDisk(quick_path / "disk")
    moments = record(job, disk, monkeypatch)
    assert len(steps_saved(job.run)) == 2
    assert moments[-1].marks["saved"] >= 7
    n_random = 2 if job.settings.get("algorithm") is None else 0  # The same files again.
    seen: dict[str, int] = {}
    for number, moment in enumerate(moments):
        for name, image in images(moment, seed=number, n_random=n_random):
            # The same disk again need only be looked at if more was promised of it.
            key, promised = digest(image, moment.root), len(moment.marks)
            promised += moment.marks.get("saved", -1)
            if seen.get(key, -2) >= promised:
                continue
            seen[key] = promised
            after = quick_path / "after"
            restore(image, moment.root, after)
            what = f"power cut before call {number}, {moment.call}: {name}"
            check(replace(job, run=after / "deep/run"), moment, truth, what)
            shutil.rmtree(after)
    assert len(seen) > 100


# Killed first, so that nothing is lost but nothing was synced either; the attempt that goes on
# from there must not build on what is only in memory.
@pytest.mark.parametrize("job", ["minibatch"], indirect=True)
def test_a_power_cut_after_a_kill(job, quick_path, monkeypatch):
    truth = Truth.of(job, quick_path / "whole")
    first = record(job, RecordingDisk(quick_path / "disk"), monkeypatch)
    numbers = count()
    for killed_at in range(0, len(first), 8):
        moment = first[killed_at]
        again = quick_path / f"again{killed_at}"
        _, image = next(images(moment, seed=0, n_random=0))
        disk = RecordingDisk(again, relaid(moment, image, again))
        disk.marks |= moment.marks
        second = replace(job, run=again / "deep/run")
        moments = record(second, disk, monkeypatch)
        # Each first moment after a promise, in which least can have been synced.
        kept = [b for a, b in pairwise(moments) if a.marks != b.marks]
        for late in kept:
            _, lost = list(images(late, seed=0, n_random=0))[1]
            after = quick_path / f"after{next(numbers)}"
            restore(lost, late.root, after)
            cut = replace(job, run=after / "deep/run")
            check(cut, late, truth, f"killed at {killed_at}, then without power at {late.call}")
            shutil.rmtree(after)


# An attempt that finds the checkpoint which it is to save must not take its name for synced: the
# one before may have been killed between the renaming and that.
def test_a_checkpoint_that_is_there_already_is_synced_again(quick_path):
    def save(disk: RecordingDisk) -> Moment:
        with disk.mounted():
            save_checkpoint(disk.root / "checkpoints", 7, {"a": np.arange(3)}, {}, keep=2)
            disk.finish()
        return disk.moments[-1]

    (quick_path / "disk").mkdir()
    first = RecordingDisk(quick_path / "disk")
    save(first)
    renamed = [b for a, b in pairwise(first.moments) if a.call == "replace"]
    assert len(renamed) == 1
    _, image = next(images(renamed[0], seed=0, n_random=0))
    again = RecordingDisk(quick_path / "again", relaid(renamed[0], image, quick_path / "again"))
    _, lost = list(images(save(again), seed=0, n_random=0))[1]
    restore(lost, again.moments[-1].root, quick_path / "after")
    found = load_checkpoint(quick_path / "after/checkpoints")
    assert found is not None
    assert found.step == 7


def relaid(moment: Moment, image, folder: Path):
    """Lay `image` out in `folder`; what of it was not synced, as the new disk must know it."""
    inodes = restore(image, moment.root, folder)
    return {
        new: [translated(state, inodes) for state in moment.histories[old]]
        for old, new in inodes.items()
    }


def translated(state, inodes):
    if isinstance(state, bytes):
        return state
    return {name: inodes[inode] for name, inode in state.items() if inode in inodes}


@pytest.mark.parametrize(("suffix", "n_random"), [(".npy", 3), (".zarr", 0)])
def test_predict_survives_a_power_cut_at_any_call(suffix, n_random, quick_path, monkeypatch):
    np.save(quick_path / "x.npy", clusters(205, 3))
    job = Job(quick_path / "x.npy", quick_path / "run", {"k": 3, "init": "random"})
    job.attempt()
    short_batches(monkeypatch, 25)
    monkeypatch.setattr(predict_module, "open_sink", partial(open_sink, chunk_rows=40))
    names = sorted([f"labels{suffix}", f"distances{suffix}"])

    def predict(folder: Path) -> dict[str, bytes]:
        label(
            job.run, job.source, folder / f"labels{suffix}",
            distances=folder / f"distances{suffix}", checkpoint_every=every(3),
        )  # fmt: skip
        return {name: content(folder / name) for name in names}

    (quick_path / "disk").mkdir()
    disk = RecordingDisk(quick_path / "disk")
    with disk.mounted():
        expected = predict(quick_path / "disk")
        disk.finish()
    assert sorted(path.name for path in (quick_path / "disk").iterdir()) == names
    seen = set()
    for number, moment in enumerate(disk.moments):
        for name, image in images(moment, seed=number, n_random=n_random):
            key = digest(image, moment.root)
            if key in seen:
                continue
            seen.add(key)
            after, what = quick_path / "after", f"before call {number}, {moment.call}: {name}"
            restore(image, moment.root, after)
            for output in names:
                if (after / output).exists():
                    # Under its name it is whole.
                    assert content(after / output) == expected[output], what
            try:
                assert predict(after) == expected, what
                assert sorted(path.name for path in after.iterdir()) == names, what
            except OutputExistsError:
                # Nothing was left to do but to delete cursors.
                assert {name: content(after / name) for name in names} == expected, what
            shutil.rmtree(after)
    assert len(seen) > 50
