"""Checks at the start that all processes of a run see what they must see.

Processes on several machines may be given one path and find two disks. What is written to the
wrong one is missed hours later.
"""

from __future__ import annotations

import time
import uuid
from typing import TYPE_CHECKING

from streamkm.errors import ConfigError, Option, RunError
from streamkm.files import discard, write_durably
from streamkm.runs.storage.run_folder import CONFIG

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from streamkm.distributed.world import World

__all__ = ["check_one_run", "check_shared"]

#: Seconds that a file system may take to show the first process what another one has written.
SHOWN_S = 3.0
#: Seconds between two looks.
LOOK_S = 0.05


def check_shared(folders: Sequence[Path], world: World) -> None:
    """Refuse folders in which not all processes can write what the first one sees; a collective.

    Each process leaves a token in every folder, and the first looks for all of them.

    Parameters
    ----------
    folders : sequence of Path
        The same in all processes, each by its own path.

    Raises
    ------
    ConfigError
        The same in all processes: it names the process, its machine and the folder.
    """
    if world.size == 1 or not folders:
        return
    world.meet()  # The first process has looked up what is written already.
    nonce = world.gather(uuid.uuid4().hex[:12])[0]
    tokens = [[f / f".streamkm-{nonce}-{rank}" for rank in range(world.size)] for f in folders]
    mine = [row[world.rank] for row in tokens]
    try:
        refusals = world.gather([_refusal(token) for token in mine])
        # Of each folder the ranks that the first process does not hear of.
        unseen = world.gather([_unseen(row) for row in tokens] if world.is_first else None)[0]
    finally:
        discard(*mine)
    for number, ranks in enumerate(unseen):
        for rank in ranks:
            path, refusal = refusals[rank][number]
            first = refusals[0][number][0]
            why = f"is not the {first} of process 0 on {world.hosts[0]}"
            why = f"cannot be written ({refusal})" if refusal else why
            raise ConfigError(
                f"the folder of the output must be one that all processes share: {path} of process "
                f"{rank} on {world.hosts[rank]} {why}; choose a folder on a disk that all see, or "
                "write .parquet, which process 0 writes alone"
            )


def _refusal(token: Path) -> tuple[str, str]:
    """The folder of `token`, and why it cannot be left there; "" if it can."""
    folder = str(token.parent.absolute())
    try:
        write_durably(token)
    except OSError as error:
        return folder, error.strerror or str(error)
    return folder, ""


def _unseen(tokens: list[Path]) -> list[int]:
    """Numbers of the tokens that do not show up."""
    deadline = time.monotonic() + SHOWN_S
    while True:
        unseen = [rank for rank, token in enumerate(tokens) if not token.exists()]
        if not unseen or time.monotonic() > deadline:
            return unseen
        time.sleep(LOOK_S)


def check_one_run(run_dir: Path, world: World) -> None:
    """Refuse to begin a run anew beside one that only other processes see; a collective.

    After a restart another machine may have process 0, which alone uses the run folder.

    Raises
    ------
    RunError
        The same in all processes.
    """
    world.meet()
    seen = world.gather([str(run_dir.absolute()), (run_dir / CONFIG).exists()])
    path, is_there = seen[0]
    others = [rank for rank, (_, there) in enumerate(seen) if there and not is_there]
    for rank in others:
        raise RunError(
            f"process {rank} on {world.hosts[rank]} sees a run in {seen[rank][0]} to go on with, "
            f"process 0 on {world.hosts[0]} sees none in {path}; give all the same ",
            Option("run_dir"),
            f" on a disk that they share, or let process 0 run on {world.hosts[rank]}",
        )
