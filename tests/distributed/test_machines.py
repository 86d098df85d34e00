"""Fits over two machines, whose link is cut, slow or away for a while."""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import zarr

from tests.distributed.launched import MEET, script
from tests.distributed.machines import ADDRESSES, Pair, children, why_not
from tests.runs.helpers import RESULTS, cli, clusters, steps_saved
from tests.runs.processes import finish, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from subprocess import Popen

TIMEOUT_S = 6
#: Passes for a second at least, and a checkpoint after the seeding.
OPTIONS = (
    "--k", 64, "--algorithm", "lloyd", "--init", "random", "--tol", 0, "--epochs", 60,
    "--batch-rows", 2000, "--scale", "zscore", "--device", "cpu",
    "--process-timeout", TIMEOUT_S, "--checkpoint-every", 10, "--resume",
)  # fmt: skip
TORCHRUN = (sys.executable, "-m", "torch.distributed.run")


@pytest.fixture
def pair(tmp_path) -> Iterator[Pair]:
    if reason := why_not():
        pytest.skip(reason)
    etc = tmp_path / "etc"
    etc.mkdir()
    with Pair(etc) as pair:
        yield pair


@pytest.fixture(scope="module")
def x(tmp_path_factory) -> Path:
    path: Path = tmp_path_factory.mktemp("x") / "x.zarr"
    array = zarr.create_array(path, shape=(60_000, 8), chunks=(1000, 8), dtype="f4")
    array[:] = clusters(60_000, 8, n_clusters=40)
    return path


@pytest.fixture(scope="module")
def whole(x) -> dict[str, bytes]:
    """What one process ends with."""
    out = x.parent / "whole"
    assert cli("fit", x, *OPTIONS, "--out", out) == 0
    return results(out)


def results(out: Path) -> dict[str, bytes]:
    return {name: (out / name).read_bytes() for name in RESULTS}


def by_hand(rank: int) -> dict[str, str]:
    place = {"MASTER_ADDR": "left", "MASTER_PORT": "29500"}
    return {"RANK": str(rank), "LOCAL_RANK": "0", "WORLD_SIZE": "2", **place}


def by_srun(rank: int) -> dict[str, str]:
    job = {"SLURM_JOB_ID": "4711", "SLURM_STEP_ID": "0", "SLURM_STEP_NODELIST": "left,right"}
    return {"SLURM_PROCID": str(rank), "SLURM_LOCALID": "0", "SLURM_NTASKS": "2", **job}


def started(
    pair: Pair, x: Path, out: Path, variables: Callable[[int], dict[str, str]] = by_hand
) -> list[Popen[str]]:
    """A fit with a process on each machine; the second one does not see the run folder."""
    processes = []
    for rank, machine in enumerate(pair):
        words = ("-m", "streamkm", "fit", x, *OPTIONS, "--out", out if rank == 0 else "none")
        folder = out.parent / str(rank)
        folder.mkdir(exist_ok=True)
        processes.append(machine.start(folder, sys.executable, *words, **variables(rank)))
    return processes


def has_saved(out: Path) -> Callable[[], bool]:
    return lambda: bool(steps_saved(out))


def error_of(stderr: str) -> str:
    """The one line of streamkm's that says why it failed."""
    (line,) = (line for line in stderr.splitlines() if line.startswith("streamkm: "))
    return line


# The second one has the variables that Kubeflow's operator sets in a pod.
def test_torchrun_on_two_machines_gives_the_bytes_of_one_process(pair, x, whole, tmp_path):
    out = tmp_path / "run"
    place = ("--nnodes", 2, "--master-addr", "left", "--master-port", 29500, "--node-rank", 0)
    words = ("-m", "streamkm", "fit", x, *OPTIONS, "--out", out)
    pod = {"PET_NNODES": "2", "PET_NODE_RANK": "1", "PET_NPROC_PER_NODE": "1"}
    pod |= {"PET_MASTER_ADDR": "left", "PET_MASTER_PORT": "29500"}
    agents = [
        pair.left.start(tmp_path, *TORCHRUN, "--nproc-per-node", 1, *place, *words),
        pair.right.start(tmp_path, *TORCHRUN, *words, **by_hand(1), **pod),
    ]
    ended = [finish(agent) for agent in agents]
    assert [status for status, _ in ended] == [0, 0], ended
    assert "on 2 processes (left: 1, right: 1)" in ended[0][1]
    assert results(out) == whole


