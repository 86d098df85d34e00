"""Processes that are started on this machine: signals and statuses come through."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import ExitStack

import pytest

from tests.distributed.launched import environment, script

#: Says that it is up, and goes on until a signal has come to any process.
LOOP = """
from streamkm.runs.reporting.signals import StopRequest

def main():
    with StopRequest() as stop, joined("cpu", 10) as w:
        print("up\\n", end="", flush=True)  # One write, so that lines stay whole.
        while True:
            asked = torch.tensor([stop.signal_name is not None], dtype=torch.int32)
            w.max_(asked)
            if asked.item():
                if w.is_first:
                    time.sleep(0.5)  # It saves a checkpoint.
                    open("saved", "w").close()
                raise Interrupted("stopped")
            time.sleep(0.01)

ends(main)
"""
START = """
import sys
from streamkm.distributed.launching import launch
sys.exit(launch(2, sys.argv[1:]))
"""


@pytest.fixture
def start():
    """Starts a launcher that starts a script twice; none outlives the test."""
    with ExitStack() as stack:

        def start(*words, **more):
            launcher = stack.enter_context(started(*words, **more))
            stack.callback(launcher.kill)
            return launcher

        yield start


def started(path, *arguments, **more):
    variables = environment(TMPDIR=str(path.parent), **more)
    if "OMP_NUM_THREADS" not in more:
        del variables["OMP_NUM_THREADS"]
    return subprocess.Popen(
        [sys.executable, "-c", START, str(path), *arguments],
        cwd=path.parent,
        env=variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR2"])
def test_a_signal_stops_all_with_75(name, start, tmp_path):
    launcher = start(script(tmp_path, LOOP))
    assert [launcher.stdout.readline() for _ in range(2)] == ["up\n"] * 2
    launcher.send_signal(signal.Signals[name])
    said, _ = launcher.communicate(timeout=30)
    assert launcher.returncode == 75
    assert said == "streamkm: stopped\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["saved", "script.py"]


# Nobody waits for processes whose launcher is gone; the next attempt would find the folder locked.
def test_processes_do_not_outlive_the_launcher(start, tmp_path):
    launcher = start(script(tmp_path, LOOP))
    for _ in range(2):
        launcher.stdout.readline()
    launcher.kill()
    said, _ = launcher.communicate(timeout=30)  # It ends once nobody holds the pipe.
    assert said.count("streamkm: stopped\n") in (1, 2)
    assert (tmp_path / "saved").exists()


#: Statuses without torch, whose import takes seconds. All are up before one ends, and those that
#: are about to end let no SIGTERM change their status.
PLAIN = """
import os, signal, sys, time
from pathlib import Path
end = sys.argv[1 + int(os.environ["RANK"])]
if end != "sleep":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
Path("up" + os.environ["RANK"]).touch()
while len(list(Path().glob("up*"))) < 2:
    time.sleep(0.01)
if end.startswith("SIG"):
    os.kill(os.getpid(), signal.Signals[end])
time.sleep(20 * (end == "sleep"))
print(os.environ["OMP_NUM_THREADS"] + "\\n", end="", flush=True)
sys.exit(int(end))
"""


@pytest.mark.parametrize(
    ("first", "second", "status"),
    [("0", "0", 0), ("75", "2", 2), ("75", "75", 75), ("sleep", "1", 1)],
)
def test_one_status_for_all(first, second, status, start, tmp_path):
    launcher = start(plain(tmp_path), first, second)
    assert launcher.communicate(timeout=30)[0].strip("123\n") == ""
    assert launcher.returncode == status


def plain(folder):
    path = folder / "plain.py"
    path.write_text(PLAIN)
    return path


# The system kills who takes too much memory. Neither it nor those who get a SIGTERM say anything.
def test_a_process_that_was_killed_is_named(start, tmp_path):
    launcher = start(plain(tmp_path), "sleep", "SIGKILL")
    said, _ = launcher.communicate(timeout=30)
    assert "ProcessLostError: process 1 of 2 was ended by SIGKILL; continue with" in said


@pytest.mark.parametrize("given", [None, "3"])
def test_cores_are_shared_unless_the_user_says(given, start, tmp_path):
    launcher = start(plain(tmp_path), "0", "0", **({"OMP_NUM_THREADS": given} if given else {}))
    threads = launcher.communicate(timeout=30)[0].split()
    assert threads == [given or str(max(1, len(os.sched_getaffinity(0)) // 2))] * 2
