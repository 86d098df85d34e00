"""Checkpoints: whole or not there, verified before they are believed, never fewer than before."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from functools import partial
from pathlib import Path
from threading import Event

import numpy as np
import pytest

from streamkm.config import Cadence
from streamkm.errors import RunError
from streamkm.runs.storage import checkpoint
from streamkm.runs.storage.checkpoint import (
    Checkpoint,
    Checkpointer,
    load_checkpoint,
    save_checkpoint,
)
from tests.runs.faults import FaultyDisk

TENSORS: dict[str, np.ndarray] = {
    "a": np.arange(12, dtype=np.float64).reshape(3, 4),
    "b": np.array(7, dtype=np.int64),
    "c": np.array([np.nan, np.inf, -0.0], dtype=np.float32),
    "empty": np.zeros((0, 4), dtype=np.float32),
}


def save(directory: Path, step: int, *, keep: int = 2, tensors=TENSORS) -> Path:
    return save_checkpoint(directory, step, tensors, {"cursor": {"at": step}}, keep=keep)


def newest(directory: Path) -> Checkpoint:
    loaded = load_checkpoint(directory)
    assert loaded is not None
    return loaded


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "checkpoints"


# ---- saving and loading -----------------------------------------------------


def test_what_is_saved_is_loaded(folder):
    save(folder, 41)
    loaded = newest(folder)
    assert (loaded.step, loaded.manifest["cursor"]) == (41, {"at": 41})
    assert loaded.tensors.keys() == TENSORS.keys()
    for name, array in TENSORS.items():
        assert loaded.tensors[name].dtype == array.dtype
        assert loaded.tensors[name].shape == array.shape
        assert loaded.tensors[name].tobytes() == array.tobytes()


def test_no_folder_and_an_empty_one_have_no_checkpoint(folder):
    assert load_checkpoint(folder) is None
    folder.mkdir()
    assert load_checkpoint(folder) is None


# Breaks when `info` finds no intact checkpoint in the folder of a fit that saves a newer one.
@pytest.mark.parametrize("keep", [1, 2])
def test_one_that_is_deleted_for_a_newer_one_is_not_damaged(keep, folder, monkeypatch, caplog):
    save(folder, 1, keep=keep)
    real = checkpoint._load

    def late(path: Path) -> Checkpoint:
        if not (folder / "step-00000004").exists():
            for step in (2, 3, 4):
                save(folder, step, keep=keep)
        return real(path)

    monkeypatch.setattr(checkpoint, "_load", late)
    assert newest(folder).step == 4
    assert not caplog.records


# Sorting names as text would take step 99999999 for newer than 100000000.
def test_the_newest_is_the_one_of_the_most_steps(folder):
    for step in (99_999_998, 99_999_999, 100_000_000):
        save(folder, step, keep=9)
    assert newest(folder).step == 100_000_000


@pytest.mark.parametrize("keep", [2, 3])
def test_only_the_newest_are_kept(folder, keep):
    for step in range(6):
        save(folder, step, keep=keep)
    assert names(folder) == [f"step-{step:08d}" for step in range(6 - keep, 6)]


def test_saving_the_same_step_again_changes_nothing(folder):
    path = save(folder, 5)
    before = (path / "state.safetensors").stat().st_mtime_ns
    assert save(folder, 5) == path
    assert (path / "state.safetensors").stat().st_mtime_ns == before
    assert names(folder) == ["step-00000005"]


def test_saving_over_a_damaged_checkpoint_replaces_it(folder):
    path = save(folder, 5)
    (path / "manifest.json").write_bytes(b"{")
    save(folder, 5)
    assert newest(folder).step == 5


# Breaks where a checkpoint that was passed over, though its checksums hold, counts as this one.
def test_saving_over_a_checkpoint_of_other_tensors_replaces_it(folder):
    save(folder, 2, tensors={name: value + 1 for name, value in TENSORS.items()})
    save(folder, 2)
    loaded = newest(folder).tensors
    for name, expected in TENSORS.items():
        np.testing.assert_array_equal(loaded[name], expected)


# Breaks when the highest numbers are kept whatever their state: the sound ones would go.
def test_damaged_later_checkpoints_do_not_push_out_sound_ones(folder):
    for step in (100, 200, 300):
        save(folder, step, keep=3)
    for step in (200, 300):
        (folder / f"step-{step:08d}" / "manifest.json").write_bytes(b"{")
    for step in (110, 120):
        save(folder, step, keep=2)
        assert newest(folder).step == step
    assert sorted(path.name for path in folder.iterdir()) == ["step-00000110", "step-00000120"]


# Breaks when what a killed attempt left takes the disk's space for good.
def test_left_overs_of_other_steps_are_removed(folder):
    save(folder, 1)
    (folder / ".step-00000007.tmp").mkdir()
    (folder / ".step-00000007.tmp" / "state.safetensors").write_bytes(b"half")
    save(folder, 2)
    assert sorted(path.name for path in folder.iterdir()) == ["step-00000001", "step-00000002"]


# ---- damage -----------------------------------------------------------------


def flipped(content: bytes, at: float) -> bytes:
    place = min(int(at * len(content)), len(content) - 1)
    return content[:place] + bytes([content[place] ^ 0x10]) + content[place + 1 :]


def truncated(content: bytes, at: float) -> bytes:
    return content[: int(at * len(content))]


# Not verifying either file, or believing an intact manifest beside torn tensors, breaks this.
@pytest.mark.parametrize("file", ["state.safetensors", "manifest.json"])
@pytest.mark.parametrize("damage", [flipped, truncated])
@pytest.mark.parametrize("at", [0, 0.1, 0.3, 0.5, 0.7, 0.99])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_taken(
    folder, file, damage, at, caplog
):
    save(folder, 1)
    path = save(folder, 2)
    content = (path / file).read_bytes()
    (path / file).write_bytes(damage(content, at))
    with caplog.at_level(logging.WARNING, "streamkm"):
        assert newest(folder).step == 1
    assert f"{path} is damaged" in caplog.text


@pytest.mark.parametrize("file", ["state.safetensors", "manifest.json", None])
def test_a_checkpoint_that_lacks_a_file_is_passed_over(folder, file):
    save(folder, 1)
    path = save(folder, 2)
    for name in [file] if file else ["state.safetensors", "manifest.json"]:
        (path / name).unlink()
    assert newest(folder).step == 1


# Breaks where the newest is passed over, and deleted later, because the process had no descriptor.
@pytest.mark.parametrize("at", [1, 5])
def test_what_is_no_fault_of_a_checkpoint_is_no_damage(folder, at):
    for step in (1, 2):
        save(folder, step)
    with FaultyDisk(at, "EMFILE").mounted(), pytest.raises(OSError, match="Too many open files"):
        load_checkpoint(folder)
    assert newest(folder).step == 2


# mosaicml streaming#437: a silent restart from 0.
def test_if_all_are_damaged_the_run_does_not_begin_anew(folder):
    for step in (1, 2):
        (save(folder, step) / "state.safetensors").write_bytes(b"")
    with pytest.raises(RunError, match="none of its 2 checkpoints is intact"):
        load_checkpoint(folder)


def test_a_newer_format_is_no_damage(folder):
    path = save(folder, 1)
    manifest = json.loads((path / "manifest.json").read_bytes())
    manifest["format"] = 99
    del manifest["sha256"]
    digest = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    (path / "manifest.json").write_text(json.dumps({**manifest, "sha256": digest}))
    with pytest.raises(RunError, match=r"its format is 99, this version of streamkm reads \d"):
        load_checkpoint(folder)


# ---- crashes ----------------------------------------------------------------


def test_what_a_crash_left_unfinished_is_ignored_and_replaced(folder):
    save(folder, 1)
    left = folder / ".step-00000002.tmp"
    left.mkdir()
    (left / "state.safetensors").write_bytes(b"half")
    assert newest(folder).step == 1
    save(folder, 2)
    assert newest(folder).step == 2
    assert names(folder) == ["step-00000001", "step-00000002"]


# An fsync that failed is a failure: a second one would succeed without the data.
@pytest.mark.parametrize("failing", range(1, 5))
def test_a_disk_that_refuses_leaves_the_checkpoints_before(folder, monkeypatch, failing):
    save(folder, 1)
    save(folder, 2)
    calls = 0

    def fsync(descriptor):
        nonlocal calls
        calls += 1
        if calls == failing:
            raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        with pytest.raises(OSError, match="Input/output"):
            save(folder, 3)
    assert calls == failing  # Not tried again.
    assert {"step-00000001", "step-00000002"} <= set(names(folder))


# The old may go only when the new has been read back; and what is damaged must not stay to be
# counted among those that are kept.
def test_a_checkpoint_that_reads_back_damaged_does_not_replace_any(folder, monkeypatch):
    save(folder, 1)
    save(folder, 2)
    real = os.replace

    def replace(path, target):
        real(path, target)
        (Path(target) / "state.safetensors").write_bytes(b"lost by the disk")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace)
        with pytest.raises(OSError, match=r"reads back damaged.*check the disk"):
            save(folder, 3)
    assert names(folder) == ["step-00000001", "step-00000002"]
    save(folder, 4)
    assert names(folder) == ["step-00000002", "step-00000004"]


# ---- by a thread ------------------------------------------------------------


def test_one_checkpoint_is_under_way_at_most(folder):
    checkpoints, may_go_on, fetched = Checkpointer(folder, Cadence(batches=1), 9), Event(), []

    def fetch(step):
        assert may_go_on.wait(30)
        fetched.append((step, names(folder) if folder.exists() else []))
        return TENSORS

    checkpoints.save_later(1, partial(fetch, 1), {})
    assert not fetched
    assert not checkpoints.is_due(1)  # Counted from when it began.
    may_go_on.set()
    checkpoints.save_later(2, partial(fetch, 2), {})
    checkpoints.conclude()
    assert fetched == [(1, []), (2, ["step-00000001"])]
    assert names(folder) == ["step-00000001", "step-00000002"]


def test_what_ends_the_thread_is_raised_by_who_waits(folder, monkeypatch, caplog):
    checkpoints = Checkpointer(folder, Cadence(batches=1), 9)

    def lost():
        raise RuntimeError("the device is lost")

    checkpoints.save_later(1, lost, {})
    with pytest.raises(RuntimeError, match="lost"):
        checkpoints.wait()
    checkpoints.save_later(2, lambda: None, {})  # Refused: nothing is saved.
    checkpoints.wait()
    assert not folder.exists()

    def refuse(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", refuse)
        checkpoints.save_later(3, lambda: TENSORS, {})
        checkpoints.wait()  # The run goes on.
    assert "the checkpoint of step 3 cannot be saved" in caplog.text
    checkpoints.save_later(4, lambda: TENSORS, {})
    checkpoints.conclude()
    assert names(folder) == ["step-00000004"]


# ---- cadence ----------------------------------------------------------------


def test_a_cadence_of_batches_counts_from_the_last_save(folder):
    checkpoints = Checkpointer(folder, Cadence(batches=3), 2)
    assert [step for step in range(1, 8) if checkpoints.is_due(step)] == [3, 4, 5, 6, 7]
    checkpoints.save(4, TENSORS, {})
    assert [step for step in range(5, 9) if checkpoints.is_due(step)] == [7, 8]
    again = Checkpointer(folder, Cadence(batches=3), 2)
    again.load(lambda _: None)
    assert [step for step in range(5, 9) if again.is_due(step)] == [7, 8]


def test_a_cadence_of_time_counts_from_the_last_save(folder, monkeypatch):
    now = 1000.0
    monkeypatch.setattr("streamkm.runs.storage.checkpoint.time.monotonic", lambda: now)
    checkpoints = Checkpointer(folder, Cadence(seconds=60), 2)
    now = 1059.0
    assert not checkpoints.is_due(10**6)
    now = 1060.0
    assert checkpoints.is_due(1)
    checkpoints.save(1, TENSORS, {})
    assert not checkpoints.is_due(2)