# Breaks when gloo listens where the name of a machine leads: to the machine itself, as on Debian,
# or nowhere.
@pytest.mark.parametrize("names", ["127.0.1.1 left\n127.0.1.1 right\n", ""])
def test_the_name_of_a_machine_need_not_lead_to_it(names, pair, tmp_path):
    pair.hosts.write_text("127.0.0.1 localhost\n" + names)
    path = script(tmp_path, MEET)
    here = by_hand(0) | {"MASTER_ADDR": "left" if names else ADDRESSES["left"]}
    there = by_hand(1) | {"MASTER_ADDR": ADDRESSES["left"]}
    processes = [
        machine.start(tmp_path, sys.executable, path, **variables)
        for machine, variables in zip(pair, (here, there), strict=True)
    ]
    said = [process.communicate(timeout=60) for process in processes]
    assert [out for out, _ in said] == ["2 came\n"] * 2, said


def test_machines_that_cannot_connect_are_told_why(pair, tmp_path):
    path = script(tmp_path, MEET)
    more = {"GLOO_SOCKET_IFNAME": "lo", "TIMEOUT": "4"}
    processes = [
        machine.start(tmp_path, sys.executable, path, **by_hand(rank), **more)
        for rank, machine in enumerate(pair)
    ]
    # The other one waits for 20 s in gloo.
    wait_until(lambda: any(process.poll() is not None for process in processes), processes[0])
    first = next(process for process in processes if process.poll() is not None)
    status, stderr = finish(first)
    assert status == 1
    assert re.match(
        r"streamkm: process [01] of 2 on (left|right) cannot connect to the others \([^/]*refused",
        error_of(stderr),
    )


# Breaks when a process waits for a link without end, blames itself, or names no machine; or when
# what the first machine has saved is of no use to two others.
@pytest.mark.slow
def test_a_cut_link_ends_all_and_the_run_goes_on(pair, x, whole, tmp_path):
    out = tmp_path / "run"
    processes = started(pair, x, out)
    assert wait_until(has_saved(out), processes[0])
    pair.cut()
    begin = time.monotonic()
    ended = [finish(process) for process in processes]
    assert time.monotonic() - begin < TIMEOUT_S + 30
    assert [status for status, _ in ended] == [1, 1], ended
    assert [error_of(stderr).partition("; ")[0] for _, stderr in ended] == [
        "streamkm: process 1 of 2 on right died, was stopped or lost the link",
        "streamkm: process 0 of 2 on left does not answer: it was killed, or the link is down",
    ]
    pair.mend()
    ended = [finish(process) for process in started(pair, x, out, by_srun)]
    assert [status for status, _ in ended] == [0, 0], ended
    assert "resumed: from step-" in ended[0][1]
    assert results(out) == whole
    assert not (tmp_path / "1/none").exists()


#: Both work by themselves, and look now and then whether all is well.
LOOKING = """
def main():
    with joined("cpu", 4) as w:
        w.barrier()
        Path(f"joined-{w.rank}").touch()
        until = time.monotonic() + 60
        while time.monotonic() < until:
            w.check()
            time.sleep(0.05)

ends(main)
"""


# Breaks when a cut link is noticed only after what each does by itself, such as seeding.
def test_a_cut_link_is_noticed_amid_work(pair, tmp_path):
    path = script(tmp_path, "from pathlib import Path\n" + LOOKING)
    processes = [
        machine.start(tmp_path, sys.executable, path, **by_hand(rank))
        for rank, machine in enumerate(pair)
    ]
    assert wait_until(lambda: len(list(tmp_path.glob("joined-*"))) == 2, processes[0])
    pair.cut()
    ended = [finish(process) for process in processes]
    assert [status for status, _ in ended] == [1, 1], ended
    assert [error_of(stderr).partition("; ")[0] for _, stderr in ended] == [
        "streamkm: process 1 of 2 on right died, was stopped or lost the link",
        "streamkm: process 0 of 2 on left does not answer: it was killed, or the link is down",
    ]


# Breaks when machines cannot write one output together, or write two that are each a half.
def test_two_machines_write_one_output(pair, x, whole, tmp_path):
    run = x.parent / "whole"
    assert whole
    assert cli("predict", run, x, "--labels", tmp_path / "alone.npy", "--device", "cpu") == 0

    def predict(*labels: Path) -> list[tuple[int, str]]:
        words = ("-m", "streamkm", "predict", run, x, "--device", "cpu", "--labels")
        processes = [
            machine.start(tmp_path, sys.executable, *words, path, **by_hand(rank))
            for (rank, machine), path in zip(enumerate(pair), labels, strict=True)
        ]
        return [finish(process) for process in processes]

    both = tmp_path / "both.npy"
    ended = predict(both, both)
    assert [status for status, _ in ended] == [0, 0], ended
    assert both.read_bytes() == (tmp_path / "alone.npy").read_bytes()
    apart = [tmp_path / name / "labels.npy" for name in ("one", "other")]
    for path in apart:
        path.parent.mkdir()
    ended = predict(*apart)
    assert [status for status, _ in ended] == [2, 2], ended
    (error,) = re.findall(r"^streamkm: .*$", "".join(said for _, said in ended), re.MULTILINE)
    assert f"{apart[1].parent} of process 1 on right is not the {apart[0].parent} of " in error
    assert not any(list(path.parent.iterdir()) for path in apart)


