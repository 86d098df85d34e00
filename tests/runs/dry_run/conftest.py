"""Fixtures that the tests of dry runs share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from streamkm.cli import main
from streamkm.runs.engine import probe as probing
from tests.runs.helpers import clusters


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(probing, "PROBE_S", 0.001)


@pytest.fixture
def x(tmp_path) -> Path:
    path: Path = tmp_path / "x.npy"
    np.save(path, np.random.default_rng(0).permutation(clusters(600, 3)))
    return path


@pytest.fixture
def cli(capsys):
    def run(*arguments: object) -> tuple[int, str, str]:
        status = main([str(argument) for argument in arguments])
        said = capsys.readouterr()
        return status, said.out, said.err

    return run
