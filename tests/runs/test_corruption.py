"""Bytes that a disk altered or lost: named, never believed, and nothing is overwritten.

Flips and truncations over each file that a run goes on from: lengths, headers, names, numbers,
checksums. What would break these is in each test's first line.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import zarr

from streamkm.cli import main
from streamkm.config import ExecutionConfig
from streamkm.errors import Interrupted, ResumeError, RunError
from streamkm.files import FileLock
from streamkm.runs import predict as predict_module
from streamkm.runs.predict import predict
from streamkm.runs.storage import model_file
from streamkm.runs.storage.checkpoint import load_checkpoint
from streamkm.sealed import seal
from streamkm.sinks import open_sink
from streamkm.sources import open_source
from tests.runs.helpers import Job, StopAfter, clusters, every, label, short_batches


@pytest.fixture
def job(quick_path: Path) -> Job:
    np.save(quick_path / "x.npy", clusters(205, 3))
    settings = {"k": 3, "batch_rows": 40, "init": "random"}
    return Job(quick_path / "x.npy", quick_path / "run", settings)


def damages(content: bytes, n_flips: int, n_cuts: int) -> Iterator[tuple[str, bytes]]:
    """`content` with one bit flipped, at places all over it and at its ends; and cut short."""
    places = {int(at) for at in np.linspace(0, len(content) - 1, n_flips)}
    for number, at in enumerate(sorted(places | {*range(min(9, len(content)))})):
        bit = (0x01, 0x10, 0x80)[number % 3]
        yield f"bit {bit:#x} of {at}", content[:at] + bytes([content[at] ^ bit]) + content[at + 1 :]
    for length in sorted({int(at) for at in np.linspace(0, len(content) - 1, n_cuts)}):
        yield f"cut to {length}", content[:length]


def everything(folder: Path) -> dict[str, bytes]:
    """Every file but the lock, which says who was there last."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "lock"
    }


# ---- checkpoints ------------------------------------------------------------


@pytest.fixture
def stopped(job: Job) -> Job:
    """A run with two checkpoints."""
    assert job.interrupted(8, checkpoint_every=every(2))
    assert len(list((job.run / "checkpoints").iterdir())) == 2
    return job


# Breaks where any byte of the newest checkpoint is not under a checksum, or is parsed before.
@pytest.mark.parametrize("file", ["manifest.json", "state.safetensors"])
def test_the_checkpoint_before_a_damaged_one_is_taken(file, stopped, caplog):
    before, newest = sorted((stopped.run / "checkpoints").iterdir())
    content = (newest / file).read_bytes()
    for what, damaged in damages(content, 100, 25):
        (newest / file).write_bytes(damaged)
        caplog.clear()
        with caplog.at_level(logging.WARNING, "streamkm"):
            found = load_checkpoint(stopped.run / "checkpoints")
        assert found is not None, what
        assert found.path == before, what
        assert f"{newest} is damaged" in caplog.text, what


@pytest.mark.parametrize("file", ["manifest.json", "state.safetensors"])
def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one(file, stopped, quick_path):
    whole = Job(stopped.source, quick_path / "whole", stopped.settings)
    whole.attempt()
    _, newest = sorted((stopped.run / "checkpoints").iterdir())
    for _, damaged in list(damages((newest / file).read_bytes(), 3, 2))[::3]:
        again = Job(stopped.source, quick_path / "again", stopped.settings)
        shutil.copytree(stopped.run, again.run)
        (again.run / "checkpoints" / newest.name / file).write_bytes(damaged)
        again.attempt()
        assert again.results == whole.results
        shutil.rmtree(again.run)


# mosaicml streaming#437: a silent restart from 0.
def test_with_every_checkpoint_damaged_nothing_begins_anew(stopped, capsys):
    for path in (stopped.run / "checkpoints").glob("*/state.safetensors"):
        path.write_bytes(path.read_bytes()[:-1])
    before = everything(stopped.run)
    with pytest.raises(RunError, match="none of its 2 checkpoints is intact"):
        stopped.attempt()
    assert everything(stopped.run) == before
    assert main(["info", str(stopped.run)]) == 2
    assert "none of its 2 checkpoints is intact" in capsys.readouterr().err


# Breaks where a flipped digit of a setting or of the data is taken for what was asked.
@pytest.mark.parametrize("command", ["fit", "predict", "info"])
def test_a_damaged_config_is_an_error_everywhere(command, stopped, quick_path, capsys):
    run, source = str(stopped.run), str(stopped.source)
    arguments = {
        "fit": ["fit", source, "--k", "3", "--batch-rows", "40", "--init", "random", "--out", run,
                "--resume"],
        "predict": ["predict", run, source, "--labels", str(quick_path / "l.npy")],
        "info": ["info", run],
    }  # fmt: skip
    config = stopped.run / "config.json"
    n_flips, n_cuts = (150, 40) if command == "info" else (12, 4)
    for what, damaged in damages(config.read_bytes(), n_flips, n_cuts):
        config.write_bytes(damaged)
        before = everything(stopped.run)
        assert main(arguments[command]) == 2, what
        assert "config.json is damaged" in capsys.readouterr().err, what
        assert everything(stopped.run) == before, what