# Breaks when a link that is slow, or away for less than a process has to answer, ends a run.
@pytest.mark.parametrize(
    "discipline",
    [
        ("tbf", "rate", "4mbit", "burst", "16kb", "latency", "1s"),
        ("netem", "delay", "20ms", "5ms"),
        (),
    ],
    ids=["throttled", "delayed", "away"],
)
def test_a_link_that_is_slow_changes_nothing(discipline, pair, x, whole, tmp_path):
    out = tmp_path / "run"
    if reason := pair.queue(*discipline):
        pytest.skip(reason)
    pair.queue()
    processes = started(pair, x, out)
    assert wait_until(has_saved(out), processes[0])
    pair.queue(*discipline)
    if not discipline:
        pair.cut()
        time.sleep(TIMEOUT_S / 4)
        pair.mend()
    ended = [finish(process) for process in processes]
    assert [status for status, _ in ended] == [0, 0], ended
    assert results(out) == whole


def elastic(pair: Pair, x: Path, out: Path, rank: int, **more: str) -> Popen[str]:
    """torchrun's agent on one machine, of which there may be one or two."""
    # Else it waits 30 s for more machines, and 15 s for one that is silent.
    patience = "last_call_timeout=2,keep_alive_interval=2"
    place = (
        "--nnodes", "1:2", "--rdzv-backend", "c10d", "--rdzv-endpoint", "left:29500",
        "--rdzv-id", "fit", "--rdzv-conf", patience, "--max-restarts", 3, "--nproc-per-node", 1,
    )  # fmt: skip
    words = ("-m", "streamkm", "fit", x, *OPTIONS, "--out", out)
    return (pair.left, pair.right)[rank].start(out.parent, *TORCHRUN, *place, *words, **more)


# Breaks when processes that have lost others do not end, or cannot meet again as fewer.
@pytest.mark.slow
def test_an_elastic_run_goes_on_with_the_machine_that_is_left(pair, x, whole, tmp_path):
    out = tmp_path / "run"
    agents = [elastic(pair, x, out, rank) for rank in range(2)]
    assert wait_until(has_saved(out), agents[0])
    pair.right.kill()
    status, stderr = finish(agents[0], 120)
    assert status == 0, stderr
    assert error_of(stderr).startswith("streamkm: process 1 of 2 on right died, ")
    assert stderr.count("on 2 processes (left: 1, right: 1)") == 1
    assert "resumed: from step-" in stderr
    assert results(out) == whole


# Breaks when the processes cannot meet again as more: the agent ends those there are with SIGTERM.
@pytest.mark.slow
def test_an_elastic_run_takes_in_a_machine_that_comes_later(pair, x, whole, tmp_path):
    out = tmp_path / "run"
    # Else the agents of torch 2.13 wait for each other without end.
    alone = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    first = elastic(pair, x, out, 0, **alone)
    assert wait_until(has_saved(out), first)
    (agent,) = children(first.pid)
    (worker,) = children(agent)
    os.kill(worker, signal.SIGSTOP)  # It must not be done before.
    second = elastic(pair, x, out, 1, **alone)
    assert wait_until(lambda: is_pending(signal.SIGTERM, worker), second)
    os.kill(worker, signal.SIGCONT)
    (status, stderr), (other, _) = finish(first), finish(second)
    assert (status, other) == (0, 0), stderr
    assert error_of(stderr).startswith("streamkm: stopped by SIGTERM; ")
    assert "on 2 processes (left: 1, right: 1)" in stderr
    assert "resumed: from step-" in stderr
    assert results(out) == whole


def is_pending(number: signal.Signals, process: int) -> bool:
    """Whether a stopped process has been sent a signal."""
    pending = re.search(r"^ShdPnd:\s*(\w+)", Path(f"/proc/{process}/status").read_text(), re.M)
    return pending is not None and bool(int(pending[1], 16) >> number - 1 & 1)
