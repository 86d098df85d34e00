"""Runs on a machine that runs out of disk, descriptors, memory, locks, time that runs evenly.

The disks are real and small where the tests may mount one; `test_faults` injects the same errors
everywhere else.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import re
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr

from streamkm import KMeans
from streamkm.cli import main
from streamkm.clustering.lloyd import Lloyd
from streamkm.clustering.minibatch import MiniBatch
from streamkm.config import Cadence, ExecutionConfig, FitConfig
from streamkm.errors import (
    AllocationError,
    ConfigError,
    OutputExistsError,
    RunError,
    StorageError,
    StreamkmError,
)
from streamkm.files import FileLock
from streamkm.runs import predict as predict_module
from streamkm.runs.fit import fit
from streamkm.runs.predict import predict
from streamkm.runs.reporting import progress
from streamkm.runs.reporting.signals import StopRequest
from streamkm.runs.storage.checkpoint import load_checkpoint
from streamkm.runs.storage.run_folder import RunFolder
from streamkm.sinks import open_sink
from streamkm.sources import open_source
from streamkm.sources.flat import FlatSource
from tests.runs.faults import FaultyDisk
from tests.runs.helpers import Job, clusters, every, label, metrics_of, short_batches, steps_saved
from tests.runs.processes import ROOT, finish, start_anew


class At(StopRequest):
    """Does something at the n-th time that it is looked at, which is after every batch."""

    def __init__(self, actions: dict[int, Callable[[], None]], stop_at: int | None = None) -> None:
        self.actions, self.stop_at, self.looks = actions, stop_at, 0
        super().__init__()

    @property
    def signal_name(self) -> str | None:  # type: ignore[override]
        self.looks += 1
        self.actions.get(self.looks, lambda: None)()
        return "SIGTERM" if self.looks == self.stop_at else None

    @signal_name.setter
    def signal_name(self, value: str | None) -> None:
        pass


EVERY_BATCH = every(1)


def attempt(job: Job, at: At, cadence: Cadence = EVERY_BATCH) -> None:
    with closing(open_source(job.source)) as source:
        fit(
            source, FitConfig(**job.settings), ExecutionConfig(
                device="cpu", checkpoint_every=cadence, read_threads=0,
            ),
            job.run, resume=True, stop_request=at,
        )  # fmt: skip


@pytest.fixture
def job(tmp_path) -> Job:
    np.save(tmp_path / "x.npy", clusters(205, 3))
    settings = {"k": 3, "batch_rows": 20, "init": "random"}
    return Job(tmp_path / "x.npy", tmp_path / "run", settings)


@pytest.fixture
def disk(tmp_path) -> Iterator[Path]:
    """A file system of 400 KiB of its own."""
    path = tmp_path / "disk"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(path)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    yield path
    subprocess.run(["umount", "-l", str(path)], check=True)


def fill(disk: Path, leave: int = 0) -> None:
    others = disk / "others"
    with others.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))
    os.truncate(others, others.stat().st_size - leave)


def empty(disk: Path) -> None:
    (disk / "others").unlink()


# ---- a disk that is full ----------------------------------------------------


# Breaks where a checkpoint that cannot be saved ends the run, or is not tried again.
def test_a_disk_that_is_full_for_a_while_costs_some_checkpoints(job, disk, caplog):
    job.attempt()
    full = replace(job, run=disk / "run")
    with caplog.at_level(logging.WARNING, "streamkm"):
        attempt(full, At({6: lambda: fill(disk), 9: lambda: empty(disk)}))
    assert full.results == job.results
    failed = [line for line in caplog.messages if "cannot be saved" in line]
    (line,) = failed  # Once, not at every checkpoint.
    assert "No space left on device" in line
    assert str(full.run / "checkpoints") in line
    (again,) = [line for line in caplog.messages if line not in failed]
    assert "saved again" in again
    assert "3 checkpoints failed" in again
    saved = steps_saved(full.run)
    assert saved == [saved[-1] - 1, saved[-1]]
    newest = load_checkpoint(full.run / "checkpoints")
    assert newest is not None
    assert newest.step == saved[-1]


# Every call that a run makes before its first row. Breaks where an empty folder, or one with an
# empty lock, is left, and the next attempt is told that it exists.
def test_a_disk_that_is_full_from_the_start_leaves_nothing(job, capsys):
    job.attempt()
    arguments = ["fit", str(job.source), "--k", "3", "--out", str(job.run.parent / "a/b/run")]
    at, refused = 0, set[str]()
    while True:
        disk = FaultyDisk(at, "ENOSPC", for_good=True)
        with disk.mounted():
            status = main([*arguments, "--device", "cpu"])
        *_, error = capsys.readouterr().err.splitlines()
        assert status == 1
        if "the run folder cannot be written" not in error:
            break
        assert "No space left on device" in error
        assert error.endswith("then repeat; or choose another --out")
        assert not (job.run.parent / "a").exists(), at
        refused.add(disk.calls[at])
        at += 1
    assert {"mkdir", "open", "ftruncate", "writev", "fsync", "replace"} <= refused
    assert (job.run.parent / "a/b/run/config.json").exists()


# Breaks where what was saved goes with what cannot be, or the next attempt starts anew.
def test_a_disk_that_stays_full_ends_the_run_with_all_that_was_saved(job, disk, capsys):
    job.attempt()
    full = replace(job, run=disk / "run")
    with pytest.raises(StorageError, match=r"result cannot be written \(.*No space.*resume=True"):
        attempt(full, At({6: lambda: fill(disk)}))
    saved = steps_saved(full.run)
    assert len(saved) == 2
    # By the command line: one line, and 1. Now it cannot even take the lock.
    options = ["--k", 3, "--batch-rows", 20, "--init", "random", "--out", full.run, "--resume"]
    capsys.readouterr()
    assert main(["fit", *map(str, [job.source, *options])]) == 1
    error = capsys.readouterr().err.splitlines()
    assert "No space left on device" in error[-1]
    assert steps_saved(full.run) == saved
    empty(disk)
    assert main(["fit", *map(str, [job.source, *options])]) == 0
    assert f"resumed: from step-{saved[-1]:08d}" in capsys.readouterr().err
    assert full.results == job.results


# Breaks where 75 claims a checkpoint that is not there.
def test_a_signal_whose_checkpoint_cannot_be_saved_says_so(job, disk):
    full = replace(job, run=disk / "run")
    with pytest.raises(StorageError, match=r"SIGTERM.*cannot be saved.*No space.*resume=True") as e:
        attempt(full, At({6: lambda: fill(disk)}, stop_at=8))
    assert e.value.exit_status == 1
    empty(disk)
    saved = steps_saved(full.run)
    attempt(full, At({}))
    job.attempt()
    assert full.results == job.results
    assert len(saved) == 2


@pytest.mark.parametrize("suffix", [".npy", ".zarr"])
def test_predict_on_a_full_disk_is_resumed_when_there_is_space(
    suffix, job, disk, monkeypatch, capsys
):
    np.save(job.source, clusters(20_000, 3))
    job.settings["batch_rows"] = 1000
    job.attempt()
    label(job.run, job.source, job.run / "truth.npy")
    monkeypatch.setattr(predict_module, "open_sink", open_small_chunks)
    short_batches(monkeypatch, 1000)
    target = disk / f"labels{suffix}"

    def predict_again(at: At) -> None:
        with closing(open_source(job.source)) as source:
            predict(
                job.run, source, ExecutionConfig(device="cpu", checkpoint_every=every(1)),
                labels=target, resume=True, stop_request=at,
            )  # fmt: skip

    if suffix == ".npy":
        # Its space is taken at once: better now than after hours.
        fill(disk, leave=40_960)
        arguments = ["predict", job.run, job.source, "--labels", target]
        assert main([str(argument) for argument in arguments]) == 1
        assert "80128 bytes are needed; free space" in capsys.readouterr().err
        assert [path.name for path in disk.iterdir()] == ["others"]
        saved = ""
    else:
        with pytest.raises(StorageError, match=r"saved before are intact.*resume=True") as caught:
            predict_again(At({6: lambda: fill(disk)}))
        assert caught.value.exit_status == 1
        assert not target.exists()
        saved = "resumed: from row"
    empty(disk)
    capsys.readouterr()
    predict_again(At({}))
    assert saved in capsys.readouterr().err
    stored = np.load(target) if suffix == ".npy" else np.asarray(zarr.open_array(target)[:])
    assert stored.tolist() == np.load(job.run / "truth.npy").tolist()
    assert [path.name for path in disk.iterdir()] == [target.name]


def open_small_chunks(path, **options):
    return open_sink(path, **options, chunk_rows=1500)


# Progress that nobody can read, as in a log on the disk that is full.
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no such device")
def test_a_log_that_cannot_be_written_is_no_reason_to_stop(job, monkeypatch):
    job.attempt()
    other = replace(job, run=job.run.with_name("other"))
    monkeypatch.setattr(progress, "REPORT_EVERY_S", 0.0)
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.0)
    full = Path("/dev/full").open("w", buffering=1)  # noqa: SIM115  # closing it is an error
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", full)
        attempt(other, At({}))
    with suppress(OSError):
        full.close()
    assert other.results == job.results


# A limit that every process can have: a file may not grow beyond it.
@pytest.mark.skipif(sys.platform != "linux", reason="limits as Linux has them")
def test_a_limit_on_the_size_of_files_ends_with_1_and_is_resumed(job):
    job.settings["k"] = 20
    options = ["--k", 20, "--batch-rows", 20, "--init", "random", "--checkpoint-every", 4]

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1500, 1500))

    process = start_anew(
        "fit", job.source, *options, "--device", "cpu", "--out", job.run, preexec_fn=limit
    )
    status, stderr = finish(process)
    assert status == 1, stderr
    lines = stderr.splitlines()
    assert sum("cannot be saved" in line and "File too large" in line for line in lines) == 1
    assert re.search(r"the last \d+ checkpoints could not be saved \(File too large\)", stderr)
    assert "the result cannot be written" in lines[-1]
    assert "repeat with --resume" in lines[-1]
    assert "Traceback" not in stderr
    assert steps_saved(job.run) == []
    assert not [*(job.run / "checkpoints").iterdir()]  # Nor half of one, which takes space.
    whole = replace(job, run=job.run.with_name("whole"))
    whole.attempt()
    job.attempt()
    assert job.results == whole.results


# ---- a disk that may not be written -----------------------------------------


# As a kernel makes it that has found the file system damaged.
def test_a_disk_that_becomes_read_only(job):
    whole = replace(job, run=job.run.with_name("whole"))
    whole.attempt()
    disk = FaultyDisk(10**9, "EROFS", for_good=True)

    def refuse() -> None:
        disk.at = len(disk.calls)

    with disk.mounted(), pytest.raises(StorageError, match=r"Read-only file system.*resume=True"):
        attempt(job, At({6: refuse}))
    attempt(job, At({}))
    assert job.results == whole.results


# From the start it is an argument to change.
def test_a_disk_that_is_read_only(job, disk, capsys):
    job.attempt()
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    options = ["--k", "3", "--out", str(disk / "run"), "--batch-rows", "20"]
    assert main(["fit", str(job.source), *options, "--init", "random"]) == 2
    assert "the run folder cannot be written" in capsys.readouterr().err
    labels = ["--labels", str(disk / "l.npy")]
    assert main(["predict", str(job.run), str(job.source), *labels]) == 2
    assert "Read-only file system" in capsys.readouterr().err


# ---- descriptors, memory, time ----------------------------------------------

FEW_DESCRIPTORS = """
import resource, sys
from streamkm.cli import main
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
folder = sys.argv[1]
for name in ("chunks.zarr", "shards.zarr", "files"):
    options = ["--device", "cpu", "--read-threads", "16"]
    out = f"{folder}/run-{name}"
    status = main(["fit", f"{folder}/{name}", "--k", "3", "--init", "random", "--out", out,
                   *options, "--checkpoint-every", "2"])
    assert status == 0, (name, status)
    status = main(["predict", out, f"{folder}/{name}", "--labels", f"{out}.zarr", *options])
    assert status == 0, (name, status)
