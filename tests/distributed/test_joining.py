"""Who a process is, by its environment; the waiting room, with real processes."""

from __future__ import annotations

import dataclasses

import pytest

from streamkm.distributed.joining import Card, check_cards, first_host, local_device, variables
from streamkm.errors import ConfigError, DeviceError
from tests.distributed.launched import by_hand, script, torchrun

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

# ---- the environment --------------------------------------------------------


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


# ---- devices ----------------------------------------------------------------


def test_each_process_gets_a_gpu(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    assert [local_device(name, 3) for name in ("auto", "cuda", "cuda:1", "cpu")] == [
        "cuda:3", "cuda:3", "cuda:1", "cpu",
    ]  # fmt: skip
    # Slurm shows each process the GPU that it has got.
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    assert local_device("auto", 3) == "cuda:0"
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert local_device("auto", 3) == "auto"


CARD = Card("n1", 0, "auto", "cuda", "GPU-a", "1.0", "2.13", "")


def change(**what):
    return dataclasses.replace(CARD, **what)


@pytest.mark.parametrize(
    ("cards", "error", "message"),
    [
        ([CARD, change(gpu="GPU-b"), change(host="n2", gpu="GPU-c")], None, ""),
        ([change(gpu=None)] * 2, None, ""),
        (
            [CARD, change(gpu="GPU-b"), change(device="cuda:0")],
            DeviceError,
            (
                "--device cuda:0: processes 0 and 2 on n1 would share one GPU; start one process "
                "for each GPU of a machine, and use --device cuda"
            ),
        ),
        (
            [CARD, change(host="n2", device_type="cpu", gpu=None)],
            ConfigError,
            (
                "all processes of a run need the same type of device: rank 0 on n1 has cuda, "
                "rank 1 on n2 has cpu; start them with the same command, data and versions"
            ),
        ),
        (
            [CARD, change(gpu="GPU-b", streamkm="1.1")],
            ConfigError,
            (
                "all processes of a run need the same version of streamkm: rank 0 on n1 has 1.0, "
                "rank 1 on n1 has 1.1; start them with the same command, data and versions"
            ),
        ),
        ([CARD, change(gpu="GPU-b", torch="2.11")], ConfigError, None),
    ],
)
def test_processes_that_cannot_work_together_are_refused(cards, error, message):
    if error is None:
        check_cards(cards)
        return
    with pytest.raises(error) as caught:
        check_cards(cards)
    assert message is None or caught.value.for_command_line == message


# ---- the waiting room -------------------------------------------------------

MEET = """
def main():
    with joined("cpu", float(os.environ.get("TIMEOUT", "20"))) as w:
        n = torch.tensor([1])
        w.sum_(n)
        print(f"{n.item()} came\\n", end="", flush=True)

ends(main)
"""


def test_one_alone_says_for_whom_it_waits(tmp_path):
    waiting = script(tmp_path, MEET)
    first, last = by_hand(waiting, [0, 3], 4, TIMEOUT="2")
    said = sorted([first.said, last.said])
    # It is told once, by the one whose time ran out first.
    assert said[0] == ""
    assert "waited 2 s at 127.0.0.1:" in said[1]
    assert "for 2 of 4 processes: number 1, 2 did not come; start them all, or unset" in said[1]
    assert said[1].count("\n") == 1
    assert first.status == last.status == 1


def test_a_process_without_process_0_says_so(tmp_path):
    (end,) = by_hand(script(tmp_path, MEET), [1], 2, TIMEOUT="2")
    assert "for 1 of 2 processes: number 0 did not come" in end.said
    assert end.said.count("\n") == 1
    assert (end.status, end.after_s < 15) == (1, True)


def test_two_of_one_number_are_refused(tmp_path):
    ends = by_hand(script(tmp_path, MEET), [0, 1, 1], 3)
    assert [end.status for end in ends] == [2, 2, 2]
    said = [end.said for end in ends if end.said]
    assert len(said) == 1
    assert "two processes say that they are number 1 of 3" in said[0]


def test_a_port_in_use_is_named(tmp_path):
    (end,) = by_hand(
        script(tmp_path, """
            import socket
            def main():
                with socket.socket() as taken:
                    taken.bind(("", int(os.environ["MASTER_PORT"])))
                    taken.listen()
                    with joined("cpu", 5):
                        pass
            ends(main)
        """),
        [0],
        2,
    )  # fmt: skip
    assert end.status == 2
    assert "cannot be used on" in end.said
    assert end.said.count("\n") == 1


# The store of the agent outlives an attempt: what the first one left must not let anybody in.
def test_processes_that_are_started_again_meet_again(tmp_path):
    done = torchrun(
        2,
        script(tmp_path, MEET + """
if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
    os.kill(os.getpid(), signal.SIGKILL)
print("again\\n", end="", flush=True)
"""),
        "--max-restarts", "1",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("2 came") == 4
    assert done.stdout.count("again") == 2
