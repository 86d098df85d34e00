"""Real processes for tests: a script under torchrun, or started by hand."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from textwrap import dedent
from typing import TextIO

from tests.forked import Forked, command

ROOT = Path(__file__).resolve().parents[2]
#: torch asks the name server for the name of who connects. One that is slow would cost more time
#: than these processes have to answer.
RES_OPTIONS = "timeout:1 attempts:1"

#: What every script begins with. An error ends it as the command line would. These runs take a
#: second: so do those who look for a process that is lost.
HEAD = """
import os, signal, sys, time
import torch
import torch.distributed as dist
from streamkm.distributed.joining import joined
from streamkm.distributed.current import world
from streamkm.distributed.world import ALONE, World
from streamkm.distributed import board
from streamkm.errors import *

board.BEAT_S, board.SILENCE_S, board.ANSWER_S, board.LINGER_S = 0.2, 1.5, 2.5, 2.5

def ends(main, *arguments):
    try:
        main(*arguments)
    except ElsewhereError as error:
        os._exit(error.exit_status)
    except StreamkmError as error:
        print("streamkm: " + error.for_command_line, file=sys.stderr, flush=True)
        os._exit(error.exit_status)
"""

#: A script that meets the others, within seconds that the environment gives.
MEET = """
def main():
    with joined("cpu", float(os.environ.get("TIMEOUT", "20"))) as w:
        n = torch.tensor([1])
        w.sum_(n)
        print(f"{n.item()} came\\n", end="", flush=True)

ends(main)
"""


def script(folder: Path, body: str) -> Path:
    path = folder / "script.py"
    path.write_text(HEAD + dedent(body))
    return path


def environment(**more: str) -> dict[str, str]:
    """This process's, without what a launcher or a batch system would have set."""
    foreign = ("SLURM_", "RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_", "TORCHELASTIC_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    here = {
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "TORCH_CPP_LOG_LEVEL": "ERROR",
        "RES_OPTIONS": RES_OPTIONS,
    }
    return {**kept, **here, **more}


def torchrun(
    n_processes: int, path: Path, *options: str, timeout: float = 60
) -> subprocess.CompletedProcess[str]:
    """Run a script on several processes of this machine."""
    variables = environment(TMPDIR=str(path.parent))  # torchrun leaves folders there
    python = command(variables)
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(n_processes)]
    return subprocess.run(
        [*python, *words, "--redirects", "0", *options, "--no-python", *python, str(path)],
        env=variables,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


@dataclass(frozen=True)
class End:
    """How a process ended."""

    status: int
    said: str
    after_s: float
    """Seconds after the start of all."""


#: Ports that no other process takes meanwhile: below those that the system hands out, and apart for
#: each worker of pytest.
FIRST_PORT = 12_000 + 1_000 * int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:])
_ports = cycle(range(FIRST_PORT, FIRST_PORT + 1_000))


def free_port() -> int:
    for port in islice(_ports, 1_000):
        with socket.socket() as listener, suppress(OSError):
            listener.bind(("", port))
            return port
    raise OSError(f"no free port from {FIRST_PORT} on")


def by_hand(
    path: Path, ranks: list[int], size: int, *, timeout: float = 60, **more: str
) -> list[End]:
    """Start processes of these ranks without a launcher: number 0 holds the store.

    One that is stopped is killed once it is the last.
    """
    # More than one, for scripts that join again.
    ports = [str(free_port()) for _ in range(8)]
    begin = time.monotonic()
    children: list[tuple[Forked, TextIO]] = []
    for rank in ranks:
        variables = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
        variables |= {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": ports[0],
            "PORTS": " ".join(ports),
            **more,
        }
        out = path.with_name(f"said-{len(children)}").open("w+")
        child = Forked([path], environment=environment(**variables), output=out)
        children.append((child, out))
    ends: dict[int, float] = {}
    while len(ends) < len(children) and time.monotonic() - begin < timeout:
        for index, (child, _) in enumerate(children):
            if index not in ends and child.poll() is not None:
                ends[index] = time.monotonic() - begin
        left = [index for index in range(len(children)) if index not in ends]
        if len(left) == 1 and is_stopped(children[left[0]][0].pid):
            children[left[0]][0].kill()
        time.sleep(0.02)
    found = []
    for index, (child, log) in enumerate(children):
        child.kill()
        status = child.wait()
        log.seek(0)
        found.append(End(status, log.read(), ends.get(index, timeout)))
        log.close()
    return found


def is_stopped(process: int) -> bool:
    try:
        status = Path(f"/proc/{process}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):  # It ended just now.
        return False
    return status.rpartition(")")[2].split()[0] == "T"
