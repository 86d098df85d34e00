"""``fit --dry-run``: what it says is what the fit would do, and it leaves nothing behind."""

from __future__ import annotations

import os
import re
import shutil
import signal
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from streamkm.config import ExecutionConfig, FitConfig
from streamkm.errors import StreamkmError
from streamkm.files import FileLock
from streamkm.runs.dry_run.fit import _add_time, _left, dry_run, prepare, written_bytes
from streamkm.runs.dry_run.predict import dry_predict
from streamkm.runs.dry_run.report import DryRun
from streamkm.runs.engine.probe import Alone, Probe
from streamkm.runs.engine.snapshot import Cursor
from streamkm.runs.fit import plan_fit
from streamkm.runs.planning import inspection as looking
from streamkm.runs.planning.residency import ResidencyPlan
from streamkm.runs.storage import checkpoint as checkpoints
from streamkm.runs.storage.tensor_file import tensor_file
from streamkm.sources import open_source
from streamkm.sources.kept import Homes
from streamkm.stream.slots import HostSlots
from tests.runs.helpers import Job, StopAfter, every


def without_times(text: str) -> str:
    return re.sub(r"[0-9.,]+", "#", text)


# ---- the command ------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """Options of a fit, and the passes that a dry run of it names."""

    name: str
    options: tuple[str, ...] = ()
    scales: bool = False
    rounds: bool = False
    closes: bool = True


@pytest.mark.parametrize(
    "case",
    [
        Case("as by default"),
        Case("scaled, k-means||", ("--scale", "zscore", "--init", "k-means||"), scales=True,
             rounds=True),
        Case("lloyd", ("--algorithm", "lloyd", "--init", "k-means++"), closes=False),
    ],
    ids=lambda case: case.name,
)  # fmt: skip
def test_it_says_what_the_fit_will_say_and_writes_nothing(case, x, tmp_path, cli):
    run = tmp_path / "run"
    arguments = ("fit", x, "--k", 4, "--out", run, *case.options)
    status, out, err = cli(*arguments, "--dry-run")
    assert status == 0
    assert err == ""
    assert list(tmp_path.iterdir()) == [x]
    assert "rows         600 x 3 features, float32" in out
    assert "nothing that was looked at speaks against this run" in out
    assert ("1 closing pass" in out) is case.closes
    assert ("1 for scaling" in out) is case.scales
    assert ("6 passes and a sample" in out) is case.rounds
    assert re.search(r"^time +(at most )?about [0-9.]+ s \(", out, re.MULTILINE)
    assert re.search(r"^speed .*reading .* rows/s.*; together ", out, re.MULTILINE)
    # The plans are those of the fit itself, which is as free to run as before.
    status, _, said = cli(*arguments)
    assert status == 0
    (memory,) = re.findall(r"^memory +(.*)$", out, re.MULTILINE)
    assert memory in said
    (device,) = re.findall(r"^device +(.*)$", out, re.MULTILINE)
    assert device in said


def test_what_fit_refuses_is_refused_in_the_same_words(x, tmp_path, cli):
    run, fit = tmp_path / "run", ("fit", x, "--out", tmp_path / "run")
    assert cli(*fit, "--k", 4, "--init", "random")[0] == 0
    refused = [
        ("--k", 4),
        ("--k", 5, "--resume"),
        ("--k", 601),
        ("--k", 4, "--max-host-memory", "1MiB", "--out", tmp_path / "other"),
        ("--k", 4, "--init", tmp_path / "nope.npy", "--out", tmp_path / "other"),
    ]
    for options in refused:
        status, _, err = cli(*fit, *options)
        before = sorted((path, path.stat().st_mtime_ns) for path in run.rglob("*"))
        dry_status, out, dry_err = cli(*fit, *options, "--dry-run")
        assert sorted((path, path.stat().st_mtime_ns) for path in run.rglob("*")) == before
        assert status == dry_status == 2
        assert without_times(dry_err) == without_times(err)
        assert ("forbids" in out) is (options in refused[:2])
    # What may go on, may be asked about.
    status, out, _ = cli(*fit, "--k", 4, "--init", "random", "--resume", "--dry-run")
    assert (status, "is finished: nothing will be done" in out) == (0, True)


