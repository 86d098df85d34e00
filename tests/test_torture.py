"""CI's share of the kill campaign; ``scripts/torture --kills 2000`` goes on for longer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]


def campaign(folder: Path, *options: str) -> dict[str, Any]:
    """Its figures; it has found no difference."""
    process = subprocess.run(
        [sys.executable, "-m", "tests.torture", *options, "--seed", "0", "--folder", folder],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert process.returncode == 0, process.stdout + process.stderr
    figures: dict[str, Any] = json.loads(process.stdout)
    assert figures["differences"] == []
    return figures


# KILLED anywhere: scaling, seeding, training, closing, saving, labelling. Whatever an attempt
# leaves behind must be taken up, or passed over, so that not a byte of any result differs.
@pytest.mark.slow
def test_100_kills_make_no_difference(tmp_path):
    # In a process of its own: it forks, which one that has threads must not.
    figures = campaign(tmp_path, "--kills", "100", "--executed", "0")
    assert figures["n_kills"] >= 100
    # What was met depends on how fast the machine is.
    assert min(figures["kills"][name] for name in ("SIGKILL", "SIGTERM", "SIGINT", "SIGSTOP")) > 1
    assert {"saving", "seed", "train"} <= figures["phases"].keys()
    assert len(figures["runs"]) > 4


# The same of one of several processes, whose number changes at every attempt.
@pytest.mark.slow
def test_kills_of_one_of_several_processes_make_no_difference(tmp_path):
    figures = campaign(tmp_path, "--processes", "--kills", "8", "--executed", "0")
    assert len(figures["processes"]) > 2
