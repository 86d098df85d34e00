"""The scripts for SLURM of the manual, under bash, with stand-ins for its commands."""

from __future__ import annotations

import os
import random
import re
import shlex
import signal
import socket
import subprocess
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from tests import forked
from tests.runs.helpers import clusters
from tests.runs.processes import ROOT, finish, wait_until

#: Longer than the fit of the page, so that it can be warned on its way.
SLOW = "--algorithm lloyd --tol 0 --epochs 150 --batch-rows 20000"


#: What srun does for two tasks of one machine: number them, pass a signal on, wait for both.
SRUN = """
trap 'kill -USR1 $tasks' USR1
export SLURM_STEP_ID=0 SLURM_NTASKS=2 SLURM_STEP_NODELIST=localhost
for task in 0 1; do
    SLURM_PROCID=$task SLURM_LOCALID=$task "$@" SLOW & tasks="$tasks $!"
done
echo $tasks > task
for task in $tasks; do
    while kill -0 "$task" 2> /dev/null; do wait "$task"; done
    wait "$task"; ended=$?; [ "$ended" -gt "$status" ] && status=$ended
done
exit "$status"
""".replace("SLOW", SLOW)


class Cluster:
    """A folder with the page's script and its data, and SLURM's commands in PATH."""

    def __init__(self, folder: Path, page: str, srun: str, job_id: int) -> None:
        self.folder, self.job_id = folder, job_id
        page = (ROOT / "docs" / page).read_text()
        (script,) = re.findall(r"```sh\n(#!/bin/bash.*?)```", page, re.DOTALL)
        (folder / "job.sh").write_text(script)
        np.save(folder / "x.npy", clusters(200_000, 16))
        variables = os.environ | {"PYTHONPATH": str(ROOT)}
        programs = folder / "bin"
        programs.mkdir()
        for name, line in {
            "srun": srun,
            "scontrol": 'echo "$@" >> requeued',
            "streamkm": f'exec {shlex.join(forked.command(variables))} -m streamkm "$@"',
        }.items():
            (programs / name).write_text(f"#!/bin/sh\n{line}\n")
            (programs / name).chmod(0o755)
        self._environment = variables | {
            "PATH": f"{programs}:{os.environ['PATH']}",
            "SLURM_JOB_ID": str(job_id),
            "SLURM_CPUS_PER_TASK": "1",
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
    return Cluster(tmp_path, "batch-systems.md", f'echo $$ > task; exec "$@" {SLOW}', 4711)


@pytest.fixture
def two_tasks(tmp_path) -> Cluster:
    # The number of the job chooses the port, from 20000 on.
    port = next(port for port in map(free_port_below, range(100)) if port)
    return Cluster(tmp_path, "scale-out.md", "tasks= status=0" + SRUN, port - 20000)


def free_port_below(_attempt: int) -> int:
    """A port from 20000 to 39999 that is free; 0 if this one is not."""
    port = random.randrange(20000, 40000)
    with socket.socket() as listener, suppress(OSError):
        listener.bind(("127.0.0.1", port))
        return port
    return 0


@pytest.mark.parametrize("page", ["batch-systems.md", "scale-out.md"])
def test_the_script_is_one_that_bash_and_slurm_understand(page, tmp_path):
    job = Cluster(tmp_path, page, "", 1).folder / "job.sh"
    assert subprocess.run(["bash", "-n", job], check=False).returncode == 0
    known = {
        "job-name", "nodes", "ntasks-per-node", "gpus-per-node", "cpus-per-task", "mem", "time",
        "signal", "requeue", "open-mode",
    }  # fmt: skip
    options = re.findall(r"^#SBATCH --([a-z-]+)(?:=(\S+))?$", job.read_text(), re.MULTILINE)
    assert len(options) == job.read_text().count("#SBATCH")
    assert {name for name, _ in options} <= known
    assert dict(options)["signal"] == "B:USR1@120"


# Breaks when Slurm's variables are misread, or a warning reaches one task and not the other.
@pytest.mark.slow
def test_a_job_of_two_tasks_is_queued_again_and_finishes(two_tasks):
    job = two_tasks.submit()
    # After the seeding: the tasks are at work together.
    assert wait_until(lambda: any((two_tasks.folder / "run-slurm").glob("checkpoints/*")), job)
    job.send_signal(signal.SIGUSR1)
    status, stderr = finish(job)
    assert (status, two_tasks.requeued) == (75, f"requeue {two_tasks.job_id}\n"), stderr
    assert stderr.count("on 2 processes (") == stderr.count("stopped by SIGUSR1; ") == 1
    status, stderr = finish(two_tasks.submit(), 120)
    assert (status, two_tasks.requeued) == (0, f"requeue {two_tasks.job_id}\n"), stderr
    assert (two_tasks.folder / "run-slurm/model.safetensors").exists()


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
