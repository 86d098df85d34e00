"""Settings of a command for its own process."""

from __future__ import annotations

import os

import pytest

from streamkm import process


@pytest.fixture(autouse=True)
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """What the C library is asked for; it is not asked, this process is not a command's own."""
    asked: list[tuple[int, int]] = []

    class Library:
        def mallopt(self, option: int, value: int) -> None:
            asked.append((option, value))

    monkeypatch.setattr("ctypes.CDLL", lambda name: Library())
    monkeypatch.setattr("gc.set_threshold", lambda *thresholds: None)
    return asked


# Breaks when what a user has set is set again.
@pytest.mark.parametrize(("given", "found"), [(None, "10000"), ("77", "77")])
def test_waiting_threads_leave_their_cores_soon(monkeypatch, calls, given, found) -> None:
    monkeypatch.setenv("GOMP_SPINCOUNT", given or "")
    if given is None:
        monkeypatch.delenv("GOMP_SPINCOUNT")
    process.prepare_process()
    assert os.environ["GOMP_SPINCOUNT"] == found
    # One arena, and blocks of 4 MiB mapped by themselves (mallopt(3): M_ARENA_MAX is -8,
    # M_MMAP_THRESHOLD is -3).
    assert sorted(calls) == [(-8, 1), (-3, 4 << 20)]


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOMP_SPINCOUNT", "77")
    monkeypatch.setattr("ctypes.CDLL", lambda name: object())
    process.prepare_process()


# Breaks when OpenMP starts a thread for each core of the machine where the job has time for fewer.
@pytest.mark.parametrize(
    ("granted", "given", "found"), [(3, None, "3"), (3, "5", "5"), (None, None, None)]
)
def test_arithmetic_has_no_more_threads_than_the_job_has_cores(
    monkeypatch, granted, given, found
) -> None:
    monkeypatch.setenv("GOMP_SPINCOUNT", "77")
    monkeypatch.setenv("OMP_NUM_THREADS", given or "")
    if given is None:
        monkeypatch.delenv("OMP_NUM_THREADS")
    process.prepare_process(granted)
    assert os.environ.get("OMP_NUM_THREADS") == found


# Breaks when Python walks through all of torch's objects every few hundred new ones, in every step.
def test_cycles_are_seldom_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOMP_SPINCOUNT", "77")
    asked: list[tuple[int, ...]] = []
    monkeypatch.setattr("gc.set_threshold", lambda *thresholds: asked.append(thresholds))
    process.prepare_process()
    ((newest, *_),) = asked
    assert newest >= 10_000