def test_rows_that_are_not_finite_are_found_in_a_sample(x, tmp_path, cli):
    rows = np.load(x)
    rows[[40, 77], 1] = np.nan, np.inf
    np.save(x, rows)
    fit = ("fit", x, "--k", 4, "--out", tmp_path / "run", "--dry-run")
    status, out, err = cli(*fit)
    assert status == 2
    assert "row 40 holds nan (feature 1; 2 of 600 rows in a sample)" in err
    assert len(err.splitlines()) == 1
    assert "forbids      the error that follows on stderr" in out
    assert "row 40" not in out
    status, out, _ = cli(*fit, "--nan", "drop")
    assert status == 0
    assert "2 of 600 rows in a sample hold NaN or infinity: they are left out" in out


def test_a_disk_that_is_too_full_for_the_result_forbids_the_run(x, tmp_path, cli, monkeypatch):
    free = [10]
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=free[0]))
    fit = ("fit", x, "--k", 4, "--out", tmp_path / "a" / "run", "--dry-run")
    status, out, err = cli(*fit)
    assert status == 2
    assert f"10 bytes free at {tmp_path}" in out
    assert "free space, or choose another place" in err
    # Checkpoints that do not fit are no reason to stop.
    free[0] = 1000
    status, out, _ = cli(*fit)
    assert status == 0
    assert "note         3 checkpoints" in out
    assert "1000 bytes are free there" in out


# Compressed labels seldom take what they may.
def test_outputs_of_zarr_that_may_not_fit_are_a_note(x, tmp_path, cli, monkeypatch):
    run = tmp_path / "run"
    assert cli("fit", x, "--k", 4, "--out", run, "--init", "random")[0] == 0
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    predict = ("predict", run, x, "--dry-run", "--labels")
    status, out, _ = cli(*predict, tmp_path / "l.zarr")
    assert (status, "outputs take up to 2.3 KiB" in out) == (0, True)
    assert cli(*predict, tmp_path / "l.npy")[0] == 2


def test_a_folder_that_may_not_be_written_is_told_before_its_space(x, tmp_path, cli, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=0))
    monkeypatch.setattr("os.access", lambda path, mode: False)
    status, out, err = cli("fit", x, "--k", 4, "--out", tmp_path / "run", "--dry-run")
    assert (status, "may not be written to" in err, out.count("forbids")) == (2, True, 1)


def test_weights_are_looked_at_too(x, tmp_path, cli):
    np.save(tmp_path / "w.npy", np.ones(600))
    fit = ("fit", x, "--k", 4, "--weights", tmp_path / "w.npy", "--out", tmp_path / "run")
    assert cli(*fit, "--dry-run")[0] == 0
    np.save(tmp_path / "w.npy", np.r_[np.ones(3), np.zeros(597)])
    assert "of positive weight" in cli(*fit, "--dry-run")[2]


# Breaks when a signal is noted and nobody asks for it: the report is then printed to its end.
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("command", ["fit", "predict"])
def test_the_first_signal_ends_it(number, command, x, tmp_path, cli, monkeypatch):
    run = tmp_path / "run"
    arguments: tuple[object, ...] = ("fit", x, "--k", 4, "--out", run, "--dry-run")
    if command == "predict":
        assert cli(*arguments[:-1], "--init", "random")[0] == 0
        arguments = ("predict", run, x, "--labels", tmp_path / "l.npy", "--dry-run")
    before = sorted(tmp_path.rglob("*"))
    real = looking._read

    def interrupted(*given: Any) -> Any:
        signal.raise_signal(number)
        return real(*given)

    monkeypatch.setattr(looking, "_read", interrupted)
    status, out, err = cli(*arguments)
    assert (status, out) == (1, "")
    assert err == f"streamkm: stopped by {number.name}; nothing was written\n"
    assert sorted(tmp_path.rglob("*")) == before


