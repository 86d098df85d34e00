"""The world of this process, for code that nobody has handed one.

An estimator in a program of Ray's, Lightning's or a notebook's finds the processes of the group
that the program has made. The command line has joined a run, and finds that one.
"""

from __future__ import annotations

import atexit
import os
import socket
import weakref
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed import TCPStore  # type: ignore[attr-defined]  # offered, not declared

from streamkm.distributed.board import PROCESS_TIMEOUT_S, Board
from streamkm.distributed.world import ALONE, World
from streamkm.machine import processor_name

__all__ = ["remember", "world"]

#: The group that torch.distributed had when a world was made, and that world. The reference is a
#: weak one, because a group that the program destroys must go.
_known: tuple[weakref.ref[object], World] | None = None


def remember(joined: World) -> None:
    """Let `world` return `joined` as long as torch.distributed has the group that it has now."""
    global _known
    _known = (weakref.ref(dist.group.WORLD), joined)


def world() -> World:
    """The world of this process: all processes of the group that torch.distributed has, else ALONE.

    The group may be anybody's: Ray's, Lightning's, a notebook's. The first call is collective. It
    makes groups of streamkm's own, because a process that waits in a collective of the program's
    group would wait for 10 or 30 minutes. The program's group is not used afterwards.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return ALONE
    if _known is not None and _known[0]() is dist.group.WORLD and not _known[1].is_closed:
        return _known[1]
    found = _within_group()
    remember(found)
    # A thread of torch lets go of a tensor a little after a collective. Where the interpreter has
    # ended meanwhile, that takes the process down.
    atexit.register(found.leave_group)
    return found


def _within_group() -> World:
    """A world of the processes of a group that somebody else has initialised."""
    timeout = timedelta(seconds=PROCESS_TIMEOUT_S)
    backend = "cpu:gloo,cuda:nccl" if "nccl" in dist.get_backend_config() else "gloo"
    group = dist.new_group(backend=backend, timeout=timeout)
    rank, local_rank = dist.get_rank(), dist.get_node_local_rank(fallback_rank=0)
    host = socket.gethostname()
    # To hand round names, nobody's name is needed.
    unnamed = World(rank, local_rank, [host] * dist.get_world_size(), group=group)
    hosts = unnamed.gather(host)
    address = os.environ.get("MASTER_ADDR", hosts[0])
    holder = None
    if rank == 0:
        holder = TCPStore(address, 0, is_master=True, wait_for_workers=False, timeout=timeout)
    port = unnamed.gather(holder.port if holder else None)[0]
    store = TCPStore(address, port, is_master=False, timeout=timeout)
    board = Board(store, rank, hosts, held=holder)
    is_gpu = torch.cuda.is_available() and "nccl" in backend
    processor = torch.cuda.get_device_name() if is_gpu else processor_name()
    is_alike = len(set(unnamed.gather(processor))) == 1
    return World(rank, local_rank, hosts, group=group, board=board, is_alike=is_alike)