"""


# Breaks where a file stays open for every chunk, shard or part.
@pytest.mark.skipif(sys.platform != "linux", reason="limits as Linux has them")
def test_64_descriptors_are_enough_for_any_number_of_files(tmp_path):
    rows = clusters(3000, 4)
    zarr.create_array(tmp_path / "chunks.zarr", data=rows, chunks=(10, 4))
    zarr.create_array(tmp_path / "shards.zarr", data=rows, chunks=(5, 4), shards=(20, 4))
    (tmp_path / "files").mkdir()
    for number, part in enumerate(np.split(rows, 150)):
        np.save(tmp_path / "files" / f"{number:03}.npy", part)
    done = subprocess.run(
        [sys.executable, "-c", FEW_DESCRIPTORS, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_a_budget_that_holds_no_batch_is_told_at_once(job, capsys):
    options = ["--k", "3", "--max-host-memory", "64KiB", "--out", str(job.run)]
    assert main(["fit", str(job.source), *options]) == 2
    error = capsys.readouterr().err
    assert "max-host-memory" in error
    assert error.count("\n") == 1
    assert not job.run.exists()


#: Far beyond what any machine can address, so that it fails everywhere.
MUCH = 1 << 56


def too_many_threads():
    raise RuntimeError("can't start new thread")


def no_device_memory():
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has ...")


def lost_device():
    raise RuntimeError("CUDA error: unspecified launch failure\nCUDA kernel errors might be ...")


def bad_alloc():
    raise RuntimeError("std::bad_alloc")


def no_mapping():
    raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))


REFUSALS = [
    (lambda: np.empty(MUCH, np.uint8), "(unable to allocate 64.0 PiB)", "--max-host-memory"),
    (lambda: torch.empty(MUCH, dtype=torch.uint8), "tried to allocate", "--max-host-memory"),
    (lambda: bytearray(MUCH), "(an allocation was refused)", "--max-host-memory"),
    (bad_alloc, "(an allocation was refused)", "--max-host-memory"),
    (no_mapping, "(an allocation was refused)", "--max-host-memory"),
    (too_many_threads, "(no thread could be started)", "--max-host-memory"),
    (no_device_memory, "(tried to allocate 20.00 GiB)", "--max-device-memory, or use --device cpu"),
    (
        lost_device,
        "the GPU failed while fitting, after step 6 (train, epoch 0, batch 4) (CUDA error: unspeci",
        "fied launch failure); check it (nvidia-smi; dmesg",
    ),
]


# Breaks where any of them ends with a traceback, or takes with it what was saved.
@pytest.mark.parametrize(("refuse", "said", "remedy"), REFUSALS)
def test_memory_that_is_refused_costs_the_work_since_the_last_checkpoint(
    refuse, said, remedy, job, monkeypatch, capsys
):
    job.attempt()
    arguments = ["fit", str(job.source), "--k", "3", "--batch-rows", "20", "--init", "random"]
    again = replace(job, run=job.run.with_name("again"))
    arguments += ["--out", str(again.run), "--resume", "--checkpoint-every", "1"]
    update_, left = MiniBatch.update_, iter(range(4))

    def update_while_there_is_memory_(*given, **named):
        return refuse() if next(left, None) is None else update_(*given, **named)

    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(MiniBatch, "update_", update_while_there_is_memory_)
        assert main([*arguments, "--device", "cpu"]) == 1
    *_, error = capsys.readouterr().err.splitlines()
    assert " while fitting, after step 6 (train, epoch 0, batch 4)" in error
    assert ("out of memory" in error) == (refuse is not lost_device)
    assert said in error
    assert remedy in error
    assert "then repeat with --resume: what was saved is intact" in error
    assert steps_saved(again.run)
    again.attempt()
    assert again.results == job.results


# A reader says what it cannot read. Where memory was refused, the file is not at fault.
@pytest.mark.parametrize("command", ["fit", "predict", "evaluate"])
def test_memory_that_is_refused_while_reading_is_told_as_that(command, job, monkeypatch, capsys):
    job.attempt()
    run, source, out = str(job.run), str(job.source), job.run.with_name("out")
    arguments = {
        "fit": ["fit", source, "--k", "3", "--out", str(out)],
        "predict": ["predict", run, source, "--labels", f"{out}.npy"],
        "evaluate": ["evaluate", run, source],
    }
    with monkeypatch.context() as patch:
        patch.setattr(FlatSource, "read", lambda *_: np.empty(MUCH, np.uint8))
        assert main([*arguments[command], "--device", "cpu"]) == 1
    *_, error = capsys.readouterr().err.splitlines()
    assert "out of memory while" in error
    assert "unable to allocate 64.0 PiB" in error
    assert "set a smaller --max-host-memory, then repeat" in error
    if command != "evaluate":
        assert "--resume" in error
        assert main([*arguments[command], "--resume", "--device", "cpu"]) == 0


def test_in_python_it_is_a_memory_error(monkeypatch):
    monkeypatch.setattr(Lloyd, "update_", lambda *_, **__: np.empty(MUCH, np.uint8))
    with pytest.raises(MemoryError, match=r"smaller max_host_memory, then repeat$") as caught:
        KMeans(n_clusters=2).fit(clusters(205, 3))
    assert isinstance(caught.value, AllocationError)


# Breaks where a cadence or a rate goes by the time of day.
@pytest.mark.parametrize("jump_s", [1e9, -1e9])
def test_a_clock_that_jumps_changes_nothing(jump_s, job, monkeypatch):
    job.attempt()
    other = replace(job, run=job.run.with_name("other"))
    real, now = time.time, [0.0]
    monkeypatch.setattr("time.time", lambda: real() + now[0])
    monkeypatch.setattr(progress, "REPORT_EVERY_S", 0.0)

    def jump() -> None:
        now[0] += jump_s

    attempt(other, At({3: jump, 6: jump}), Cadence(seconds=1e6))
    assert other.results == job.results
    assert len(steps_saved(other.run)) == 1  # After the seeding; not for the jumps.
    rates = [record for record in metrics_of(other.run) if "elapsed_s" in record]
    assert len(rates) > 6
    assert all(record["rows_per_s"] >= 0 and record["elapsed_s"] >= 0 for record in rates)
    assert all(record["elapsed_s"] < 1e6 for record in rates)


# ---- two processes, one folder ----------------------------------------------


# Breaks where the lock is on a file that the other one may still delete, or is let go of before
# the output has its name: both would write, and one of them would publish the other's half.
@pytest.mark.parametrize("suffix", [".npy", ".zarr"])
def test_of_two_that_begin_at_the_same_moment_one_writes(suffix, tmp_path):
    for number in range(60 if suffix == ".npy" else 10):
        target, barrier = tmp_path / f"out{number}{suffix}", threading.Barrier(2)
        outcomes: list[object] = []

        def run(value: int, target=target, barrier=barrier, outcomes=outcomes) -> None:
            barrier.wait()
            try:
                with open_sink(target, n_rows=50, dtype="int32", chunk_rows=10) as sink:
                    for start_row in range(0, 50, 10):
                        sink.write(start_row, np.full(10, value, np.int32))
                        sink.flush()
                    sink.commit()
                outcomes.append(value)
            except StreamkmError as error:
                outcomes.append(error)

        threads = [threading.Thread(target=run, args=(value,)) for value in (1, 2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        done = [outcome for outcome in outcomes if isinstance(outcome, int)]
        assert len(done) == 1, outcomes
        assert len(outcomes) == 2
        (refused,) = (outcome for outcome in outcomes if outcome not in done)
        assert isinstance(refused, RunError | OutputExistsError)  # While it wrote, or after.
        stored = np.load(target) if suffix == ".npy" else np.asarray(zarr.open_array(target)[:])
        assert set(stored.tolist()) == set(done)
    assert {path.suffix for path in tmp_path.iterdir()} == {suffix}


# A new folder is removed by the run that made it if nothing came of it, while others wait.
def test_a_folder_that_comes_and_goes_has_one_owner_at_a_time(tmp_path):
    record = {"source": "x", "fit": {"k": 3}, "data": {"shape": [9, 2], "dtype": "float32"}}
    owners, n_entered = set(), [0]
    faults: list[object] = []

    def run(name: int) -> None:
        while n_entered[0] < 60:
            try:
                with RunFolder(tmp_path / "run", record, resume=True) as folder:
                    owners.add(name)
                    n_entered[0] += 1
                    if len(owners) != 1 or not (folder.path / "config.json").exists():
                        faults.append(set(owners))
                    owners.discard(name)
                    raise ConfigError("nothing came of it")
            except (ConfigError, RunError):
                pass
            except BaseException as error:  # noqa: BLE001  # Whatever else it is.
                faults.append(error)
                return

    threads = [threading.Thread(target=run, args=(name,)) for name in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults


# Breaks where a folder counts as new that was not there a moment before the lock was taken.
def test_a_run_that_began_and_ended_in_between_is_left_alone(tmp_path, monkeypatch):
    record = {"source": "x", "fit": {"k": 3}, "data": {"shape": [9, 2], "dtype": "float32"}}
    run, real = tmp_path / "run", FileLock.take

    def take(lock: FileLock) -> None:
        monkeypatch.undo()
        with RunFolder(run, record, resume=False) as first:
            (first.checkpoints / "step-00000001").mkdir()
        real(lock)

    monkeypatch.setattr(FileLock, "take", take)
    with (
        pytest.raises(OutputExistsError, match="resume=True"),
        RunFolder(run, record, resume=False),
    ):
        pass
    assert (run / "checkpoints/step-00000001").exists()
    assert (run / "config.json").exists()


KILLED = """
import os, signal, sys
import numpy as np
from streamkm.sinks import open_sink
sink = open_sink(sys.argv[1], n_rows=100, dtype="int32")
sink.write(0, np.arange(40, dtype=np.int32))
sink.write_cursor({})
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_lock_of_a_process_that_was_killed_is_free(tmp_path):
    target = tmp_path / "out.npy"
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(target)],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == -9
    lock = target.with_name("out.npy.partial.lock")
    assert lock.read_text().startswith("process ")
    with open_sink(target, n_rows=100, dtype="int32", resume=True) as sink:
        assert sink.next_row == 40
        assert lock.read_text().startswith(f"process {os.getpid()} on ")
        with pytest.raises(RunError, match=f"process {os.getpid()} on .* is writing this output"):
            open_sink(target, n_rows=100, dtype="int32", resume=True)
        sink.write(40, np.arange(40, 100, dtype=np.int32))
        sink.commit()
    assert np.load(target).tolist() == list(range(100))
    assert [path.name for path in tmp_path.iterdir()] == ["out.npy"]


# Going on without a lock would let two write; so it does not.
@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks_is_refused_with_a_remedy(number, job, monkeypatch, capsys):
    job.attempt()

    def flock(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    new = job.run.with_name("new")
    for arguments in (
        ["fit", job.source, "--k", 3, "--out", new],
        ["predict", job.run, job.source, "--labels", new.with_suffix(".npy")],
    ):
        capsys.readouterr()
        assert main([str(argument) for argument in arguments]) == 2
        assert "has no locks" in capsys.readouterr().err
    assert not [path for path in new.parent.iterdir() if path.name.startswith("new.npy")]