# Every place that takes long asks, wherever the signal comes.
def test_every_part_of_it_asks_whether_to_stop(x, tmp_path):
    Job(x, tmp_path / "run", {"k": 4, "init": "random"}).attempt()
    config, execution = FitConfig(k=4, scale="zscore"), ExecutionConfig(device="cpu")

    def fit(stop: StopAfter) -> None:
        dry_run(source, config, execution, tmp_path / "new", resume=False, stop_request=stop)

    def predict(stop: StopAfter) -> None:
        labels = tmp_path / "l.npy"
        job = (tmp_path / "run", source, execution)
        dry_predict(*job, labels=labels, resume=False, stop_request=stop)

    with closing(open_source(x)) as source:
        for command, least in ((fit, 6), (predict, 2)):
            never = StopAfter()
            command(never)
            assert never.looks >= least
            for n in range(1, least + 1):
                with pytest.raises(StreamkmError, match="stopped by SIGTERM; nothing was written"):
                    command(StopAfter(n))


def fact(out: str, name: str) -> str:
    (value,) = re.findall(rf"^{name} +(.*)$", out, re.MULTILINE)
    return str(value)


# Breaks where the whole run is predicted for what is left of one, or a run that somebody works on
# is said to be free.
def test_what_a_folder_holds_is_told(x, tmp_path, cli):
    job = Job(x, tmp_path / "run", {"k": 4, "epochs": 3, "batch_rows": 100, "init": "random"})
    try_out = ("fit", x, "--k", 4, "--epochs", 3, "--batch-rows", 100, "--init", "random",
               "--out", job.run, "--dry-run", "--resume", "--device", "cpu")  # fmt: skip
    status, out, _ = cli(*try_out)
    assert status == 0
    assert fact(out, "resume") == f"no checkpoint in {job.run}: from the beginning"
    assert "seeding" in fact(out, "time")
    assert job.interrupted(12)
    seeded, at = sorted((job.run / "checkpoints").iterdir())
    shutil.rmtree(seeded)
    status, out, _ = cli(*try_out)
    assert status == 0
    assert re.fullmatch(rf"from {at.name} \(train, epoch 1, batch \d\)", fact(out, "resume"))
    assert "seeding 0.0 s" in fact(out, "time")
    with lock_of(job.run):
        status, out, err = cli(*try_out)
        assert (status, cli(*try_out[:-4], *try_out[-3:])[2]) == (2, err)
        assert f"process {os.getpid()} on" in err
        assert "forbids" in out
    before = {path: path.read_bytes() for path in job.run.rglob("*") if path.is_file()}
    assert cli(*try_out)[0] == 0
    assert {path: path.read_bytes() for path in before} == before
    (at / "state.safetensors").write_bytes(b"")
    status, _, err = cli(*try_out)
    assert (status, "none of its 1 checkpoints is intact" in err) == (2, True)
    (at / "state.safetensors").write_bytes(before[at / "state.safetensors"])
    job.attempt()
    status, out, _ = cli(*try_out)
    assert (status, fact(out, "resume")) == (0, f"{job.run} is finished: nothing will be done")
    assert "\ntime" not in out


@contextmanager
def lock_of(run: Path) -> Iterator[None]:
    lock = FileLock(run / "lock", run, "working on this run")
    lock.take()
    yield
    lock.release()


def test_time_is_that_of_what_is_left(x):
    source, setup = setup_of(x, epochs=4, init="random", scale="zscore", batch_rows=100)
    whole = {"scale": 1.0, "seed": 1.0, "train": 1.0, "close": 1.0, "sizes": 1.0}
    half = {**whole, "scale": 0.5}
    trained = {"scale": 0.0, "seed": 0.0, "train": 0.625, "close": 1.0, "sizes": 1.0}
    closed = {"scale": 0.0, "seed": 0.0, "train": 0.0, "close": 0.5, "sizes": 1.0}
    with closing(source):
        for cursor, left in (
            (Cursor("scale"), whole), (Cursor("scale", 0, 3), half),
            (Cursor("rounds", 2, 1), {**whole, "scale": 0.0}), (Cursor("train", 1, 3), trained),
            (Cursor("close", 4, 3), closed), (Cursor("close", 5, 1), {**closed, "close": 0.0}),
            (Cursor("sizes", 5, 1), {**dict.fromkeys(whole, 0.0), "sizes": 1.0}),
        ):  # fmt: skip
            assert _left(cursor, setup) == left


