"""What the environment says of the processes of this run: variables of torchrun and of Slurm."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from streamkm.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Seat", "variables"]

#: Slurm numbers steps from 0. Those above are its own: the batch script, an interactive shell.
FIRST_SPECIAL_STEP = 0xFFFFFFF0


@dataclass(frozen=True)
class Seat:
    """What a process is told by who started it."""

    rank: int
    size: int
    local_rank: int
    address: str
    """Machine where the store of the run is."""
    port: int
    is_store_outside: bool
    """Whether the launcher holds the store; otherwise process 0 does."""
    has_launcher: bool
    """Whether the process that started this one waits for it."""


def variables(environ: Mapping[str, str]) -> Seat | None:
    """What the environment says of the processes of this run; None for one process alone.

    Variables of torchrun come first. Those of Slurm are for a step that srun started with several
    tasks; a batch script has some of them too, but is one process.

    Raises
    ------
    ConfigError
        If variables are missing or contradict each other.
    """
    if "RANK" in environ or "WORLD_SIZE" in environ:
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
        for name in names[:2]:
            if name not in environ:
                has = "WORLD_SIZE" if name == "RANK" else "RANK"
                raise ConfigError(
                    f"{has}={environ[has]} is set without {name}: start the processes with "
                    f"torchrun, which sets both, or unset {has}"
                )
    elif _is_step(environ):
        names = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID")
    else:
        return None
    rank, size, local_rank = (_number(environ, name) for name in names)
    if rank >= size:
        raise ConfigError(
            f"{names[0]}={rank} is not below {names[1]}={size}: processes are numbered from 0; "
            "start them with torchrun or srun, which number them"
        )
    if size == 1:
        return None
    address, port = _meeting_point(environ, is_slurm=names[0] != "RANK")
    return Seat(
        rank,
        size,
        local_rank,
        address,
        port,
        is_store_outside=environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
        has_launcher="TORCHELASTIC_RUN_ID" in environ,
    )


def _is_step(environ: Mapping[str, str]) -> bool:
    step = environ.get("SLURM_STEP_ID", "")
    is_step = step.isdecimal() and int(step) < FIRST_SPECIAL_STEP
    return is_step and environ.get("SLURM_NTASKS", "1") != "1" and "SLURM_PROCID" in environ


def _number(environ: Mapping[str, str], name: str) -> int:
    text = environ.get(name, "0")
    if not text.isdecimal():
        raise ConfigError(f"{name}={text} is no number from 0 on: torchrun and srun set it")
    return int(text)


def _meeting_point(environ: Mapping[str, str], *, is_slurm: bool) -> tuple[str, int]:
    """Machine and port of the store."""
    address = environ.get("MASTER_ADDR", "")
    port = _number(environ, "MASTER_PORT")
    if is_slurm:
        nodes = environ.get("SLURM_STEP_NODELIST") or environ.get("SLURM_JOB_NODELIST", "")
        # Process 0 is on the first machine of the step.
        address = address or first_host(nodes) or environ.get("SLURM_LAUNCH_NODE_IPADDR", "")
        port = port or 20000 + _number(environ, "SLURM_JOB_ID") % 20000
    if not address or not 0 < port < 65536:
        raise ConfigError(
            f"MASTER_ADDR={address} and MASTER_PORT={environ.get('MASTER_PORT', '')} must name a "
            "machine and a port where the processes meet: torchrun sets both"
        )
    return address, port


def first_host(nodes: str) -> str:
    """The first machine of a list of Slurm's, such as ``gpu[03-05,9],login``."""
    match = re.match(r"(?:[^,\[]|\[[^\]]*\])*", nodes)
    return re.sub(r"\[(\d+)[^\]]*\]", r"\1", match[0] if match else "")
