"""Every call on a run's own files, failed in turn: nothing saved is lost, nothing is wrong.

After each fault the newest checkpoint that was promised is there, no descriptor leaks, the
error is one that the command line says in one line, and the run that is resumed, as the output
that is, ends with the same bits.
"""

from __future__ import annotations

import ast
import errno
import os
import shutil
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import zarr

from streamkm import files
from streamkm.errors import ReadError, StorageError, StreamkmError
from streamkm.files import LineFile, OutputFile, write_durably
from streamkm.runs import predict as predict_module
from streamkm.runs.planning import residency
from streamkm.runs.storage import checkpoint
from streamkm.runs.storage.checkpoint import load_checkpoint
from streamkm.sinks import open_sink
from streamkm.sinks.registry import unfinished_rows
from tests.runs.faults import KINDS, Disk, FaultyDisk, applies
from tests.runs.helpers import Job, clusters, content, every, label, short_batches, steps_saved
from tests.sinks.cells import write_cells

pytestmark = pytest.mark.usefixtures("no_reports")

ROOT = Path(files.__file__).parent


@pytest.fixture
def job(request, quick_path) -> Job:
    np.save(quick_path / "x.npy", clusters(120, 3))
    settings = {"k": 3, "batch_rows": 40, "init": "random", "algorithm": request.param}
    return Job(quick_path / "x.npy", quick_path / "deep/run", {**settings, "epochs": 2})


# ---- the layer --------------------------------------------------------------


# A call beside the module would neither be failed nor replayed by the sweeps below.
@pytest.mark.parametrize(
    "name",
    [
        "runs/storage/checkpoint.py", "runs/storage/run_folder.py", "runs/storage/model.py",
        "runs/storage/model_file.py", "runs/storage/output_records.py",
        "runs/reporting/progress.py", "runs/info.py", "runs/predict.py", "runs/fit.py",
        "runs/storage/record_folder.py", "runs/partitioning/work.py", "runs/partitioning/flat.py",
        "runs/partitioning/gathered.py", "runs/partitioning/ordering.py",
        "runs/partitioning/parquet_rows.py", "runs/partitioning/zarr_rows.py",
        "sinks/base.py", "sinks/h5ad.py", "sinks/npy.py", "sinks/registry.py", "sinks/zarr.py",
    ],
)  # fmt: skip
def test_own_files_are_touched_by_one_module_only(name):
    tree = ast.parse((ROOT / name).read_text())
    banned = {
        "open", "unlink", "rename", "replace", "mkdir", "rmdir", "touch", "rmtree", "fsync",
        "read_bytes", "write_bytes", "read_text", "write_text", "iterdir", "glob", "symlink_to",
        "save_file", "load_file", "tofile",
    }  # fmt: skip
    of_files = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == "streamkm.files"
        for alias in node.names
    }
    called = {
        node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        # `replace` of strings and dataclasses has two arguments or names; a path's has one.
        and not (getattr(node.func, "attr", getattr(node.func, "id", "")) == "replace"
                 and (len(node.args) == 2 or node.keywords))
    }  # fmt: skip
    imported = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    assert not (called - of_files) & banned
    assert not imported & {"fcntl", "shutil", "tempfile"}


def test_a_short_write_is_gone_on_with(tmp_path):
    for write in (
        lambda path: write_durably(path, b"abcdefg", b"hij"),
        lambda path: LineFile(path).append("abcdefghij"),
        lambda path: OutputFile(path, create=True).write(0, b"abcdefghij"),
    ):
        path = tmp_path / "file"
        with FaultyDisk(0, "short", for_good=True).mounted():
            write(path)
        assert path.read_bytes().strip() == b"abcdefghij"
        path.unlink()


# Breaks when a record after a torn one is torn too.
def test_a_torn_line_stays_one_line(tmp_path):
    (tmp_path / "lines").write_bytes(b'{"a": 1}\n{"b"')
    LineFile(tmp_path / "lines").append('{"c": 3}')
    LineFile(tmp_path / "lines").append('{"d": 4}')
    assert (tmp_path / "lines").read_text() == '{"a": 1}\n{"b"\n{"c": 3}\n{"d": 4}\n'


