"""The command that repeats a run: it does."""

from __future__ import annotations

import shlex
from pathlib import Path

import numpy as np
import pytest

from streamkm import KMeans
from streamkm.reports.facts import read_run
from streamkm.reports.sections import repeat_command
from tests.runs.helpers import cli, clusters


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--algorithm", "lloyd", "--tol", 0, "--scale", "minmax"),
        ("--epochs", 3, "--no-closing-pass", "--seed", 7, "--rate", "mean", "--min-gain", 0),
        ("--metric", "cosine", "--init", "k-means||", "--n-init", 2, "--batch-rows", 64),
        ("--nan", "drop", "--nodata", -999.0, "--max-no-improvement", 5, "--precision", "fast"),
    ],
    ids=str,
)
def test_the_command_repeats_the_run(options, tmp_path: Path) -> None:
    folder = tmp_path / "a folder; with $signs"
    folder.mkdir()
    np.save(folder / "x.npy", clusters(300, 3))
    run = folder / "run"
    assert cli("fit", folder / "x.npy", "--k", 4, "--out", run, *options) == 0
    command, _ = repeat_command(read_run(run))
    program, *words = shlex.split(command)
    assert program == "streamkm"
    run.rename(folder / "before")
    assert cli(*words) == 0
    for name in ("model.safetensors", "centroids.npy"):
        assert (run / name).read_bytes() == (folder / "before" / name).read_bytes()


def test_what_the_command_cannot_say_is_said(tmp_path: Path) -> None:
    x = clusters(60, 2)
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "w.npy", np.ones(60))
    np.save(tmp_path / "c.npy", x[:3])
    given = ("--init", tmp_path / "c.npy", "--weights", tmp_path / "w.npy")
    assert cli("fit", tmp_path / "x.npy", "--k", 3, "--out", tmp_path / "run", *given) == 0
    command, notes = repeat_command(read_run(tmp_path / "run"))
    assert "--init CENTROIDS.npy" in command
    assert "--weights WEIGHTS.npy" in command
    assert any("first centroids were given (.npy file of sha256" in note for note in notes)
    assert any("Rows had weights" in note for note in notes)


def test_first_centroids_of_an_array_are_said_too(tmp_path: Path) -> None:
    x = clusters(60, 2)
    np.save(tmp_path / "x.npy", x)
    KMeans(3, init=x[:3], run_dir=tmp_path / "run", random_state=0).fit(tmp_path / "x.npy")
    command, notes = repeat_command(read_run(tmp_path / "run"))
    assert "--init CENTROIDS.npy" in command
    assert any("first centroids were given (array of sha256" in note for note in notes)
