"""Runs that many tests make reports of, fitted once, and a browser to open these in."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from sklearn.datasets import load_digits

from streamkm.stream import plan
from tests.reports.browser import Browser, browser_in
from tests.runs.helpers import cli, clusters

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser_in(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(scope="session")
def blobs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with x.npy, 600 rows of 4 features, and run, of 5 clusters of it."""
    folder: Path = tmp_path_factory.mktemp("blobs")
    np.save(folder / "x.npy", clusters(600, 4))
    settings = ("--batch-rows", 100, "--epochs", 2, "--scale", "zscore", "--seed", 3)
    assert cli("fit", folder / "x.npy", "--k", 5, "--out", folder / "run", *settings) == 0
    return folder


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same of images of 8 x 8 pixels, 10 clusters."""
    folder: Path = tmp_path_factory.mktemp("digits")
    np.save(folder / "x.npy", load_digits().data[:500].astype(np.float32))
    assert cli("fit", folder / "x.npy", "--k", 10, "--out", folder / "run") == 0
    return folder


@pytest.fixture
def small_windows_of_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows of a few blocks, as large arrays have, for small ones."""
    monkeypatch.setattr(plan, "WINDOW_BYTES", 1000)