# ---- the sweeps -------------------------------------------------------------


def attempt_on(disk: Disk, job: Job, monkeypatch) -> tuple[int | None, BaseException | None]:
    """An attempt at a fit on `disk`; the last step that it said was saved, and its error."""
    real, saved = checkpoint.save_checkpoint, None

    def save(directory, step, *arguments, **options):
        nonlocal saved
        path = real(directory, step, *arguments, **options)
        saved = step
        return path

    with monkeypatch.context() as patch, disk.mounted():
        patch.setattr(checkpoint, "save_checkpoint", save)
        try:
            job.attempt(checkpoint_every=every(3), read_threads=0)
        except (StreamkmError, OSError) as error:
            return saved, error
    return saved, None


# Every call fails with EIO, and with every other that it can in turn.
@pytest.mark.parametrize("job", ["minibatch", "lloyd"], indirect=True)
def test_a_fit_survives_any_fault_of_its_files(job, quick_path, monkeypatch, caplog):
    calls, numbers = Disk(), count()
    attempt_on(calls, job, monkeypatch)
    expected = job.results
    step = 1 if job.settings["algorithm"] == "minibatch" else 3  # The same calls again.
    for at, name in list(enumerate(calls.calls))[::step]:
        for number, kind in enumerate(KINDS):
            if not applies(kind, name) or (number and number % 3 != at % 3):
                continue
            disk, what = FaultyDisk(at, kind), f"{kind} at call {at}, {name}"
            faulty = replace(job, run=quick_path / f"deep{next(numbers)}/run")
            saved, error = attempt_on(disk, faulty, monkeypatch)
            assert disk.failed, what
            assert not disk.descriptors, what
            check(faulty, saved, error, expected, what)
            shutil.rmtree(faulty.run.parent)
    assert next(numbers) > 50


def check(job, saved, error, expected, what) -> None:
    """Whatever was promised of `job`, after a fault, is there, and going on ends right."""
    found = load_checkpoint(job.run / "checkpoints")
    if saved is not None:
        assert found is not None, what
        assert found.step >= saved, what
    if error is None:
        assert job.results == expected, what
    elif isinstance(error, OSError):
        assert str(error), what
    job.attempt(read_threads=0)
    assert job.results == expected, what


# A disk that is full, or dead, from some call on and for good. What is saved by then stays;
# a run that cannot write its result says so, with the remedy.
@pytest.mark.parametrize("job", ["minibatch"], indirect=True)
@pytest.mark.parametrize("kind", ["ENOSPC", "EIO"])
def test_a_fit_survives_a_disk_that_refuses_for_good(job, kind, quick_path, monkeypatch):
    calls = Disk()
    attempt_on(calls, job, monkeypatch)
    expected = job.results
    n_last = 0
    for at in range(0, len(calls.calls), 3):
        disk, what = FaultyDisk(at, kind, for_good=True), f"{kind} from call {at} on"
        faulty = replace(job, run=quick_path / f"deep{at}/run")
        saved, error = attempt_on(disk, faulty, monkeypatch)
        assert not disk.descriptors, what
        n_last += isinstance(error, StorageError) and "the result cannot be" in str(error)
        check(faulty, saved, error, expected, what)
        shutil.rmtree(faulty.run.parent)
    assert n_last > 25  # It went on computing up to the result, each time.


