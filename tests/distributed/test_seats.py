"""Who a process is, by its environment."""

from __future__ import annotations

import pytest

from streamkm.distributed.seats import first_host, variables
from streamkm.errors import ConfigError

TORCHRUN = {
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "MASTER_ADDR": "node1",
    "MASTER_PORT": "29500",
    "TORCHELASTIC_USE_AGENT_STORE": "True",
    "TORCHELASTIC_RUN_ID": "none",
}
SLURM = {
    "SLURM_PROCID": "3",
    "SLURM_NTASKS": "4",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_ID": "0",
    "SLURM_JOB_ID": "1234567",
    "SLURM_JOB_NODELIST": "gpu[07-09,12],login",
    "SLURM_LAUNCH_NODE_IPADDR": "10.0.0.1",
}


def meets(environ):
    seat = variables(environ)
    assert seat is not None
    return seat.address, seat.port


def test_torchrun_says_who_is_who():
    seat = variables({**SLURM, **TORCHRUN})  # torchrun in a job of Slurm
    assert seat is not None
    assert (seat.rank, seat.size, seat.local_rank) == (5, 8, 1)
    assert (seat.address, seat.port) == ("node1", 29500)
    assert (seat.is_store_outside, seat.has_launcher) == (True, True)


def test_srun_says_who_is_who():
    seat = variables(SLURM)
    assert seat is not None
    assert (seat.rank, seat.size, seat.local_rank) == (3, 4, 1)
    assert (seat.address, seat.port) == ("gpu07", 34567)
    assert (seat.is_store_outside, seat.has_launcher) == (False, False)
    # The step may use some machines of the job. A script may say itself where to meet.
    assert meets({**SLURM, "SLURM_STEP_NODELIST": "gpu09"}) == ("gpu09", 34567)
    given = {"MASTER_ADDR": "gpu12", "MASTER_PORT": "7777"}
    assert meets({**SLURM, **given}) == ("gpu12", 7777)
    bare = {name: value for name, value in SLURM.items() if name != "SLURM_JOB_NODELIST"}
    assert meets(bare) == ("10.0.0.1", 34567)


# What the training operator of Kubeflow, version 1.9, sets in the pods of a PyTorchJob.
def test_a_pytorchjob_says_who_is_who():
    place = {"MASTER_ADDR": "fit-master-0", "MASTER_PORT": "23456"}
    pod = {**place, "WORLD_SIZE": "4", "RANK": "3", "PET_NODE_RANK": "3", "PET_NNODES": "4"}
    seat = variables(pod)
    assert seat is not None
    assert (seat.rank, seat.size, seat.local_rank) == (3, 4, 0)
    assert (seat.address, seat.port) == ("fit-master-0", 23456)
    assert (seat.is_store_outside, seat.has_launcher) == (False, False)
    # With an elasticPolicy it leaves them to torchrun.
    assert variables({"PET_NNODES": "1:4", "PET_RDZV_ENDPOINT": "fit-worker-0:23456"}) is None


# A batch script has variables of Slurm as well. It would wait for processes that nobody starts.
@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"RANK": "0", "WORLD_SIZE": "1"},
        {name: value for name, value in SLURM.items() if name != "SLURM_STEP_ID"},
        {**SLURM, "SLURM_STEP_ID": "4294967290"},  # salloc's interactive shell
        {**SLURM, "SLURM_STEP_ID": "4294967291"},  # the batch script
        {**SLURM, "SLURM_PROCID": "0", "SLURM_NTASKS": "1"},
    ],
)
def test_one_process_is_alone(environ):
    assert variables(environ) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"RANK": None}, "WORLD_SIZE=8 is set without RANK: start .* torchrun.* unset WORLD_SIZE"),
        ({"WORLD_SIZE": None}, "RANK=5 is set without WORLD_SIZE"),
        ({"RANK": "8"}, "RANK=8 is not below WORLD_SIZE=8: processes are numbered from 0"),
        ({"RANK": "-1"}, "RANK=-1 is no number from 0 on"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE=two is no number"),
        ({"LOCAL_RANK": ""}, "LOCAL_RANK= is no number"),
        ({"MASTER_ADDR": None}, "MASTER_ADDR= and MASTER_PORT=29500 must name"),
        ({"MASTER_PORT": None}, "MASTER_ADDR=node1 and MASTER_PORT= must name"),
        ({"MASTER_PORT": "65536"}, "MASTER_PORT=65536 must name a machine and a port"),
    ],
)  # fmt: skip
def test_what_contradicts_is_refused(change, message):
    changed = {**TORCHRUN, **change}
    with pytest.raises(ConfigError, match=message):
        variables({name: value for name, value in changed.items() if value is not None})


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("gpu1", "gpu1"),
        ("gpu1,gpu2", "gpu1"),
        ("gpu[07-09,12],login", "gpu07"),
        ("r[3,5]-n1", "r3-n1"),
        ("r[3-5]n[07,8],x", "r3n07"),
        ("", ""),
    ],
)
def test_the_first_machine_of_a_list(nodes, first):
    assert first_host(nodes) == first
