"""The script for SLURM of docs/batch-systems.md, under bash, with stand-ins for its commands."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.runs.helpers import clusters
from tests.runs.processes import ROOT, finish, wait_until

#: Longer than the fit of the page, so that it can be warned on its way.
SLOW = "--algorithm lloyd --tol 0 --epochs 150 --batch-rows 20000"


class Cluster:
    """A folder with the page's script and its data, and SLURM's commands in PATH."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        page = (ROOT / "docs/batch-systems.md").read_text()
        (script,) = re.findall(r"```sh\n(#!/bin/bash.*?)```", page, re.DOTALL)
        (folder / "job.sh").write_text(script)
        np.save(folder / "x.npy", clusters(200_000, 16))
        programs = folder / "bin"
        programs.mkdir()
        for name, line in {
            "srun": f'echo $$ > task; exec "$@" {SLOW}',
            "scontrol": 'echo "$@" >> requeued',
            "streamkm": f'exec "{sys.executable}" -m streamkm "$@"',
        }.items():
            (programs / name).write_text(f"#!/bin/sh\n{line}\n")
            (programs / name).chmod(0o755)
        self._environment = os.environ | {
            "PATH": f"{programs}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "SLURM_JOB_ID": "4711",
        }

    def submit(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["bash", "job.sh"], cwd=self.folder, env=self._environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def submit_and_wait_for_the_run(self) -> subprocess.Popen[str]:
        job = self.submit()
        assert wait_until((self.folder / "run-slurm/config.json").exists, job)
        return job

    @property
    def requeued(self) -> str:
        path = self.folder / "requeued"
        return path.read_text() if path.exists() else ""


@pytest.fixture
def cluster(tmp_path) -> Cluster:
    return Cluster(tmp_path)


def test_a_job_that_is_warned_is_queued_again_and_finishes(cluster):
    job = cluster.submit_and_wait_for_the_run()
    job.send_signal(signal.SIGUSR1)
    status, stderr = finish(job)
    assert (status, cluster.requeued) == (75, "requeue 4711\n"), stderr
    assert "stopped by SIGUSR1; " in stderr
    status, stderr = finish(cluster.submit(), 120)
    assert (status, cluster.requeued) == (0, "requeue 4711\n"), stderr
    assert re.search(r"^\d{4}-\S+ resumed: from step-", stderr, re.MULTILINE)
    assert (cluster.folder / "run-slurm/model.safetensors").exists()


# Breaks when scancel, which sends SIGTERM to the task, only makes a job begin again.
def test_a_job_that_is_cancelled_is_not_queued_again(cluster):
    job = cluster.submit_and_wait_for_the_run()
    os.kill(int((cluster.folder / "task").read_text()), signal.SIGTERM)
    status, stderr = finish(job)
    assert (status, cluster.requeued) == (75, ""), stderr


def test_a_job_that_fails_is_not_queued_again(cluster):
    (cluster.folder / "x.npy").write_bytes(b"no array")
    status, stderr = finish(cluster.submit())
    assert (status, cluster.requeued) == (2, ""), stderr
