"""Joins the processes that torchrun, Slurm or `streamkm.distributed.launching` has started."""

from __future__ import annotations

import os
import socket
import time
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, NamedTuple

import torch.distributed as dist
from torch.distributed import TCPStore  # type: ignore[attr-defined]  # offered, not declared
from torch.distributed.distributed_c10d import PrefixStore

from streamkm.distributed.board import PROCESS_TIMEOUT_S, Board, within
from streamkm.distributed.cards import Card, check_cards, fill_in
from streamkm.distributed.current import remember
from streamkm.distributed.seats import Seat, variables
from streamkm.distributed.waiting_room import WaitingRoom, absent
from streamkm.distributed.world import ALONE, World
from streamkm.errors import ConfigError, ProcessLostError, StreamkmError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["joined"]

#: Seconds between two tries to reach the store.
LOOK_S = 0.02


@contextmanager
def joined(device: str = "auto", timeout_s: float = PROCESS_TIMEOUT_S) -> Iterator[World]:
    """Connect the processes of this run for the ``with`` block.

    It yields `ALONE` if the environment names no other processes. An error that leaves the block
    is told to the others.

    Parameters
    ----------
    device : str
        What ``--device`` says. `local_device` gives the device of this process.
    timeout_s : float
        Seconds after which a process that does not answer counts as lost.
    """
    seat = variables(os.environ)
    if seat is None:
        yield ALONE
        return
    card = fill_in(seat, device)
    met = _meet(seat, card, timeout_s)
    hosts = [other.host for other in met.cards]
    board = Board(
        PrefixStore(f"{met.room}/board", met.client),
        seat.rank,
        hosts,
        held=None if seat.is_store_outside or seat.rank else met.store,
        holder=_holder(seat) if seat.is_store_outside else None,
        timeout_s=timeout_s,
        may_end=True,
        launcher=os.getppid() if seat.has_launcher else None,
    )
    apart = World(seat.rank, seat.local_rank, hosts, board=board)
    with apart.telling():
        check_cards(met.cards)
        with apart.waiting():
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if card.gpu else "gloo",
                store=PrefixStore(f"{met.room}/group", met.store),
                rank=seat.rank,
                world_size=seat.size,
                timeout=timedelta(seconds=timeout_s),
            )
    world = World(
        seat.rank,
        seat.local_rank,
        hosts,
        group=dist.group.WORLD,
        board=board,
        is_alike=len({other.processor for other in met.cards}) == 1,
    )
    remember(world)
    with world.telling():
        yield world
        world.meet()  # One may still be writing.
    world.close()


class _Meeting(NamedTuple):
    """What a process has once all have met."""

    store: TCPStore
    client: TCPStore
    """A connection of its own for the board, whose thread may be waiting on it."""
    room: str
    cards: list[Card]


def _meet(seat: Seat, card: Card, timeout_s: float) -> _Meeting:
    """Open the store and meet the others, in a bounded time.

    A call to a store whose process is stopped never returns. Opening the store, waiting for the
    others and telling who is missing take `timeout_s` each at most.
    """

    def meet() -> _Meeting | StreamkmError:
        try:
            store = _open_store(seat, timeout_s)
            room, cards = WaitingRoom(store, seat, card, timeout_s).wait()
            limit = timedelta(seconds=timeout_s)
            client = TCPStore(seat.address, seat.port, is_master=False, timeout=limit)
            return _Meeting(store, client, room, cards)
        except StreamkmError as error:
            return error

    for found in within(3 * timeout_s, meet):
        if isinstance(found, StreamkmError):
            raise found
        return found
    raise ProcessLostError(
        f"{_holder(seat)} went away or does not answer while process {seat.rank} waited for the "
        "others; start them all again"
    )


def _holder(seat: Seat) -> str:
    """Who holds the store, in words."""
    name = "the launcher" if seat.is_store_outside else f"process 0 of {seat.size}"
    return f"{name} on {seat.address}"


def _open_store(seat: Seat, timeout_s: float) -> TCPStore:
    """The store of the run: of the launcher, or held by process 0."""
    is_holder = seat.rank == 0 and not seat.is_store_outside
    if not is_holder:
        _await_store(seat, timeout_s)
    try:
        return TCPStore(
            seat.address,
            seat.port,
            is_master=is_holder,
            wait_for_workers=False,
            timeout=timedelta(seconds=timeout_s),
        )
    except RuntimeError as error:
        if is_holder:
            raise ConfigError(
                f"MASTER_PORT={seat.port} cannot be used on {socket.gethostname()}: another "
                "program has it, or the system refuses it; give another one"
            ) from error
        raise absent(seat, [0], timeout_s) from error


def _await_store(seat: Seat, timeout_s: float) -> None:
    """Wait until somebody listens: when TCPStore waits in vain it prints a traceback of C++."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            with socket.create_connection((seat.address, seat.port), timeout=timeout_s):
                return
        except OSError as error:
            if time.monotonic() > deadline:
                raise absent(seat, [0], timeout_s) from error
            time.sleep(LOOK_S)
