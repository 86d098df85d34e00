"""Progress of a run: strict JSON lines, a line now and then, a bar on a terminal."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import sys
import termios
import threading
from datetime import UTC, datetime

import numpy as np
import pytest

from streamkm.runs.reporting import progress
from streamkm.runs.reporting.progress import Progress
from streamkm.stream.stages import StageTimes
from tests.runs.helpers import Job, clusters, untimed


@pytest.fixture
def job(tmp_path) -> Job:
    np.save(tmp_path / "x.npy", clusters(600, 3))
    return Job(tmp_path / "x.npy", tmp_path / "run", {"k": 4, "batch_rows": 50})


# ---- lines and bars ---------------------------------------------------------


# Breaks when a record is appended to one that a power cut tore.
def test_a_torn_last_record_costs_only_itself(tmp_path):
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text('{"whole": 1}\n{"torn": ')
    with Progress(metrics) as shown:
        shown.record({"next": 2})
    with Progress(metrics) as shown:
        shown.record({"after": 3})
    lines = metrics.read_text().splitlines()
    assert lines[:2] == ['{"whole": 1}', '{"torn": ']
    assert [json.loads(line).get("next") for line in lines[2:]] == [2, None]


class Clock:
    def __init__(self, monkeypatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr("streamkm.runs.reporting.progress.time.monotonic", lambda: self.now)


# tqdm off a terminal floods logs or prints nothing (tqdm#1319).
def test_off_a_terminal_there_is_a_line_every_so_often(monkeypatch, tmp_path, capsys):
    clock = Clock(monkeypatch)
    with Progress(tmp_path / "metrics.jsonl") as shown:
        shown.begin("train", 1000, StageTimes())
        for _ in range(95):
            clock.now += 1.0
            shown.advance(10)
            if shown.is_due():
                shown.report({"inertia_per_row": 0.5})
    lines = untimed(capsys.readouterr().err)
    # The first soon, which says that all is well; then one in 30 seconds.
    assert [line[: line.index(",", 8)] for line in lines] == [
        "train: 60 of 1", "train: 360 of 1", "train: 660 of 1"
    ]  # fmt: skip
    assert lines[1].startswith("train: 360 of 1,000 rows (36%), 10 rows/s")
    # Nothing was read, which is no speed.
    assert lines[1].endswith("10 rows/s, about 64 s left, inertia/row 0.5")
    assert "inertia/row 0.5" in lines[0]
    assert not any("\r" in line for line in lines)
    # Records come more often, for whoever wants a chart.
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 47


def test_the_time_between_lines_is_one_constant(monkeypatch, capsys):
    monkeypatch.setattr(progress, "LINE_EVERY_S", 5.0)
    clock = Clock(monkeypatch)
    with Progress() as shown:
        shown.begin("train", 1000, StageTimes())
        for _ in range(21):
            clock.now += 1.0
            shown.advance(1)
            if shown.is_due():
                shown.report({})
    assert len(capsys.readouterr().err.splitlines()) == 3  # At 6, 12 and 18 s.


def test_rows_of_an_earlier_attempt_count_as_done_but_not_as_speed(monkeypatch, tmp_path):
    clock = Clock(monkeypatch)
    with Progress(tmp_path / "metrics.jsonl") as shown:
        shown.begin("train", 1000, StageTimes(), done=400)
        clock.now += 10
        shown.advance(100)
        shown.report({})
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    record = json.loads(line)
    assert (record["rows"], record["rows_per_s"]) == (500, 10.0)


# Breaks when nobody can tell from a log when something happened.
def test_off_a_terminal_a_line_begins_with_the_time(capsys):
    before = datetime.now(UTC).replace(microsecond=0)
    with Progress() as shown:
        shown.say("written: x.npy")
    stamp, message = capsys.readouterr().err.rstrip().split(" ", 1)
    assert before <= datetime.fromisoformat(stamp) <= datetime.now(UTC)
    assert message == "written: x.npy"


class Terminal:
    """A pseudo-terminal in the place of stderr, and what was written to it."""

    def __init__(self, monkeypatch) -> None:
        self._leader, follower = pty.openpty()
        termios.tcsetwinsize(follower, (24, 100))
        self._file = os.fdopen(follower, "w")
        self._chunks: list[bytes] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        monkeypatch.setattr(sys, "stderr", self._file)

    def _read(self) -> None:
        with contextlib.suppress(OSError):  # What Linux says when the other end is closed.
            while chunk := os.read(self._leader, 1 << 12):
                self._chunks.append(chunk)

    def close(self) -> str:
        self._file.close()
        self._reader.join(10)
        os.close(self._leader)
        return b"".join(self._chunks).decode()


def test_on_a_terminal_there_is_a_bar(monkeypatch):
    with monkeypatch.context() as patch:
        terminal = Terminal(patch)
        with Progress() as shown:
            shown.begin("train", 1000, StageTimes())
            shown.advance(500)
            shown.report({"inertia_per_row": 0.25})
            shown.say("a note beside the bar")
    output = terminal.close()
    assert "train:" in output
    assert "50%" in output
    assert "inertia/row 0.25" in output
    assert "a note beside the bar\r\n" in output
    assert not re.search(r"\d{4}-\d\d-\d\dT", output)


def test_a_run_on_a_terminal_ends_with_its_last_words(monkeypatch, job):
    with monkeypatch.context() as patch:
        terminal = Terminal(patch)
        job.attempt()
    shown = [overwritten(line) for line in terminal.close().split("\n")]
    assert shown[-2].startswith("written: ")
    assert shown[-1] == ""  # The bar is gone.


def overwritten(line: str) -> str:
    """What is left of a line on the screen after its carriage returns."""
    screen = ""
    for part in line.split("\r"):
        screen = part + screen[len(part) :]
    return screen.rstrip()
