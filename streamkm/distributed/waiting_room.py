"""The waiting room: where the processes of a run meet before torch.distributed connects them.

Each leaves a card in the store of the run, and process 0 lets them in once all cards are there. So
a process that is missing is named, where torch would say only that time ran out.
"""

from __future__ import annotations

import json
import time
import uuid
from dataclasses import asdict
from typing import TYPE_CHECKING

from streamkm.distributed.board import Notice, elsewhere
from streamkm.distributed.cards import Card
from streamkm.errors import ConfigError, ProcessLostError, StreamkmError

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

    from streamkm.distributed.seats import Seat

__all__ = ["WaitingRoom", "absent"]

#: Seconds between two looks into the waiting room.
LOOK_S = 0.02


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
