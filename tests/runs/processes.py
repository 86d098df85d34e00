"""The command line in processes of its own, and how to end them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tests.forked import Forked

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).resolve().parents[2]


#: One that was started anew, or forked.
Process = subprocess.Popen[str] | Forked


def start(*arguments: object) -> Forked:
    """``python -m streamkm ARGUMENTS``, with stderr to read."""
    return Forked(["-m", "streamkm", *arguments], environment=_environment())


def start_anew(*arguments: object, **options) -> subprocess.Popen[str]:
    """The same as a child of this process, of which it inherits what `options` say."""
    return subprocess.Popen(
        [sys.executable, "-m", "streamkm", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=_environment(),
        **options,
    )


def _environment() -> dict[str, str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error"}
    # Two threads that spin for each other take minutes on cores that are busy otherwise.
    return environment | {"OMP_WAIT_POLICY": "passive"}


def finish(process: Process, seconds: float = 60) -> tuple[int, str]:
    """Exit status and stderr; a process that hangs is killed and fails the test."""
    try:
        _, stderr = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise
    assert process.returncode is not None
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


def wait_until(condition: Callable[[], bool], process: Process) -> bool:
    """Wait for `condition`; False if the process ended first."""
    until = time.monotonic() + 60
    while not condition():
        if process.poll() is not None:
            return False
        assert time.monotonic() < until, "the process neither got there nor ended"
        time.sleep(0.001)
    return True


def kill(process: Process) -> bool:
    """SIGKILL; whether it died of it, and had not ended before."""
    process.kill()
    process.communicate()
    return process.returncode == -signal.SIGKILL
