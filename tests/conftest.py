"""Fixtures and options of all tests. No torch here: many need none, its import takes seconds."""

from __future__ import annotations

import os

import numpy as np
import pytest
from hypothesis import settings

# A deadline fails tests on a busy machine, not slow code. In continuous integration
# the same examples are tried each time; elsewhere every run looks at new ones.
settings.register_profile("dev", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "dev")

# Contracts are asserted in modules that pytest does not collect itself.
CONTRACTS = ("clustering", "kernels", "sinks", "sources")
pytest.register_assert_rewrite(*(f"tests.{room}.contract" for room in CONTRACTS))

#: Files of the longest tests, a quarter of all work, and of those that wait for other processes.
#: Begun last, they would run when other workers have nothing left to do.
LONGEST = (
    "tests/kernels/triton/test_kernel.py",
    "tests/test_bench.py",
    "tests/test_torture.py",
    "tests/distributed/test_machines.py",
    "tests/runs/test_several_processes.py",
    "tests/sources/test_lazy.py",
    "tests/test_docs.py",
    "tests/reports/test_sweep_report.py",
    "tests/runs/engine/test_seeding.py",
)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest tests."""
    items.sort(key=lambda item: not item.nodeid.startswith(LONGEST))


@pytest.fixture(autouse=True)
def _no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    """No disk is waited for: no power is cut in these tests, and kills lose nothing written."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def rng() -> np.random.Generator:
    """The same numbers in every run of a test."""
    return np.random.default_rng(0)
