"""Labels of a run: the same wherever they were stopped, and never completed by another run."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from tests.runs.engine.cases import N_ROWS, Case, on_cases
from tests.runs.helpers import Job, cli, predicted


@pytest.fixture
def job(case: Case, tmp_path: Path) -> Job:
    return case.job(tmp_path)


@pytest.mark.usefixtures("small_windows", "no_fsync", "short_seeding")
@on_cases("minibatch, z-score", "minibatch, min-max, drop")
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


@pytest.fixture
def x(tmp_path) -> Path:
    path: Path = tmp_path / "x.npy"
    np.save(path, np.random.default_rng(0).normal(size=(200, 3)).astype(np.float32))
    return path


# A crash between two outputs: the first has its name, the second has not.
@pytest.mark.parametrize("suffix", ["npy", "zarr"])
def test_predict_resumes_where_only_one_of_two_outputs_was_published(
    suffix, x, tmp_path, monkeypatch
):
    run, labels = tmp_path / "run", tmp_path / f"l.{suffix}"
    distances = tmp_path / f"d.{suffix}"
    assert cli("fit", x, "--k", 2, "--out", run) == 0
    arguments = ["predict", run, x, "--labels", labels, "--distances", distances]
    real, calls = os.replace, 0

    class Crash(BaseException):
        pass

    def replace(path, target):
        nonlocal calls
        if Path(target) in (labels, distances):
            calls += 1
            if calls == 2:
                raise Crash
        real(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace)
        with pytest.raises(Crash):
            cli(*arguments)
    assert labels.exists() != distances.exists()
    assert cli(*arguments, "--resume") == 0
    assert labels.exists()
    assert distances.exists()
    assert not list(tmp_path.glob("*.partial*"))


# A prediction that ends before anything was saved must say of which run it is, too: killed as it
# gets its name, it would be completed under another run's.
def test_predict_of_another_run_does_not_complete_what_is_there(x, tmp_path, monkeypatch):
    labels = tmp_path / "l.npy"
    for seed in (0, 1):
        fit = ("fit", x, "--k", 3, "--seed", seed, "--init", "random", "--out")
        assert cli(*fit, tmp_path / f"run{seed}") == 0

    class Crash(BaseException):
        pass

    def replace(path, target):
        if Path(target) == labels:
            raise Crash
        os.rename(path, target)  # noqa: PTH104

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace)
        with pytest.raises(Crash):
            cli("predict", tmp_path / "run0", x, "--labels", labels)
    assert cli("predict", tmp_path / "run1", x, "--labels", labels, "--resume") == 2
    assert not labels.exists()
    assert cli("predict", tmp_path / "run0", x, "--labels", labels, "--resume") == 0
