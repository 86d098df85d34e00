"""The command line in processes of its own, and how to end them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).resolve().parents[2]


def start(*arguments: object, **options) -> subprocess.Popen[str]:
    """``python -m streamkm ARGUMENTS``, with stderr to read."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error"}
    # Two threads that spin for each other take minutes on cores that are busy otherwise.
    environment["OMP_WAIT_POLICY"] = "passive"
    return subprocess.Popen(
        [sys.executable, "-m", "streamkm", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        **options,
    )


def finish(process: subprocess.Popen[str], seconds: float = 60) -> tuple[int, str]:
    """Exit status and stderr; a process that hangs is killed and fails the test."""
    try:
        _, stderr = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise
    return process.returncode, stderr


def run(*arguments: object) -> tuple[int, str]:
    return finish(start(*arguments))


def program(text: str, *arguments: object) -> str:
    """What a program of Python prints; it must end well."""
    done = subprocess.run(
        [sys.executable, "-c", text, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str]) -> bool:
    """Wait for `condition`; False if the process ended first."""
    until = time.monotonic() + 60
    while not condition():
        if process.poll() is not None:
            return False
        assert time.monotonic() < until, "the process neither got there nor ended"
        time.sleep(0.001)
    return True


def kill(process: subprocess.Popen[str]) -> bool:
    """SIGKILL; whether it died of it, and had not ended before."""
    process.kill()
    process.communicate()
    return process.returncode == -signal.SIGKILL
