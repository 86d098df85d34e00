"""Fixtures that the tests of runs share."""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import pytest
import torch

from streamkm.clustering import sizing
from streamkm.clustering.seeding import plan as seeding_plan
from streamkm.clustering.seeding import tree_plan
from streamkm.runs.reporting import progress
from streamkm.stream import plan

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def _one_arithmetic_thread() -> Iterator[None]:
    """Batches of a few rows: threads would spend their time waiting for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows of a few blocks, as large arrays have, for small ones."""
    monkeypatch.setattr(plan, "WINDOW_BYTES", 1000)


@pytest.fixture
def quick_path(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where there is one: for tests of thousands of small files."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    with TemporaryDirectory(dir=memory) as folder:
        yield Path(folder)


@pytest.fixture
def no_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    """No records between those that always are: the calls of a run are the same each time."""
    monkeypatch.setattr(progress, "REPORT_EVERY_S", 1e9)


@pytest.fixture
def short_seeding(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few steps of every stage, for tests that stop at each of them."""
    for name, value in (("MAX_BREATHS", 3), ("FINAL_PASSES", 2), ("TREE_CLUSTERS", 40)):
        monkeypatch.setattr(seeding_plan, name, value)
    monkeypatch.setattr(tree_plan, "MAX_EXCHANGES", 1)


@pytest.fixture
def short_sizing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass or two of every stage in which sizes are bounded."""
    for name, value in (("MOVING_PASSES", 2), ("MOST_PASSES", 3), ("EXCHANGING", (0,))):
        monkeypatch.setattr(sizing, name, value)
