"""The dry run of a sweep."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tests.runs.helpers import cli, clusters

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


# Breaks when a dry run writes, or leaves out what the sweep would say.
def test_nothing_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = tmp_path / "x.npy", tmp_path / "sweep"
    np.save(path, clusters(3000, 5))
    words = ("sweep", path, "--k", 9, 3, "--seeds", 0, 1, "--out", out, "--device", "cpu")
    assert cli(*words, "--dry-run") == 0
    said = capsys.readouterr().out
    assert "4 fits: k 3 9, seeds 0 1" in said
    assert "one read for all of them" in said
    assert "--k: sorted: 3 9" in said
    assert "time" in said
    assert not out.exists()


# Breaks when what forbids a sweep is found only by the sweep.
def test_what_forbids_it_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = tmp_path / "x.npy", tmp_path / "sweep"
    np.save(path, clusters(3000, 5))
    out.mkdir()
    (out / "something").touch()
    words = ("sweep", path, "--k", 3, "--out", out, "--device", "cpu")
    assert cli(*words, "--dry-run") == 2
    said = capsys.readouterr()
    assert "forbids" in said.out
    assert "exists and is no sweep" in said.err