# ---- the result -------------------------------------------------------------


@pytest.fixture
def finished(job: Job) -> Job:
    job.attempt()
    return job


# Breaks where labels are made by a model that is not the one that was saved.
@pytest.mark.parametrize("command", ["predict", "evaluate", "info"])
def test_a_damaged_model_is_an_error_everywhere(command, finished, quick_path, capsys):
    run, source, labels = str(finished.run), str(finished.source), quick_path / "l.npy"
    arguments = {
        "predict": ["predict", run, source, "--labels", str(labels)],
        "evaluate": ["evaluate", run, source],
        "info": ["info", run],
    }
    model = finished.run / "model.safetensors"
    # `info` and the others read it by the same function.
    n_flips, n_cuts = (200, 50) if command == "info" else (10, 5)
    for what, damaged in damages(model.read_bytes(), n_flips, n_cuts):
        model.write_bytes(damaged)
        assert main(arguments[command]) == 2, what
        error = capsys.readouterr().err
        assert "is damaged" in error, what
        assert error.count("\n") == 1, what
        assert not labels.exists(), what


# Labels come from the model; that the copy for people is another is said where one looks.
def test_damaged_centroids_are_told_and_label_nothing(finished, quick_path, capsys):
    label(finished.run, finished.source, quick_path / "before.npy")
    centroids = finished.run / "centroids.npy"
    content = centroids.read_bytes()
    assert main(["info", str(finished.run)]) == 0
    capsys.readouterr()
    for what, damaged in [*damages(content, 20, 6), ("gone", None)]:
        centroids.unlink()
        if damaged is not None:
            centroids.write_bytes(damaged)
        assert main(["info", str(finished.run)]) == 2, what
        assert "centroids.npy is damaged" in capsys.readouterr().err
        if damaged is None:
            break
    label(finished.run, finished.source, quick_path / "after.npy")
    assert (quick_path / "after.npy").read_bytes() == (quick_path / "before.npy").read_bytes()
    # What the message tells to do.
    model = (finished.run / "model.safetensors").read_bytes()
    finished.attempt()
    assert "written again from" in capsys.readouterr().err
    assert centroids.read_bytes() == content
    assert (finished.run / "model.safetensors").read_bytes() == model
    finished.attempt()
    assert "written again" not in capsys.readouterr().err


# Breaks where a run whose model no one can load is called finished.
def test_a_damaged_model_is_made_again_from_the_newest_checkpoint(finished, caplog, capsys):
    before, model = finished.results, finished.run / "model.safetensors"
    for what, damaged in damages(before["model.safetensors"], 2, 2):
        model.write_bytes(damaged)
        caplog.clear()
        capsys.readouterr()
        finished.attempt()
        assert "model.safetensors is damaged" in caplog.text, what
        assert "resumed: from step-" in capsys.readouterr().err, what
        assert finished.results == before, what


@pytest.mark.parametrize("left", ["damaged", "none"])
def test_a_damaged_model_without_a_whole_checkpoint_is_an_error(left, finished):
    model = finished.run / "model.safetensors"
    model.write_bytes(model.read_bytes()[:-1])
    for path in (finished.run / "checkpoints").iterdir():
        if left == "none":
            shutil.rmtree(path)
        else:
            (path / "state.safetensors").write_bytes(b"")
    before = everything(finished.run)
    with pytest.raises(RunError, match=r"no checkpoint is there|checkpoints is intact") as caught:
        finished.attempt()
    assert "run_dir" in str(caught.value)
    after = everything(finished.run)
    # (That an attempt was made is a line of it.)
    del before["metrics.jsonl"], after["metrics.jsonl"]
    assert after == before


