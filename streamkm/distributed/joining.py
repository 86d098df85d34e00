"""Joins the processes that torchrun, Slurm or `streamkm.distributed.launching` has started.

They meet in a waiting room before torch.distributed connects them: each leaves a card in the
store of the run, and process 0 lets them in once all cards are there. So a process that is missing
is named, where torch would say only that time ran out. Versions and devices are compared by the
cards, before anything can fail between unlike processes.
"""

from __future__ import annotations

import json
import os
import re
import socket
import time
import uuid
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch.distributed import TCPStore  # type: ignore[attr-defined]  # offered, not declared
from torch.distributed.distributed_c10d import PrefixStore, Store

from streamkm import __version__
from streamkm.distributed.board import PROCESS_TIMEOUT_S, Board, Notice
from streamkm.distributed.world import ALONE, World, elsewhere, remember
from streamkm.errors import ConfigError, DeviceError, Option, ProcessLostError, StreamkmError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["Seat", "joined", "local_device", "variables"]

#: Seconds between two looks into the waiting room.
LOOK_S = 0.02
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


# ---- devices ----------------------------------------------------------------


def local_device(name: str, local_rank: int) -> str:
    """The device of one of several processes: with ``auto`` and ``cuda``, a GPU each.

    A batch system may show each process only its own GPU, and then that is number 0 for all.
    """
    if name not in ("auto", "cuda") or not torch.cuda.is_available():
        return name
    return f"cuda:{local_rank % torch.cuda.device_count()}"


@dataclass(frozen=True)
class Card:
    """What a process says of itself in the waiting room."""

    host: str
    local_rank: int
    device: str
    """As it was named."""
    device_type: str
    gpu: str | None
    """What identifies the GPU, of all there are; None on a CPU."""
    streamkm: str
    torch: str
    mark: str
    """Tells apart two processes that say they have the same rank."""


def _card(seat: Seat, device: str) -> Card:
    name = local_device(device, seat.local_rank)
    used = torch.device("cpu" if name == "auto" else name)
    is_gpu = used.type == "cuda" and torch.cuda.is_available()
    if is_gpu and (used.index or 0) >= torch.cuda.device_count():
        raise DeviceError(
            Option("device", device), f": there are {torch.cuda.device_count()} GPUs, from 0"
        )
    gpu = str(torch.cuda.get_device_properties(used).uuid) if is_gpu else None
    return Card(
        host=socket.gethostname(),
        local_rank=seat.local_rank,
        device=device,
        device_type=used.type,
        gpu=gpu,
        streamkm=__version__,
        torch=torch.__version__,
        mark=uuid.uuid4().hex,
    )


def check_cards(cards: list[Card]) -> None:
    """Raise unless the processes can work together; the same error in all of them."""
    records = [
        {
            "host": card.host,
            "what": {
                "version of streamkm": card.streamkm,
                "version of torch": card.torch,
                "type of device": card.device_type,
            },
        }
        for card in cards
    ]
    World.compare(records)
    users: dict[str, int] = {}
    for rank, card in enumerate(cards):
        first = users.setdefault(card.gpu, rank) if card.gpu is not None else rank
        if first != rank:
            raise DeviceError(
                Option("device", card.device),
                f": processes {first} and {rank} on {card.host} would share one GPU; start one "
                "process for each GPU of a machine, and use ",
                Option("device", "cuda"),
            )


# ---- the waiting room -------------------------------------------------------


