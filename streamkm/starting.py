"""Starts the processes of a command, or joins those that torchrun or Slurm has started.

Imports torch only if there are several processes, or may be.
"""

from __future__ import annotations

import logging
import os
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from streamkm.errors import ConfigError, ElsewhereError, Interrupted, Option

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from streamkm.config import ExecutionConfig

__all__ = ["n_to_start", "of_first", "processes"]

#: Variables of a process that is one of several.
STARTED_WITH = {"WORLD_SIZE", "RANK", "SLURM_STEP_ID"}


def n_to_start(execution: ExecutionConfig) -> int:
    """How many processes to start that run the same command; 1 for none, which is the default.

    Raises
    ------
    ConfigError
        If ``--processes`` is given to a process that torchrun or Slurm has started.
    """
    # Processes that streamkm has started have the same arguments.
    is_started_here = os.environ.get("TORCHELASTIC_RUN_ID") == f"streamkm-{os.getppid()}"
    if execution.processes == "1" or is_started_here:
        return 1
    if os.environ.keys() & STARTED_WITH:
        from streamkm.distributed.seats import variables

        if (seat := variables(os.environ)) is not None:
            name = "WORLD_SIZE" if "RANK" in os.environ else "SLURM_NTASKS"
            raise ConfigError(
                Option("processes", execution.processes),
                f" starts processes, and {name}={seat.size} says that torchrun or srun has done "
                "so; leave one of them out",
            )
    if execution.processes != "auto":
        return int(execution.processes)
    if execution.device == "cpu":
        return 1
    from torch.cuda import device_count

    return max(device_count(), 1)


def of_first(shared: dict[str, Any], read: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What the first process reads, in all of them; `shared` is as `processes` yields it."""
    if not shared:
        return read()
    world = shared["world"]
    found: dict[str, Any] = world.gather(read() if world.is_first else None)[0]
    return found


@contextmanager
def processes(execution: ExecutionConfig) -> Iterator[tuple[ExecutionConfig, dict[str, Any]]]:
    """Join the other processes of the run, if torchrun or Slurm has started any.

    Yields the settings with the device of this process, and the argument ``world`` of a command;
    without other processes no argument, for which torch would have to be imported.
    """
    if not os.environ.keys() & STARTED_WITH:
        yield execution, {}
        return
    from streamkm.distributed.cards import local_device
    from streamkm.distributed.joining import joined

    stopped: Interrupted | None = None
    try:
        with joined(execution.device, execution.process_timeout) as world:
            if not world.is_first:
                logging.getLogger().setLevel(logging.CRITICAL)
            if world.size > 1:
                device = local_device(execution.device, world.local_rank)
                execution = replace(execution, device=device)
            try:
                yield execution, {"world": world}
            except Interrupted as error:
                # All stop together; the first process says so.
                stopped = error if world.is_first else Interrupted()
                raise stopped from error
    except ElsewhereError:
        if stopped is not None:  # Another process was the first to tell that it stops.
            raise stopped from None
        raise