@pytest.mark.parametrize("suffix", [".npy", ".zarr", ".h5ad"])
def test_predict_survives_any_fault_of_its_files(suffix, quick_path, monkeypatch):
    cells = write_cells(quick_path / "cells.h5ad", 205)
    job = Job(cells, quick_path / "run", {"k": 3, "init": "random"})
    job.attempt()
    short_batches(monkeypatch, 25)
    monkeypatch.setattr(predict_module, "open_sink", partial(open_sink, chunk_rows=40))
    numbers = count()

    def predict(disk: Disk) -> tuple[Path, BaseException | None]:
        folder = quick_path / f"{next(numbers)}"
        folder.mkdir(exist_ok=True)
        with disk.mounted():
            try:
                again(folder)
            except (StreamkmError, OSError) as error:
                return folder, error
        return folder, None

    def again(folder: Path) -> None:
        label(job.run, job.source, folder / f"out{suffix}", checkpoint_every=every(3))

    calls = Disk()
    folder, _ = predict(calls)
    expected = content(folder / f"out{suffix}")
    for at, name in enumerate(calls.calls):
        for number, kind in enumerate(KINDS):
            is_next = number % 3 == at % 3 or (number == 0 and suffix == ".npy")
            if not applies(kind, name) or not is_next:
                continue
            for for_good in (False, True) if kind in ("EIO", "ENOSPC") else (False,):
                disk = FaultyDisk(at, kind, for_good=for_good)
                what = f"{kind} at call {at}, {name}, for good: {for_good}"
                folder, error = predict(disk)
                output = folder / f"out{suffix}"
                assert disk.failed, what
                assert not disk.descriptors, what
                if output.exists():
                    assert content(output) == expected, what
                else:
                    assert error is not None, what
                with suppress(StreamkmError):  # The output exists.
                    again(folder)
                assert content(output) == expected, what
                shutil.rmtree(folder)
    assert next(numbers) > 50


# ---- a source that cannot be read for a while -------------------------------


@pytest.fixture
def unreadable(monkeypatch):
    """Every read of a source fails from the given number on; None: they work again.

    A look at what is in the page cache, which has flags, is none of them.
    """
    real = os.preadv
    left: list[int | None] = [None]

    def preadv(fd, views, offset, flags=0):
        if left[0] is not None and not flags:
            if left[0] == 0:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            left[0] -= 1
        return real(fd, views, offset, flags)

    monkeypatch.setattr(os, "preadv", preadv)

    def fail_after(n_reads: int | None) -> None:
        left[0] = n_reads

    return fail_after


@pytest.fixture
def chunked(quick_path) -> Job:
    """A job on many chunks, each of which is a read."""
    zarr.create_array(quick_path / "x.zarr", data=clusters(205, 3), chunks=(20, 3))
    settings = {"k": 3, "batch_rows": 25, "init": "random"}
    return Job(quick_path / "x.zarr", quick_path / "run", settings)


# Breaks where a run, or an output, that could go on is deleted as if its data were unusable.
@pytest.mark.usefixtures("small_windows")
def test_a_source_that_cannot_be_read_for_a_while_costs_no_checkpoint(
    chunked, unreadable, monkeypatch
):
    monkeypatch.setattr(residency, "available_memory", lambda: 0)  # Nothing stays in memory.
    whole = replace(chunked, run=chunked.run.with_name("whole"))
    whole.attempt()
    kept = []
    for n_reads in range(1, 30, 4):
        unreadable(n_reads)
        with pytest.raises(ReadError, match="Input/output error"):
            chunked.attempt(resume=False, checkpoint_every=every(2), read_threads=0)
        unreadable(None)
        # A folder without any checkpoint goes: the next try may have the same name.
        assert chunked.run.exists() == bool(steps_saved(chunked.run)), n_reads
        kept.append(chunked.run.exists())
        chunked.attempt()
        assert chunked.results == whole.results
        shutil.rmtree(chunked.run)
    assert set(kept) == {False, True}


@pytest.mark.usefixtures("small_windows")
def test_a_source_that_cannot_be_read_for_a_while_costs_no_labels(
    chunked, unreadable, quick_path, monkeypatch
):
    chunked.attempt()
    label(chunked.run, chunked.source, quick_path / "whole.npy")
    short_batches(monkeypatch, 25)
    out, kept = quick_path / "out.npy", []
    for n_reads in range(0, 10, 3):
        unreadable(n_reads)
        with pytest.raises(ReadError, match="Input/output error"):
            label(chunked.run, chunked.source, out, checkpoint_every=every(1), read_threads=0)
        unreadable(None)
        kept.append(unfinished_rows(out))
        label(chunked.run, chunked.source, out)
        assert out.read_bytes() == (quick_path / "whole.npy").read_bytes()
        out.unlink()
    assert kept[0] == 0
    assert kept[-1] > 0
