"""Starts the processes of a run on this machine, for those who do not want to know of torchrun.

torch.distributed starts them, by the function that torchrun's agent uses. The agent itself is left
out: after a signal it drops the statuses of its processes, and 75 must come through.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TYPE_CHECKING

from torch.distributed import TCPStore  # type: ignore[attr-defined]  # offered, not declared
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, start_processes

from streamkm.errors import InputError, Interrupted, Option, ProcessLostError
from streamkm.machine import n_cores

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from types import FrameType

__all__ = ["launch"]

#: Signals that are for the processes rather than for who started them.
PASSED_ON = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGUSR1,
    signal.SIGUSR2,
)
#: Seconds between two looks at the processes.
LOOK_S = 0.05
LOCALHOST = "127.0.0.1"


def launch(n_processes: int, argv: Sequence[str]) -> int:
    """Run Python `n_processes` times on this machine, as the processes of one run.

    Each uses its share of the cores, unless ``OMP_NUM_THREADS`` is set. Signals are passed on to
    all of them. Once one process fails the others get a SIGTERM, and 30 s later a SIGKILL.

    Parameters
    ----------
    n_processes : int
        How many; at least 1.
    argv : sequence of str
        Arguments of Python, such as ``["-m", "streamkm", "fit", ...]``.

    Returns
    -------
    int
        The exit status: 0 if all ended with 0; else 2, 1 or 75, the first of these that a process
        ended with; 1 for any other.

    Raises
    ------
    ProcessLostError
        If no process ended by itself, so that none can have said why.
    """
    # Here the store outlives process 0, and its port is free for certain.
    store = TCPStore(LOCALHOST, 0, is_master=True, wait_for_workers=False, timeout=timedelta(60))
    shared = {
        "WORLD_SIZE": str(n_processes),
        "LOCAL_WORLD_SIZE": str(n_processes),
        "MASTER_ADDR": LOCALHOST,
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RUN_ID": f"streamkm-{os.getpid()}",
        # Else C++ prints a traceback for each connection that closes.
        "TORCH_CPP_LOG_LEVEL": os.environ.get("TORCH_CPP_LOG_LEVEL", "ERROR"),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, n_cores() // n_processes))),
    }
    ranks = range(n_processes)
    # The processes say themselves why they end.
    logging.getLogger("torch.distributed.elastic.multiprocessing.api").setLevel(logging.CRITICAL)
    with _handlers_kept():
        context = start_processes(
            name="streamkm",
            entrypoint=sys.executable,
            args={rank: tuple(argv) for rank in ranks},
            envs={rank: {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in ranks},
            logs_specs=DefaultLogsSpecs(log_dir=os.devnull),
        )
        _pass_on(context.pids().values())
        result = context.wait(period=LOOK_S)
    codes = {rank: failure.exitcode for rank, failure in result.failures.items()} if result else {}
    if codes and max(codes.values()) < 0:
        rank = next(iter(codes))  # The first that was seen to end.
        name = signal.Signals(-codes[rank]).name
        raise ProcessLostError(
            f"process {rank} of {n_processes} was ended by {name}; continue with ",
            Option("resume", value=True),
        )
    return _status(codes.values())


@contextmanager
def _handlers_kept() -> Iterator[None]:
    """Put the handlers of signals back at the end: torch sets some of its own."""
    before = {number: signal.getsignal(number) for number in (*PASSED_ON, signal.SIGQUIT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _pass_on(processes: Iterable[int]) -> None:
    """Pass signals on to `processes` from now on."""

    def send(number: int, _frame: FrameType | None) -> None:
        for process in processes:
            with suppress(ProcessLookupError):
                os.kill(process, number)

    for number in PASSED_ON:
        signal.signal(number, send)


def _status(codes: Iterable[int]) -> int:
    """One exit status for all processes; a code below 0 is a signal that ended one."""
    found = set(codes)
    if not found:
        return 0
    for status in (InputError.exit_status, 1, Interrupted.exit_status):
        if status in found:
            return status
    return 1