class WaitingRoom:
    """Where processes wait for each other: keys in the store of the run.

    The store may be that of torchrun's agent, which outlives an attempt, and keys of processes
    that are gone are still there. So process 0 opens a room of a new name. A process that has gone
    into the room of an earlier attempt is never let in, notices the new name and moves over.

    Parameters
    ----------
    store : Store
        The store of the run.
    seat : Seat
        What this process was told.
    card : Card
        What it says of itself.
    timeout_s : float
        Seconds to wait for the others.
    """

    def __init__(self, store: Store, seat: Seat, card: Card, timeout_s: float) -> None:
        self._store = store
        self._seat = seat
        self._card = card
        self._timeout_s = timeout_s
        self._name = ""

    def wait(self) -> tuple[str, list[Card]]:
        """The name of the room and the cards of all processes, in the order of ranks.

        Raises
        ------
        ProcessLostError
            If processes are missing; it names them.
        ConfigError
            If two processes say that they have the same rank.
        ElsewhereError
            If another process has raised one of these.
        """
        is_first, own = self._seat.rank == 0, uuid.uuid4().hex
        deadline = time.monotonic() + self._timeout_s
        if is_first:
            self._store.set("room", own)
        while True:
            now = self._read("room")
            if is_first and now != own:
                raise self._failing(self._clash(0, self._card.host))
            if now != self._name:
                self._name = now
                self._enter()
            if is_first and self._store.check(self._keys()):
                texts = [text.decode() for text in self._store.multi_get(self._keys())]
                self._store.set(self._key("open"), json.dumps(texts))
            if cards := self._opened():
                return self._name, cards
            if clash := self._read(self._key("clash")):
                rank, host = json.loads(clash)
                # A process in the room of an earlier attempt clashes with one that is gone.
                if is_first or time.monotonic() > deadline:
                    raise self._failing(self._clash(rank, host))
            if told := self._read(self._key("failed")):
                raise elsewhere(Notice(**json.loads(told)))
            if time.monotonic() > deadline:
                raise self._failing(self._missing())
            time.sleep(LOOK_S)

    def _key(self, name: str) -> str:
        return f"{self._name}/{name}"

    def _keys(self) -> list[str]:
        return [self._key(f"card/{rank}") for rank in range(self._seat.size)]

    def _read(self, key: str) -> str:
        return self._store.get(key).decode() if self._store.check([key]) else ""

    def _enter(self) -> None:
        mine = json.dumps(asdict(self._card))
        there = self._store.compare_set(self._keys()[self._seat.rank], "", mine).decode()
        if there != mine:
            self._store.set(self._key("clash"), json.dumps([self._seat.rank, self._card.host]))

    def _opened(self) -> list[Card]:
        """The cards of all, once process 0 has let this process in."""
        text = self._read(self._key("open")) if self._name else ""
        cards = [Card(**json.loads(card)) for card in json.loads(text or "[]")]
        return cards if cards and cards[self._seat.rank].mark == self._card.mark else []

    def _clash(self, rank: int, host: str) -> StreamkmError:
        there = self._read(self._keys()[rank])
        hosts = {host, json.loads(there)["host"] if there else host}
        return ConfigError(
            f"two processes say that they are number {rank} of {self._seat.size}, on "
            f"{' and '.join(sorted(hosts))}: give each machine its own --node-rank, and each run "
            "its own MASTER_PORT"
        )

    def _missing(self) -> StreamkmError:
        if self._name:
            keys = self._keys()
            missing = [rank for rank, key in enumerate(keys) if not self._store.check([key])]
        else:
            missing = [0]
        return absent(self._seat, missing, self._timeout_s)

    def _failing(self, error: StreamkmError) -> StreamkmError:
        """`error`, told to those who wait; that of another process if it was first."""
        mine = Notice(self._seat.rank, self._card.host, error.exit_status, str(error))
        text = json.dumps(asdict(mine))
        first = self._store.compare_set(self._key("failed"), "", text).decode()
        if self._seat.rank == 0 and not self._seat.is_store_outside:
            time.sleep(25 * LOOK_S)  # Until the others have read it: the store ends with this one.
        return error if first == text else elsewhere(Notice(**json.loads(first)))


def absent(seat: Seat, missing: list[int], timeout_s: float) -> ProcessLostError:
    """The error for processes that were never seen."""
    some = ", ".join(map(str, missing[:8])) + (", ..." if len(missing) > 8 else "")
    return ProcessLostError(
        f"process {seat.rank} waited {timeout_s:g} s at {seat.address}:{seat.port} for "
        f"{len(missing)} of {seat.size} processes: number {some} did not come; start them all, or "
        "unset WORLD_SIZE and RANK for one process"
    )


# ---- the run ----------------------------------------------------------------


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
    card = _card(seat, device)
    timeout = timedelta(seconds=timeout_s)
    store = _open_store(seat, timeout_s)
    try:
        room, cards = WaitingRoom(store, seat, card, timeout_s).wait()
        client = TCPStore(seat.address, seat.port, is_master=False, timeout=timeout)
    except RuntimeError as error:
        raise ProcessLostError(
            f"{_holder(seat)} went away while process {seat.rank} waited for the others; start "
            "them all again"
        ) from error
    hosts = [other.host for other in cards]
    board = Board(
        PrefixStore(f"{room}/board", client),
        seat.rank,
        hosts,
        held=None if seat.is_store_outside or seat.rank else store,
        holder=_holder(seat) if seat.is_store_outside else None,
        timeout_s=timeout_s,
        may_end=True,
        launcher=os.getppid() if seat.has_launcher else None,
    )
    apart = World(seat.rank, seat.local_rank, hosts, board=board)
    with apart.telling():
        check_cards(cards)
        with apart.waiting():
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if card.gpu else "gloo",
                store=PrefixStore(f"{room}/group", store),
                rank=seat.rank,
                world_size=seat.size,
                timeout=timeout,
            )
    world = World(seat.rank, seat.local_rank, hosts, group=dist.group.WORLD, board=board)
    remember(world)
    with world.telling():
        yield world
        world.meet()  # One may still be writing.
    world.close()


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
