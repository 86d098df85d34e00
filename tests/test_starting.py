"""How many processes a command starts, and when it is one of several itself."""

from __future__ import annotations

import os
import re

import pytest
import torch

from streamkm.config import ExecutionConfig
from streamkm.errors import ConfigError
from streamkm.starting import n_to_start, processes

UNDER_TORCHRUN = {
    "RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "a", "MASTER_PORT": "9",
}  # fmt: skip
OF_SLURM = {
    "SLURM_STEP_ID": "0", "SLURM_PROCID": "2", "SLURM_NTASKS": "3", "SLURM_LOCALID": "0",
    "SLURM_STEP_NODELIST": "a", "SLURM_JOB_ID": "1",
}  # fmt: skip


@pytest.fixture(autouse=True)
def four_gpus(monkeypatch):
    for name in {*UNDER_TORCHRUN, *OF_SLURM, "TORCHELASTIC_RUN_ID"}:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)


def asked(n: str, device: str = "auto") -> int:
    return n_to_start(ExecutionConfig(processes=n, device=device))


def test_one_for_each_gpu(monkeypatch):
    assert (asked("1"), asked("3"), asked("auto")) == (1, 3, 4)
    assert asked("auto", "cpu") == 1
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert asked("auto") == 1


# Breaks when each of several processes starts several more.
@pytest.mark.parametrize(
    ("variables", "said"),
    [(UNDER_TORCHRUN, "--processes 2 .*WORLD_SIZE=4 "), (OF_SLURM, "--processes 2 .*NTASKS=3 ")],
)
def test_processes_start_no_others(variables, said, monkeypatch):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert asked("1") == 1
    with pytest.raises(ConfigError) as caught:
        asked("2")
    assert re.match(said, caught.value.for_command_line)


# Their command says --processes too: it is that of who started them.
def test_those_that_streamkm_has_started_do_not_either(monkeypatch):
    for name, value in UNDER_TORCHRUN.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", f"streamkm-{os.getppid()}")
    assert asked("2") == 1


# A batch script, or a step of one task, has some of Slurm's variables.
def test_a_step_of_one_task_may_start_some(monkeypatch):
    for name, value in {**OF_SLURM, "SLURM_PROCID": "0", "SLURM_NTASKS": "1"}.items():
        monkeypatch.setenv(name, value)
    assert asked("2") == 2
    with processes(ExecutionConfig()) as (_, shared):
        assert shared["world"].size == 1