# ---- time and space ---------------------------------------------------------


def setup_of(x: Path, **settings: Any):
    source = open_source(x)
    return source, plan_fit(source, FitConfig(k=4, **settings), ExecutionConfig(device="cpu"))


def test_time_is_rows_by_the_rates_of_the_probe(x):
    source, setup = setup_of(x, epochs=3, init="random", scale="zscore")
    rates = {"train": Alone(300.0, 1e-9), "close": Alone(150.0, 1e-9), "scale": Alone(1e3, 1e-9)}
    probe = Probe(
        {"reading": Alone(600.0, 1e-9)}, rates, {"train": 3, "close": 1}, 2,
        on_host=True, overlaps=True, row_bytes=12, seconds=1.0,
    )  # fmt: skip
    report = DryRun()
    with closing(source):
        _add_time(report, setup, probe)
    # Scaling is bound by reading; the sample is read from the whole array; 600 rows in all.
    said = dict(report.facts)["time"]
    assert setup.resident.read_share == 0
    assert said == (
        "at most about 12 s (scale 1.0 s, seeding 1.0 s, training 6.0 s, closing 4.0 s)"
    )
    both = 1800 / 300 + 600 / 150
    assert f"arithmetic {2400 / both:.0f} rows/s" in dict(report.facts)["speed"]


# Breaks when passes over rows that stay in memory are said to wait for the disk.
@pytest.mark.parametrize(("n_kept", "seconds"), [(2, "12 s"), (0, "24 s"), (1, "16 s")])
def test_rows_that_stay_in_memory_are_read_once(n_kept, seconds, x):
    source, setup = setup_of(x, epochs=3, init="random")
    probe = Probe(
        {"reading": Alone(75.0, 1e-9)}, dict.fromkeys(("train", "close"), Alone(300.0, 1e-9)),
        {"train": 3, "close": 1}, 2, on_host=True, overlaps=True, row_bytes=12, seconds=1.0,
    )  # fmt: skip
    resident = ResidencyPlan(Homes(600, 300, 0), Homes(600, 300, n_kept), 12)
    setup = replace(setup, resident=resident)
    report = DryRun()
    with closing(source):
        _add_time(report, setup, probe)
    # Of two passes that follow the first, 8 s each if all is read; arithmetic takes 2 s a pass.
    assert f"training {seconds}" in dict(report.facts)["time"]


@pytest.mark.parametrize("init", ["auto", "k-means||", "random"])
def test_no_checkpoint_is_larger_than_was_said(init, x, tmp_path, monkeypatch):
    source, setup = setup_of(x, init=init, n_init=2, batch_rows=100)
    with closing(source), HostSlots(setup.memory.stream, torch.device("cpu")) as slots:
        state, prober = prepare(setup, slots, lambda: None)
        checkpoint, model = written_bytes(setup, state, prober.scaling)
    sizes = []
    real = tensor_file

    def measured(tensors, *about):
        sizes.append(sum(tensor.nbytes for tensor in tensors.values()))
        return real(tensors, *about)

    monkeypatch.setattr(checkpoints, "tensor_file", measured)
    settings = {"k": 4, "init": init, "n_init": 2, "batch_rows": 100}
    job = Job(x, tmp_path / "run", settings)
    job.attempt(checkpoint_every=every(3))
    assert max(sizes) <= checkpoint
    # Of k-means|| the candidates that may be found are more than were.
    assert checkpoint <= {"random": 1.0, "auto": 2.0, "k-means||": 20}[init] * max(sizes)
    tensors = load_file(job.run / "model.safetensors")
    assert model >= sum(tensor.nbytes for tensor in tensors.values())