# What is written by another version is whole: it must not be made again by this one.
def test_a_model_of_another_format_stays(finished, monkeypatch):
    monkeypatch.setattr(model_file, "FORMAT", "3")
    before = everything(finished.run)
    with pytest.raises(RunError, match="its format is 2"):
        finished.attempt()
    assert everything(finished.run) == before


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"{]", "it is not JSON (line 1 column 2)"),
        (b'{"\xff', "it is not text (byte 2)"),
        (b"[]", "it is JSON, but not an object"),
        (seal({"fit": {}, "data": {}}), "it lacks `source`"),
    ],
)
def test_damage_is_said_in_plain_words_with_a_remedy(content, said, finished, capsys):
    (finished.run / "config.json").write_bytes(content)
    assert main(["info", str(finished.run)]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "restore it from a copy, or start anew with another --out" in error
    assert "Error(" not in error


@pytest.mark.parametrize("left", ["model.safetensors", "checkpoints"])
def test_a_run_that_lost_its_config_is_told_from_a_source(left, finished, capsys):
    (finished.run / "config.json").unlink()
    if left == "checkpoints":
        (finished.run / "model.safetensors").unlink()
    assert main(["info", str(finished.run)]) == 2
    assert "looks like a run folder that has lost its config.json" in capsys.readouterr().err


# The checkpoint before the only one is no remedy.
def test_the_checkpoint_before_is_named_only_where_there_is_one(stopped, caplog):
    for path in (stopped.run / "checkpoints").iterdir():
        (path / "manifest.json").write_bytes(b"")
    with pytest.raises(RunError):
        load_checkpoint(stopped.run / "checkpoints")
    assert [line.count("before it") for line in caplog.messages] == [1, 0]


def test_who_works_on_a_live_run_is_named_and_of_a_dead_one_the_remedy(stopped, capsys):
    arguments = ["evaluate", str(stopped.run), str(stopped.source)]
    lock = FileLock(stopped.run / "lock", stopped.run, "working on this run")
    lock.take()
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert f"process {os.getpid()} on" in said
    assert "wait for it" in said
    assert "--resume" not in said
    lock.release()
    assert main(arguments) == 2
    assert "no process works on it; repeat its fit with --resume" in capsys.readouterr().err


def test_a_folder_within_a_file_is_refused_with_a_remedy(job, capsys):
    arguments = ["fit", str(job.source), "--k", "3", "--out", str(job.source / "r")]
    assert main(arguments) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "x.npy/r: the run folder cannot be written" in error
    assert "Not a directory" in error
    assert error.endswith("choose another --out")


# ---- unfinished outputs -----------------------------------------------------


@pytest.fixture(params=[".npy", ".zarr"])
def output(request, finished, monkeypatch) -> Path:
    """Labels that were interrupted after 150 of 205 rows, of which .zarr holds whole chunks."""
    short_batches(monkeypatch, 25)
    monkeypatch.setattr(predict_module, "open_sink", partial(open_sink, chunk_rows=40))
    target: Path = finished.source.with_name("half") / f"out{request.param}"
    target.parent.mkdir()
    with pytest.raises(Interrupted):
        attempt(finished, target, stop_at=6)
    return target


def attempt(job: Job, target: Path, stop_at: int | None = None) -> None:
    with closing(open_source(job.source)) as source:
        predict(
            job.run, source, ExecutionConfig(device="cpu", read_threads=0), labels=target,
            resume=True, stop_request=StopAfter(stop_at),
        )  # fmt: skip


def values(target: Path) -> np.ndarray:
    return np.load(target) if target.suffix == ".npy" else np.asarray(zarr.open_array(target)[:])


# Breaks where rows that a cursor claims are believed though they are not what was written:
# zeros are a label.
def test_a_damaged_output_is_never_completed(output, finished, quick_path):
    label(finished.run, finished.source, quick_path / "truth.npy")
    truth = np.load(quick_path / "truth.npy")
    assert len(set(truth.tolist())) == 3
    template = everything(output.parent)
    n_refused, n_right = 0, 0
    for name, content in template.items():
        assert not name.endswith(".lock")
        places = (60, 12) if output.suffix == ".npy" or ".json" in name else (4, 3)
        for what, damaged in damages(content, *places):
            lay(output.parent, {**template, name: damaged})
            refused = ""
            try:
                attempt(finished, output)
            except ResumeError as error:
                refused = str(error)
            if refused:
                n_refused += 1
                assert "start again without" in refused, (name, what)
                assert everything(output.parent) == {**template, name: damaged}, (name, what)
            else:
                n_right += 1  # What no cursor claims is written again.
                assert values(output).tolist() == truth.tolist(), (name, what)
    assert n_refused > 50
    assert n_right > 0


def lay(folder: Path, contents: dict[str, bytes]) -> None:
    shutil.rmtree(folder)
    for name, content in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


# Its owner's name is for people; whatever stands there, the lock is the kernel's.
def test_a_lock_file_of_any_content_is_free(finished):
    (finished.run / "lock").write_bytes(b"\xff\x00" * 5000)
    finished.attempt()
    assert (finished.run / "lock").read_text().startswith("process ")


# A cursor with another number in it than was sealed.
def test_a_cursor_that_claims_too_much(output, finished):
    cursor = output.with_name(f"{output.name}.partial.json")
    state = json.loads(cursor.read_bytes())
    cursor.write_text(json.dumps({**state, "durable_rows": 205}))
    with pytest.raises(ResumeError, match="its checksum does not match"):
        attempt(finished, output)


# Breaks where rows are said to be gone that another process is about to complete.
def test_rows_are_discarded_only_by_who_may_write(output, finished, capsys):
    arguments = ["predict", str(finished.run), str(finished.source), "--labels", str(output)]
    lock = FileLock(output.with_name(f"{output.name}.partial.lock"), output, "writing this output")
    lock.take()
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert "is writing this output" in said
    assert "discarded" not in said
    lock.release()
    assert main(arguments) == 0
    assert "rows that were in it are discarded" in capsys.readouterr().err
